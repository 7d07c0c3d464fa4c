"""The routing table, as far as the executor may change it."""

from typing import Protocol

from sage_reconcile.model.observed import ObservedLaunch


class Routes(Protocol):
    """What the executor may do to the routing table."""

    async def publish(self) -> None:
        """Looks again and publishes what is ready now, less what was withdrawn."""
        ...

    async def withdraw(self, launch: ObservedLaunch) -> None:
        """Publishes a table in which no new request goes to `launch`."""
        ...

    async def restore(self, launch: ObservedLaunch) -> None:
        """Takes a withdrawal back."""
        ...

    async def admit(self, launch: ObservedLaunch) -> None:
        """Publishes a table in which requests go to `launch`, which was woken and has answered."""
        ...
