"""A few faults in every run of the tests; `make faults` brings two hundred."""

from pathlib import Path

from tests.faults.kinds import KINDS
from tests.faults.load import Load
from tests.faults.run import bring
from tests.faults.stack import Fleet

FEW = (
    "kill -9 of the engine",
    "kill -9 of a worker process",
    "kill -9 of supervisor and engine",
    "kill -9 of watcher and supervisor",
    "kill -9 of a gateway worker",
    "clock step, then kill -9",
)


def test_a_few_faults_are_mended_and_told(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "work", 2)
    try:
        fleet.begin()
        load = Load(fleet.port, [fleet.entries[name]["model"] for name in fleet.names])
        try:
            possible = [kind for kind in FEW if KINDS[kind].is_possible(fleet)]
            outcomes = [bring(fleet, load, kind, "e1") for kind in possible]
        finally:
            load.end()
    finally:
        fleet.tidy()
    assert [one.fault for one in outcomes] == [""] * len(possible)
