"""Whether an engine will start in the memory that it is given: told before it is started."""

import math
from dataclasses import dataclass

from sage_reconcile.engines.base import arg
from sage_reconcile.engines.estimate import estimate
from sage_reconcile.model.desired import LaunchSpec
from sage_reconcile.model.estimate import Estimate
from sage_reconcile.model.facts import Fact
from sage_reconcile.model.modelfiles import ModelFiles
from sage_reconcile.plan.memory import need_mib

UNKNOWN = "GPU memory need unknown: set gpu_memory to have it counted"


@dataclass(frozen=True, slots=True)
class Fit:
    """What a plan should say of it, "" for nothing. `is_impossible`: it cannot start, whatever is estimated
    of what computing takes."""

    note: str = ""
    is_impossible: bool = False


def fit(spec: LaunchSpec, files: ModelFiles | None, gpu_total_mib: int, fact: Fact | None = None) -> Fit:
    """The fit of `spec` on GPUs of this size; `fact` is what was measured of it there."""
    found = estimate(spec, files, gpu_total_mib)
    if found is None or found.share_mib is None:
        if need_mib(spec, gpu_total_mib, fact=fact) is not None:
            return Fit()
        return Fit(f"needs about {found.parts.total:,} MiB, from {found.source}" if found else UNKNOWN)
    if not found.lacks_mib:
        return Fit()
    sure = found.cannot_start and found.is_sure
    return Fit(f"{'cannot' if sure else 'may not'} start: {shortage_of(spec, found, gpu_total_mib)}", sure)


def shortage_of(spec: LaunchSpec, found: Estimate, gpu_total_mib: int) -> str:
    """The arithmetic, and what to change in the file."""
    parts = found.parts
    computing = parts.activations + parts.graphs
    needs = [f"weights {parts.weights:,}", f"computing about {computing:,}"]
    needs += [f"adapters {parts.lora:,}"] if parts.lora else []
    if found.request_mib:
        needs.append(f"the KV cache of one request of {found.max_len:,} tokens {found.request_mib:,}")
    sums = f"{' + '.join(needs)} = {found.enough_mib:,} MiB, and it is given {found.share_mib or 0:,}"
    return f"{sums}: {', or '.join(_remedies(spec, found, gpu_total_mib))}"


def _remedies(spec: LaunchSpec, found: Estimate, gpu_total_mib: int) -> list[str]:
    ways = [f"lower max-model-len to {found.longest}"] if found.longest else []
    if found.enough_mib <= gpu_total_mib - found.parts.context:
        if arg(spec, "gpu-memory-utilization") is not None:
            share = math.ceil(found.enough_mib / gpu_total_mib * 100) / 100
            ways.append(f"raise gpu-memory-utilization to {share:g}")
        else:
            ways.append(f"raise gpu_memory to {math.ceil(found.enough_mib / 102.4) / 10:g}GiB")
    if not ways or not found.longest:
        ways.append("spread it over more GPUs (tensor_parallel), or take a quantised model")
    return ways
