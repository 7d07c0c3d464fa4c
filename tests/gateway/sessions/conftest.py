"""A real PostgreSQL for the tests of this folder: a cluster of its own in a folder of its own."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.world import DEADLINE_S, free_port, wait_for

_WHERE = "/usr/lib/postgresql"


def _programs() -> Path | None:
    """The folder of the newest PostgreSQL that is installed."""
    found = [path.parent for path in Path(_WHERE).glob("*/bin/initdb")]
    named = shutil.which("initdb")
    # What is on the path may be a link to one of them.
    return max(found) if found else Path(named).resolve().parent if named else None


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of an empty database, without a user."""
    programs = _programs()
    if programs is None:
        pytest.skip("needs PostgreSQL's server: apt-get install postgresql")
    # It refuses to run as root.
    user = "postgres" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="sage-postgres-"))
    if user:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    port = free_port()
    data = folder / "data"
    made = subprocess.run(
        [programs / "initdb", "-D", data, "-U", "sage", "-A", "trust", "--no-sync", "-E", "UTF8"],
        user=user,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    options = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-p", str(port), "-k", str(folder)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, *options], user=user, cwd="/", stdout=log, stderr=log
        )
    try:
        ready = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port), "-d", "postgres"]
        wait_for(lambda: subprocess.run(ready, check=False).returncode == 0, "PostgreSQL takes connections")
        yield f"postgresql://127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(DEADLINE_S)
        shutil.rmtree(folder)
