"""Fixes of engines that did not find enough GPU memory, from the numbers that they printed. Pure."""

import math

from sage_reconcile.engines.base import arg
from sage_reconcile.engines.failures import Failure
from sage_reconcile.engines.vllm import DEFAULT_UTILIZATION, utilization
from sage_reconcile.model.desired import Device
from sage_reconcile.model.fixes import Edit, Fix

SHORTEST = 2048
"""Tokens under which nobody wants a model only because they fit: then it should have more memory."""

LARGEST_SHARE = 0.95
"""Above it a GPU has no room for the CUDA contexts and what is counted wrong."""

SPARE = 0.01
"""Share of the GPU that is left beside what was measured: it differs a little from start to start."""


def kv_cache(failure: Failure) -> Fix:
    """Fewer tokens, as many as vLLM says fit; where these are too few, more memory."""
    blocks = failure.number(r"exceeds available mamba cache blocks \((\d+)\)")
    if blocks:
        return failure.edit(f"there is room for {blocks} sequences", failure.flag("max-num-seqs", blocks))
    longest = failure.number(r"estimated maximum model length is (\d+)")
    longest = longest or failure.number(r"stored in kv cache \((\d+)\)") or 0
    wanted = failure.number(r"max seq len \((\d+)\)") or 0
    if longest >= min(SHORTEST, wanted // 4 or SHORTEST):
        return failure.edit(
            f"the KV cache has room for {longest:,} of {wanted:,} tokens",
            failure.flag("max-model-len", longest),
        )
    share = _share_for(failure)
    if share is not None:
        return failure.edit(f"the KV cache has room for {longest:,} tokens", _share(failure, share))
    return failure.advise(
        "the weights leave no room: spread it over more GPUs (tensor_parallel), take a quantised model, "
        "or args: {kv-cache-dtype: fp8}"
    )


def taken(failure: Failure) -> Fix:
    """Take what is free: somebody else has the rest."""
    found = failure.find(r"\(([\d.]+)/([\d.]+) GiB\)")
    free, total = (float(found[1]), float(found[2])) if found else (0.0, 0.0)
    share = math.floor((free / total - SPARE) * 100) / 100 if total else 0.0
    if share < 0.1:
        return failure.advise("end what holds this GPU's memory: `sage status` and `nvidia-smi` show it")
    return failure.edit(
        f"{free:g} of {total:g} GiB were free, others hold the rest", _share(failure, share, total * 1024)
    )


def out_of_memory(failure: Failure) -> Fix:
    requests = failure.number(r"warming up sampler with (\d+) dummy requests")
    if requests and requests > 8:
        return failure.edit(
            f"there is no room to sample for {requests} requests at once",
            failure.flag("max-num-seqs", requests // 4),
        )
    ways = "raise gpu_memory" if _now(failure) < DEFAULT_UTILIZATION else "more GPUs (tensor_parallel)"
    return failure.advise(f"{ways}, a quantised model, or less at once: args: {{max-num-seqs: 64}}")


def _now(failure: Failure) -> float:
    return utilization(failure.spec, failure.gpu_total_mib)


def _share_for(failure: Failure) -> float | None:
    """The share of a GPU that would hold one request: as much more as vLLM says is missing."""
    if not failure.takes_vllm_flags or failure.spec.device is Device.CPU:
        return None
    now = _now(failure)
    need = failure.find(r"([\d.]+) GiB KV cache is needed")
    have = failure.find(r"available KV cache memory \((-?[\d.]+) GiB\)")
    if need and have and failure.gpu_total_mib:
        missing = (float(need[1]) - float(have[1])) * 1024 / failure.gpu_total_mib
        wanted = math.ceil((now + missing + SPARE) * 100) / 100
        return wanted if wanted <= LARGEST_SHARE else None
    return DEFAULT_UTILIZATION if now < DEFAULT_UTILIZATION else None


def _share(failure: Failure, share: float, total_mib: float | None = None) -> Edit:
    """The edit that gives it this share of each GPU, in the notation that the file has."""
    if arg(failure.spec, "gpu-memory-utilization") is not None or failure.spec.device is Device.CPU:
        return failure.flag("gpu-memory-utilization", share)
    total = total_mib or failure.gpu_total_mib
    if isinstance(failure.spec.gpu_memory, int) and total:
        return Edit(("gpu_memory",), f"{math.floor(share * total / 102.4) / 10:g}GiB")
    flag = failure.flag("gpu-memory-utilization", share)
    return flag if flag.path[0] != "args" else Edit(("gpu_memory",), share)
