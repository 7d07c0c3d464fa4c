"""What all tests share: a SAGE_HOME of their own, and no process that outlives its test."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import command_line, end_all, marked
from tests.waiting import wait_until

# A test run that was started in the background may ignore Ctrl-C, and so would every command that tests
# start: an ignored signal stays ignored through exec, a handled one does not.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_process_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a process whose marks name a SAGE_HOME under its tmp_path; then ends it.

    Set up before and torn down after every other fixture that uses tmp_path.
    """
    if "tmp_path" not in request.fixturenames:
        yield
        return
    folder: Path = request.getfixturevalue("tmp_path")
    yield
    try:
        wait_until(lambda: not marked(f"{folder}/"), "no process of the test is left", 10.0)
    except pytest.fail.Exception:
        left = marked(f"{folder}/")
        lines = [f"{process.pid}: {command_line(process.pid)}" for process in left]
        end_all([process.pid for process in left])
        pytest.fail("the test left processes behind:\n" + "\n".join(lines))


@pytest.fixture
def sage_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SAGE_HOME of the test's own, set in the environment; it does not exist yet."""
    home = tmp_path / "sage-home"
    monkeypatch.setenv("SAGE_HOME", str(home))
    return home
