"""GPUs as a class: what they hold, where something would fit, how much a model takes."""

import os
from typing import Any

from sage_reconcile.control.facts import gpu_infos, in_words
from sage_reconcile.control.looking import blocking
from sage_reconcile.converge import Host, local_host
from sage_reconcile.engines.estimate import estimate
from sage_reconcile.errors import BlockedError, PermanentError
from sage_reconcile.home import Home
from sage_reconcile.model.desired import Device, Kind, LaunchSpec
from sage_reconcile.model.management import Json
from sage_reconcile.model.observed import ObservedState
from sage_reconcile.observe.modelfiles import ModelReader
from sage_reconcile.plan.memory import Account, Ledger

DEFAULT_GPU_MIB = 80 * 1024
"""The GPU that estimates are made for on a host without one."""


class GPUResourceManager:
    """The GPUs of this host, by the planner's own account of their memory. Synchronous; sizes in GiB.

    Nothing is set aside here: the planner gives memory out when an engine starts, under the lock that all
    appliers share and by a look of that moment, so no two engines are given the same. SAGE_GPU_MOCK_COUNT and
    SAGE_GPU_MOCK_MEMORY_GB pretend GPUs, SAGE_DISABLE_NVML=1 leaves NVML alone.
    """

    def __init__(self, home: Home | None = None, host: Host | None = None) -> None:
        self._host = host or local_host(home or Home.from_environ())

    def get_system_status(self) -> Json:
        """`gpus` as GET /v1/management/gpu tells them, their count and sums, and `gaps`: what could not be
        seen."""
        observed = self._look()
        infos = gpu_infos(observed)
        return {
            "gpu_count": len(infos),
            "total_memory_gb": round(sum(one.memory_total_gb for one in infos), 3),
            "available_memory_gb": round(sum(one.memory_free_gb for one in infos), 3),
            "is_mock": any(one.is_mock for one in infos),
            "gpus": infos,
            "gaps": [in_words(gap) for gap in observed.gaps],
        }

    def check_resource_availability(self, required_memory_gb: float, gpu_count: int = 1) -> bool:
        """Whether that many GPUs have so much free, each."""
        return bool(_pick(self._look(), required_memory_gb, gpu_count))

    def allocate_resources(self, required_memory_gb: float, gpu_count: int = 1) -> list[int]:
        """The indices of the GPUs where it fits best now, tightest first fit as the planner does it.

        Raises BlockedError with the arithmetic where it fits nowhere. The answer is advice for what sage does
        not start itself; it reserves nothing.
        """
        observed = self._look()
        chosen = _pick(observed, required_memory_gb, gpu_count)
        if not chosen:
            free = ", ".join(f"GPU {one.index} {one.memory_free_gb:g}" for one in gpu_infos(observed))
            seen = "; ".join(in_words(gap) for gap in observed.gaps if gap.what in ("gpus", "node"))
            raise BlockedError(
                f"{gpu_count} x {required_memory_gb:g} GiB fit nowhere; free GiB: {free or 'no GPU'}"
                + (f"; {seen}" if seen else "")
            )
        return [account.gpu.index for account in chosen]

    def release_resources(self, gpu_ids: list[int], memory_gb: float) -> bool:
        """Whether each of these GPUs has so much free by now: what an engine held is back once the driver
        says so, and no call makes it so. Raises PermanentError for a GPU that is not there."""
        free = {one.index: one.memory_free_gb for one in gpu_infos(self._look())}
        if unknown := [index for index in gpu_ids if index not in free]:
            raise PermanentError(f"there is no GPU {unknown[0]}; there are: {sorted(free) or 'none'}")
        return all(free[index] >= memory_gb for index in gpu_ids)

    def estimate_model_memory(
        self,
        model_id: str,
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        **args: Any,
    ) -> float | None:
        """GiB that each GPU needs for the model to start in vLLM, from what the model's own files say; None
        where they are not on this host. `args` are vLLM's: `max_model_len=4096`.
        """
        words = tuple(sorted((key.replace("_", "-"), value) for key, value in args.items()))
        spec = LaunchSpec(
            Kind.LLM,
            "vllm",
            model_id,
            device=Device.GPU,
            args=words,
            tensor_parallel=tensor_parallel_size,
            pipeline_parallel=pipeline_parallel_size,
        )
        (files,) = ModelReader(self._host.home, os.environ).read((spec,))
        total = max((gpu.total_mib for gpu in self._look().gpus), default=DEFAULT_GPU_MIB)
        found = estimate(spec, files, total)
        return None if found is None else round((found.enough_mib or found.parts.total) / 1024, 3)

    def _look(self) -> ObservedState:
        return blocking(self._host.eyes.look())


def _pick(observed: ObservedState, gib: float, count: int) -> tuple[Account, ...]:
    """The accounts where it fits tightest, all on GPUs of one size; () where it fits nowhere."""
    if gib <= 0 or count < 1:
        raise PermanentError("ask for more than 0 GiB and at least one GPU")
    ledger = Ledger(observed)
    need = int(-(-gib * 1024 // 1))
    found = [
        chosen
        for node in ledger.by_node
        for total in ledger.sizes
        if (chosen := ledger.pick(node, total, count, need))
    ]
    return min(found, key=lambda chosen: sum(one.free for one in chosen), default=())
