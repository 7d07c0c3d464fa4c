"""A real vLLM on the CPU behind sage's gateway, for tests and for the benchmark."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.world import World
from tests.processes import free_port

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
START = 600.0


class MissingError(Exception):
    """Something that these runs need is not on this machine; says what makes it."""


@dataclass(frozen=True)
class Places:
    """What lies on this machine: a Python that has vLLM, and the directory of the models."""

    python: str
    models: Path

    @classmethod
    def found(cls) -> "Places":
        """By the environment. Raises MissingError."""
        python = os.environ.get("SAGE_VLLM_PYTHON", "")
        if not Path(python).is_file():
            raise MissingError(
                "SAGE_VLLM_PYTHON names no Python with vLLM; run `make test-vllm`, which builds one"
            )
        models = Path(os.environ.get("SAGE_TEST_MODELS", Path.home() / ".sage" / "models")).absolute()
        if not (models / MODEL).is_dir():
            raise MissingError(f"no {MODEL} in {models}; run `make demo-setup`")
        return cls(python, models)

    @property
    def model(self) -> Path:
        """The model's own directory, which holds its tokenizer, too."""
        return self.models / MODEL


@contextmanager
def vllm_world(folder: Path, places: Places) -> Iterator[World]:
    """A world below `folder`, of which nothing is left afterwards."""
    home = folder / "home"
    home.mkdir()
    (home / "models").symlink_to(places.models)
    world = World(folder / "work", home)
    try:
        yield world
    finally:
        world("gateway", "stop", "--force")
        world("stop", "--all", "--force", "--yes")
        world.tidy()


def write_stack(
    world: World,
    python: str,
    max_model_len: int = 1024,
    lora: Sequence[Mapping[str, str]] | None = None,
    **args: Any,
) -> None:
    """One engine, `chat`, known as `france`, too; `args` are options of vLLM."""
    runtime = {
        "kind": "vllm",
        "python": python,
        # With these it offers what no client may reach: profilers, sleep, remote calls, adapters.
        "env": {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        },
        "args": {
            "dtype": "float32",
            "enforce-eager": True,
            "gpu-memory-utilization": 0.1,
            "enable-auto-tool-choice": True,
            "tool-call-parser": "hermes",
        },
    }
    engine: dict[str, Any] = {
        "name": "chat",
        "kind": "llm",
        "model": MODEL,
        "runtime": "vllm-cpu",
        "use_gpu": False,
        "label": "france",
        "args": {"max-model-len": max_model_len, **args},
        "health": {"interval": "1s"},
        "restart": {"backoff": "100ms"},
        "rollout": {"hold": "10m"},
    }
    if lora is not None:
        engine["lora"] = list(lora)
    world.write(engine, runtimes={"vllm-cpu": runtime})


@dataclass(frozen=True)
class Served:
    """The URLs of an engine and of the gateway in front of it."""

    engine: str
    gateway: str

    @classmethod
    def by(cls, world: World) -> "Served":
        """Applies the stack file and starts the gateway, as far as they do not run already."""
        world.start("apply", "--yes").end(START).ok()
        if world("gateway", "status").rc != 0:
            world("gateway", "start", "--port", str(free_port())).ok()
        engine = world("status", "--json").json()["engines"][0]["port"]
        gateway: str = world("gateway", "status", "--json").json()["address"]
        return cls(f"http://127.0.0.1:{engine}", gateway)

    def metric(self, name: str) -> int:
        """What the engine says in its metrics, summed over its labels; 0 for what it does not tell."""
        text = httpx.get(f"{self.engine}/metrics", timeout=60.0).text
        return int(sum(map(float, re.findall(rf"^vllm:{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))))

    def running(self) -> int:
        """Requests that it works on."""
        return self.metric("num_requests_running")

    def ask(self, model: str = "france", **more: Any) -> str:
        """What the model says to the question, through the gateway."""
        body = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 16, **more}
        reply = httpx.post(f"{self.gateway}/v1/chat/completions", json=body, timeout=START)
        assert reply.status_code == 200, reply.text
        content: str = reply.json()["choices"][0]["message"]["content"]
        return content
