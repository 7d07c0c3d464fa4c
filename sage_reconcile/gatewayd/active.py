"""What the gateway's workers counted last, and the policy that they all go by."""

from collections import Counter

import msgspec

from gateway.identity import is_alive
from gateway.line import POLICIES
from gateway.policyfile import PolicyFile
from gateway.settings import POLICY_FILE
from gateway.snapshots import LAYOUT, Snapshot
from sage_reconcile.errors import PermanentError
from sage_reconcile.gatewayd.options import folder
from sage_reconcile.home import Home

OF_STACK = "stack"


def active_requests(home: Home) -> dict[str, int]:
    """By replica (`stack/engine#0`), at most a second old; none where no gateway of this home runs."""
    total: Counter[str] = Counter()
    for path in (folder(home) / "metrics").glob("*/*.json"):
        if not is_alive(path.stem):
            continue
        try:
            snapshot = msgspec.json.decode(path.read_bytes(), type=Snapshot)
        except (OSError, ValueError):  # it has just ended, or is of a sage that was upgraded meanwhile
            continue
        if snapshot.layout == LAYOUT:
            for place, meter in snapshot.numbers.backends.items():
                total[place] += meter.in_flight
    return dict(total)


def set_queue_policy(home: Home, policy: str) -> None:
    """Sets who of the waiting is next, for all models and workers of this home's gateway, until the gateway
    is stopped; "stack" is what the stack file says. Raises PermanentError for a policy that there is not, and
    where it cannot be written.
    """
    known = [*sorted(POLICIES), OF_STACK]
    if policy not in known:
        raise PermanentError(f"there is no policy {policy}; there are: {', '.join(known)}")
    try:
        PolicyFile(home.root / POLICY_FILE).write("" if policy == OF_STACK else policy)
    except OSError as error:
        raise PermanentError(f"the policy cannot be set: {error}") from error
