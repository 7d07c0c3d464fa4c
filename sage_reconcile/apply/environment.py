"""What an engine is started with: its interpreter, its model directory, its environment."""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from sage_reconcile import secrets
from sage_reconcile.engines.base import LaunchContext
from sage_reconcile.engines.registry import runtime
from sage_reconcile.errors import PermanentError
from sage_reconcile.home import Home
from sage_reconcile.model.desired import LaunchSpec, Program
from sage_reconcile.model.observed import ObservedGpu, Placement

INHERITED = frozenset({"HOME", "PATH", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR"})
INHERITED |= {"LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "OMP_NUM_THREADS"}
INHERITED |= {"http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}
PREFIXES = ("LC_", "HF_", "XDG_", "NVIDIA_", "NCCL_", "CUDA_HOME", "CUDA_PATH")
"""What engines inherit from the shell of `sage apply`. Nothing else: a launch should depend on the file."""


def engine_environment(
    spec: LaunchSpec, added: tuple[tuple[str, str], ...], environ: Mapping[str, str]
) -> dict[str, str]:
    """Inherited, then what the runtime adds, then the file's `env` with its secrets resolved.

    Raises PermanentError for a secret that is not there.
    """
    env = {name: value for name, value in environ.items() if name in INHERITED or name.startswith(PREFIXES)}
    env |= dict(added)
    env["PYTHONUNBUFFERED"] = "1"
    for name, value in spec.env:
        try:
            env[name] = secrets.resolve(value, environ)
        except ValueError as error:
            raise PermanentError(f"env.{name}: {error} where sage runs") from error
    return env


def launch_context(
    spec: LaunchSpec,
    placement: Placement,
    home: Home,
    gpus: tuple[ObservedGpu, ...],
    counted_mib: int | None = None,
) -> LaunchContext:
    """What only this host knows. Raises PermanentError when the runtime's Python is not there."""
    kind = runtime(spec.runtime)
    known = {gpu.uuid: gpu for gpu in gpus}
    own = [known[uuid] for uuid in placement.gpus if uuid in known]
    return LaunchContext(
        placement=placement,
        model=_model(spec, home) if kind.uses_model_directory else spec.model,
        python=_python(spec, home) if kind.needs_python else "",
        visible=tuple(gpu.uuid if gpu.uuid.startswith("MIG-") else str(gpu.index) for gpu in own),
        gpu_total_mib=min((gpu.total_mib for gpu in own), default=None),
        counted_mib=counted_mib,
    )


def runtime_notes(launches: Iterable[LaunchSpec], home: Home) -> tuple[str, ...]:
    """What a plan should say of this host's environments before anything is started, sorted."""
    bare = {
        spec.runtime
        for spec in launches
        if runtime(spec.runtime).needs_python
        and spec.python is None
        and spec.program is None
        and not _own_python(spec, home).exists()
    }
    return tuple(
        f"runtime {name} has no environment in {home.runtimes / name}: python3 of the PATH is used"
        for name in sorted(bare)
    )


def _own_python(spec: LaunchSpec, home: Home) -> Path:
    return home.runtimes / spec.runtime / "bin" / "python"


def _model(spec: LaunchSpec, home: Home) -> str:
    """The directory under SAGE_HOME/models where there is one, else the model as the file names it."""
    directory = home.models / spec.model
    return str(directory) if not os.path.isabs(spec.model) and directory.is_dir() else spec.model


def _python(spec: LaunchSpec, home: Home) -> str:
    """That of the version that the file pins, else its `python`, else SAGE_HOME/runtimes/<runtime>, else
    python3 of the PATH."""
    if spec.program is not None:
        return _installed_python(spec, spec.program, home)
    if spec.python is not None:
        if shutil.which(spec.python) is None:
            raise PermanentError(
                f"the Python of runtime {spec.runtime} is not there: {spec.python}; "
                f"create that environment, or set runtimes.<name>.python to one that has {spec.runtime}"
            )
        return spec.python
    own = _own_python(spec, home)
    if own.exists():
        return str(own)
    found = shutil.which("python3")
    if found is None:
        raise PermanentError(
            f"no Python for runtime {spec.runtime}: make {own}, or set runtimes.<name>.python"
        )
    return found


def _installed_python(spec: LaunchSpec, program: Program, home: Home) -> str:
    path = home.runtimes / program.folder(spec.runtime) / "bin" / "python"
    if not path.exists():
        raise PermanentError(
            f"{spec.runtime} {program.version} is not installed: run `sage runtime install {spec.runtime}`"
        )
    return str(path)


def program_of(name: str, env: Mapping[str, str], cwd: str | None) -> str:
    """Where the program of a command is. Raises PermanentError when it is nowhere."""
    path = os.path.join(cwd, name) if cwd and os.sep in name and not os.path.isabs(name) else name
    found = shutil.which(path, path=env.get("PATH"))
    if found is None:
        raise PermanentError(f"there is no program {name} to start; check `command` and the PATH of its env")
    return found


def working_directory(spec: LaunchSpec) -> str | None:
    """The file's `cwd`. Raises PermanentError when it is not a directory."""
    if spec.cwd is not None and not Path(spec.cwd).is_dir():
        raise PermanentError(f"cwd is not a directory: {spec.cwd}")
    return spec.cwd
