"""Builds the environment of one version of an engine program with uv: whole under its name, or not at all."""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sage_reconcile.errors import PermanentError
from sage_reconcile.home import Home
from sage_reconcile.model import codec
from sage_reconcile.model.desired import Program
from sage_reconcile.observe.programs import RECORD, is_whole
from sage_reconcile.runtimes.ownwheel import write_wheel

UV_HINT = "install it (`python3 -m pip install uv`, or see https://docs.astral.sh/uv/) and put it on the PATH"

PACKAGES = {"transformers": "transformers[serving]"}
"""What is installed where it is not just the package of the runtime's name."""

_TICK = 0.2
_BUILDING = ".building-"
_REMOVING = ".removing-"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One version of a program: `runtime` is its kind."""

    runtime: str
    program: Program

    @property
    def folder(self) -> str:
        return self.program.folder(self.runtime)

    def __str__(self) -> str:
        return f"{self.runtime} {self.program.version}"


def build(home: Home, wanted: Wanted, say: Callable[[str], None]) -> bool:
    """Builds the environment; False where it was there already. uv's own output goes to stderr.

    Raises PermanentError where uv is missing or fails. What is interrupted leaves nothing that is taken for
    whole; a second build of anything waits for the first.
    """
    target = home.runtimes / wanted.folder
    if is_whole(target):
        return False
    uv = shutil.which("uv")
    if uv is None:
        raise PermanentError(f"there is no uv, which builds environments: {UV_HINT}")
    with _turn(home, say) as lock:
        if is_whole(target):
            return False
        if target.exists():
            raise PermanentError(f"{target} is in the way, and not an environment of sage's: move it away")
        place = home.runtimes / f"{_BUILDING}{wanted.folder}"
        try:
            _fill(_Uv(uv, lock, home), wanted, place)
            os.rename(place, target)
        except OSError as error:
            raise PermanentError(f"{error.filename or target}: {error.strerror}") from error
        finally:
            shutil.rmtree(place, ignore_errors=True)
    return True


def remove(home: Home, folder: str, say: Callable[[str], None]) -> None:
    """Removes an environment: first its name, so that a half removed one is never taken for whole."""
    with _turn(home, say):
        gone = home.runtimes / f"{_REMOVING}{folder}"
        try:
            os.rename(home.runtimes / folder, gone)
        except OSError as error:
            raise PermanentError(f"{home.runtimes / folder} cannot be removed: {error.strerror}") from error
        shutil.rmtree(gone, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Uv:
    """The uv program. It holds the lock as long as it lives: nobody builds beside a uv that was left."""

    path: str
    lock: int
    home: Home

    def run(self, *words: str) -> None:
        """Raises PermanentError when it fails; it has said why."""
        status = asyncio.run(self._run(words))
        if status != 0:
            raise PermanentError(
                f"uv {words[0]} failed (exit code {status}), as it says above; nothing was kept"
            )

    async def _run(self, words: Sequence[str]) -> int:
        process = await asyncio.create_subprocess_exec(
            self.path,
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=2,  # the command's own output is what was asked for
            cwd=self.home.runtimes,  # no project around the shell's folder is meant
            pass_fds=(self.lock,),
        )
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()


def _fill(uv: _Uv, wanted: Wanted, place: Path) -> None:
    program = wanted.program
    python = ["--python", program.python] if program.python else []
    uv.run("venv", "--quiet", "--no-project", "--relocatable", *python, str(place))
    requirements = [f"{PACKAGES.get(wanted.runtime, wanted.runtime)}=={program.version}", *program.packages]
    if wanted.runtime == "sentence-transformers":
        requirements.append(str(write_wheel(place)))
    uv.run("pip", "install", "--python", str(place / "bin" / "python"), *_index(program.index), *requirements)
    record = {
        "version": 1,
        "runtime": wanted.runtime,
        "program": codec.to_plain(program),
        "built_at": round(time.time()),
    }
    (place / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _index(index: str) -> list[str]:
    if not index:
        return []
    if index.startswith("/"):
        return ["--no-index", "--find-links", index]
    return ["--default-index", index]


@contextlib.contextmanager
def _turn(home: Home, say: Callable[[str], None]) -> Iterator[int]:
    """One builder at a time: the lock's handle. What an earlier one left behind is removed."""
    home.claim()
    try:
        home.ensure().runtimes.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(home.runtimes / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise PermanentError(f"cannot use {home.runtimes}: {error.strerror}") from error
    try:
        told = False
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if not told:
                say("waiting: another sage is building an environment")
                told = True
            time.sleep(_TICK)
        for left in (*home.runtimes.glob(f"{_BUILDING}*"), *home.runtimes.glob(f"{_REMOVING}*")):
            shutil.rmtree(left, ignore_errors=True)
        yield handle
    finally:
        os.close(handle)
