"""What the threads of a look decode is known before they begin."""

import subprocess
import sys

LEARNT = """
import sys
from sage_reconcile.model.observed import Mark
from sage_reconcile.model.routing import RoutingTable
import sage_reconcile.observe.look
import sage_reconcile.observe.records as records
kinds = (Mark, RoutingTable, records.LaunchRecord, records.ExitRecord)
sys.exit(any("__msgspec_cache__" not in vars(kind) for kind in kinds))
"""


def test_types_are_learnt_before_threads_meet_them() -> None:
    """Once a plan ended by SIGSEGV: two threads of its look had learnt the same type at the same time."""
    assert subprocess.run([sys.executable, "-c", LEARNT]).returncode == 0
