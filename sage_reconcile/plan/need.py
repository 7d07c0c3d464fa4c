"""What one GPU must have for a launch spec: what was measured of it before, the file, its model's files."""

from collections.abc import Iterable

from sage_reconcile.engines.estimate import estimate
from sage_reconcile.engines.registry import runtime
from sage_reconcile.engines.vllm import share_mib
from sage_reconcile.model.desired import Device, LaunchSpec, fingerprint
from sage_reconcile.model.estimate import Estimate
from sage_reconcile.model.facts import Fact
from sage_reconcile.model.modelfiles import ModelFiles
from sage_reconcile.model.observed import ObservedGpu


def expected_mib(spec: LaunchSpec, gpu_total_mib: int, computed: Estimate | None) -> int | None:
    """MiB without any measurement: what the file says, else what is `computed`; None where neither is."""
    stated = runtime(spec.runtime).need_mib(spec, gpu_total_mib)
    if computed is None or spec.device is Device.CPU:
        return stated
    if spec.gpu_memory == "auto" and computed.keeps_nothing:
        return computed.parts.total
    return computed.parts.total if stated is None else stated


def counts_by_need(spec: LaunchSpec, gpu_total_mib: int, files: ModelFiles | None) -> bool:
    """Whether it would be given a share, and has nothing to fill it with: an encoder in vLLM, where the file
    says nothing of memory."""
    if spec.gpu_memory != "auto" or spec.device is Device.CPU or not gpu_total_mib:
        return False
    computed = estimate(spec, files, gpu_total_mib)
    return computed is not None and computed.keeps_nothing


def need_of(
    spec: LaunchSpec, gpu_total_mib: int, files: ModelFiles | None = None, fact: Fact | None = None
) -> int | None:
    """MiB that `spec` takes of one GPU of this size; None where nothing is known.

    What was measured replaces what was expected, with two limits: what computing takes may not have been
    there yet when it was measured, and who fills nothing never counts with less than the file sets aside.
    """
    if spec.is_external:
        return None
    computed = estimate(spec, files, gpu_total_mib)
    expected = expected_mib(spec, gpu_total_mib, computed)
    if fact is None or fact.held_mib is None:
        return expected
    if expected is None:
        return fact.held_mib
    is_reserved = spec.gpu_memory != "auto" and not runtime(spec.runtime).fills
    if computed is None or is_reserved:
        return max(fact.held_mib, expected)
    return max(fact.held_mib, min(expected, fact.held_mib + computed.parts.activations))


def source_of(spec: LaunchSpec, gpu_total_mib: int, fact: Fact | None) -> str:
    """Where the need comes from, in a few words; "" where the number is the file's own or an estimate."""
    if fact is not None and fact.held_mib is not None:
        return "measured before"
    if runtime(spec.runtime).fills and spec.gpu_memory != "auto":
        return f"{share_mib(spec, gpu_total_mib):,} given, and the CUDA context"
    return ""


class Known:
    """The facts of a fleet, by launch spec and size of GPU: models of equal size are taken for one."""

    def __init__(self, facts: Iterable[Fact], gpus: Iterable[ObservedGpu]) -> None:
        here = {(gpu.name, gpu.total_mib) for gpu in gpus}
        self._facts: dict[tuple[str, int], Fact] = {}
        self._prints: dict[LaunchSpec, str] = {}
        for fact in sorted(facts, key=lambda one: (one.at, one.key)):
            if not fact.gpu or (fact.gpu, fact.gpu_total_mib) in here:
                self._facts[fact.fingerprint, fact.gpu_total_mib] = fact

    def of(self, spec: LaunchSpec, gpu_total_mib: int) -> Fact | None:
        """What was measured of this very spec on a GPU of this size; of 0 on the CPU."""
        if not self._facts:
            return None
        if spec not in self._prints:
            self._prints[spec] = fingerprint(spec)
        return self._facts.get((self._prints[spec], gpu_total_mib))

    def all(self) -> tuple[Fact, ...]:
        return tuple(self._facts.values())

    def __bool__(self) -> bool:
        return bool(self._facts)
