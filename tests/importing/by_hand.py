"""Engines as people start them by hand: real processes under the command lines of vLLM and others."""

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.world import FAKE_ENGINE, KEPT, ask
from tests.waiting import wait_until

# What `python -m vllm.entrypoints.openai.api_server` is here: the fake engine behind vLLM's flags.
API_SERVER = f"""
import runpy, sys
def value(flag, other=None):
    return sys.argv[sys.argv.index(flag) + 1] if flag in sys.argv else other
sys.argv += ["--model", value("--served-model-name", value("--model"))]
sys.argv[0] = {str(FAKE_ENGINE)!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def vllm_environment(folder: Path) -> Path:
    """A Python environment whose vllm is a fake engine; its interpreter."""
    venv.create(folder, with_pip=False)
    [site] = (folder / "lib").glob("python*/site-packages")
    package = site / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for path in (package, package.parent, package.parent.parent):
        (path / "__init__.py").write_text("")
    (package / "api_server.py").write_text(API_SERVER)
    return folder / "bin" / "python"


@contextmanager
def running(folder: Path, port: int, *command: str | Path, **environ: str) -> Iterator[int]:
    """The command, once it answers at /health; its pid. It is ended in the end, if it still runs."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    with (folder / f"by-hand-{port}.log").open("wb") as log:
        process = subprocess.Popen(
            [*map(str, command)],
            cwd=folder,
            env=kept | environ,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    try:
        wait_until(lambda: answers(port), f"port {port} answers", 120.0)
        yield process.pid
    finally:
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    try:
        ask(port, "/health")
    except OSError:
        return False
    return True


def fake(port: int, model: str, *options: str) -> list[str]:
    """A program that nobody knows."""
    return [sys.executable, str(FAKE_ENGINE), "--port", str(port), "--model", model, *options]
