"""What an engine is started with on this host: its interpreter, its model, its environment."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sage_reconcile.apply.environment import (
    engine_environment,
    launch_context,
    runtime_notes,
    working_directory,
)
from sage_reconcile.errors import PermanentError
from sage_reconcile.home import Home
from sage_reconcile.model.desired import Kind, LaunchSpec
from sage_reconcile.model.observed import ObservedGpu, Placement

PLACE = Placement("here", 8901)
SPEC = LaunchSpec(Kind.LLM, "transformers", "org/name")


def test_only_what_is_listed_is_inherited_and_the_file_wins() -> None:
    environ = {
        "PATH": "/bin",
        "HF_HOME": "/hub",
        "AWS_SECRET_ACCESS_KEY": "no",
        "PYTHONPATH": "/no",
        "LANG": "C",
    }
    spec = replace(SPEC, env=(("HF_HOME", "/own"), ("TOKEN", "${env:MY_TOKEN}")))
    found = engine_environment(spec, (("ADDED", "1"),), environ | {"MY_TOKEN": "t"})
    assert found == {
        "PATH": "/bin",
        "LANG": "C",
        "HF_HOME": "/own",
        "ADDED": "1",
        "TOKEN": "t",
        "PYTHONUNBUFFERED": "1",
    }


def test_a_missing_secret_is_named() -> None:
    with pytest.raises(PermanentError, match=r"env\.TOKEN: the environment variable NOT_THERE is not set"):
        engine_environment(replace(SPEC, env=(("TOKEN", "${env:NOT_THERE}"),)), (), {})


def test_a_model_directory_of_the_home_is_used_before_the_hub(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert launch_context(SPEC, PLACE, home, ()).model == "org/name"
    (home.models / "org" / "name").mkdir(parents=True)
    assert launch_context(SPEC, PLACE, home, ()).model == str(home.models / "org" / "name")


def test_the_environment_of_the_home_is_used_and_its_lack_is_told(tmp_path: Path) -> None:
    home = Home(tmp_path)
    (note,) = runtime_notes([SPEC, SPEC, replace(SPEC, python=sys.executable)], home)
    where = f"{home.runtimes}/transformers"
    assert note == f"runtime transformers has no environment in {where}: python3 of the PATH is used"
    python = home.runtimes / "transformers" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    assert runtime_notes([SPEC], home) == ()
    assert launch_context(SPEC, PLACE, home, ()).python == str(python)


def test_a_python_that_is_not_there_is_a_clear_fault(tmp_path: Path) -> None:
    with pytest.raises(
        PermanentError, match="the Python of runtime transformers is not there: /nowhere/python"
    ):
        launch_context(replace(SPEC, python="/nowhere/python"), PLACE, Home(tmp_path), ())


def test_gpus_are_named_by_index_and_mig_devices_by_uuid(tmp_path: Path) -> None:
    gpus = (ObservedGpu("here", 2, "GPU-b", "x", 80_000), ObservedGpu("here", 5, "MIG-c", "x", 20_000))
    found = launch_context(SPEC, replace(PLACE, gpus=("GPU-b", "MIG-c")), Home(tmp_path), gpus)
    assert (found.visible, found.gpu_total_mib) == (("2", "MIG-c"), 20_000)


def test_a_folder_that_is_not_there_is_a_clear_fault(tmp_path: Path) -> None:
    assert working_directory(replace(SPEC, cwd=str(tmp_path))) == str(tmp_path)
    with pytest.raises(PermanentError, match="cwd is not a directory: /nowhere"):
        working_directory(replace(SPEC, cwd="/nowhere"))
