"""A real vLLM replaced while the old one sleeps, under load through the gateway; and rolled back by waking.

For a GPU host: `make test-gpu`. Results: docs/benchmarks.md.
"""

import os
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.world import World
from tests.gpu.test_gpu import MODEL, START, Measured, gpu, timed, world
from tests.processes import free_port

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]
__all__ = ["world"]


def write(world: World, **args: object) -> None:
    env = {"HF_HUB_OFFLINE": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
    if path := os.environ.get("PYTHONPATH"):
        env["PYTHONPATH"] = path
    runtime = {"kind": "vllm", "python": os.environ["SAGE_VLLM_PYTHON"], "env": env}
    world.write(
        {
            "name": "big",
            "kind": "llm",
            "model": MODEL,
            "runtime": "vllm-gpu",
            "gpu_memory": 0.8,
            "args": {"load-format": "dummy", "enforce-eager": True, "max-model-len": 2048, **args},
            "health": {"interval": "1s"},
            "rollout": {"strategy": "sleep-swap", "hold": "10m"},
        },
        runtimes={"vllm-gpu": runtime},
    )


class Asking:
    """Asks through the gateway all the time, one request after another in each of four threads."""

    def __init__(self, port: int) -> None:
        self.waits: list[float] = []
        self.failed: list[str] = []
        self._url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(START)

    def told(self) -> str:
        return f"{len(self.waits)}, {self.failed}, {max(self.waits):.1f} s"

    def _ask(self) -> None:
        body = {"model": "big", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
        with httpx.Client(timeout=START, trust_env=False) as client:
            while not self._ended.is_set():
                begin = time.monotonic()
                try:
                    reply = client.post(self._url, json=body)
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))
                    continue
                if reply.status_code != 200:
                    self.failed.append(reply.text)
                self.waits.append(time.monotonic() - begin)


def engine(world: World) -> dict[str, Any]:
    found: dict[str, Any] = world("status", "--json").json()["engines"][0]
    return found


def test_replaced_while_the_old_one_sleeps(world: World) -> None:
    measured = Measured()
    free = gpu(world)
    write(world)
    timed(world, measured, "start with sleep mode, 0.8 of the GPU", "apply", "--yes")
    port = free_port()
    world("gateway", "start", "--port", str(port)).ok()
    old = world.pids()["big#0"]

    write(world, **{"max-model-len": 1024})
    (step,) = world.plan()["steps"]
    measured("strategy", f"{step['strategy']}: {step['reason']}")
    assert step["strategy"] == "sleep-swap"
    measured("memory in the plan", world.plan()["memory"])
    asking = Asking(port)
    timed(world, measured, "sleep-swap under load", "apply", "--yes")
    asking.end()
    measured("requests, failed, longest wait", asking.told())
    assert asking.failed == []
    assert len(asking.waits) > 8
    world.is_settled()
    assert not Path(f"/proc/{old.engine}").exists()
    measured("MiB of the new one", engine(world)["gpu_memory_mib"])

    serving = world.pids()["big#0"]
    write(world, **{"max-model-len": 1024, "quantization": "no-such-method"})
    asking = Asking(port)
    begin = time.monotonic()
    failed = world.start("apply", "--yes").end(START)
    measured("a swap that fails, woken again after", f"{time.monotonic() - begin:.1f} s")
    asking.end()
    assert failed.rc == 1
    assert "was woken and serves again" in failed.out
    measured("requests, failed, longest wait", asking.told())
    assert asking.failed == []
    assert world.pids()["big#0"].engine == serving.engine

    timed(world, measured, "stop", "stop", "--all", "--yes")
    after = gpu(world)["memory_used_mib"]
    assert abs(after - free["memory_used_mib"]) < 600
