"""A wall clock that can be set for one stack: the machine's own clock is left alone."""

import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
STEPS = (3600, -3600, 86_400, 0, -120, 120)


class Clock:
    """`python` is an interpreter whose processes, and theirs, live by this clock; the monotonic one is real.

    Where there is no C compiler it is the tests' own, and the clock cannot be set.
    """

    def __init__(self, folder: Path) -> None:
        self.python = sys.executable
        self._file = folder / "clock"
        self._steps = 0
        compiler = shutil.which("cc")
        self.is_settable = compiler is not None
        if compiler is not None:
            library = folder / "clock.so"
            subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
            self._file.write_text("+0\n")
            self.python = str(self._interpreter(folder / "python", library))

    def step(self) -> None:
        """Sets it, by an hour, a day or two minutes, forward and back."""
        part = self._file.with_suffix(".part")
        part.write_text(f"{STEPS[self._steps % len(STEPS)]:+d}\n")
        part.replace(self._file)
        self._steps += 1

    def _interpreter(self, folder: Path, library: Path) -> Path:
        """A script that supervisors are started by, too: they keep nothing of their caller's environment."""
        environ = {"LD_PRELOAD": library, "TESTS_CLOCK": self._file}
        words = [f"{name}={shlex.quote(str(value))}" for name, value in environ.items()]
        packages = shlex.quote(sysconfig.get_path("purelib"))
        script = folder / "bin" / "python"
        script.parent.mkdir(parents=True)
        script.write_text(
            f'#!/bin/bash\nexport {" ".join(words)} PYTHONPATH="$PYTHONPATH:"{packages}\n'
            f'exec -a "$0" {shlex.quote(sys.executable)} "$@"\n'
        )
        script.chmod(0o755)
        (folder / "pyvenv.cfg").write_text((Path(sys.prefix) / "pyvenv.cfg").read_text())
        return script
