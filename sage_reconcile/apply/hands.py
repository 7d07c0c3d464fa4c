"""Hands: the one door through which anything on a host is changed. Local and in-memory ones implement it."""

from dataclasses import dataclass
from typing import Protocol

from sage_reconcile.errors import ReconcileError
from sage_reconcile.model.actions import Launch
from sage_reconcile.model.adapters import Adapter
from sage_reconcile.model.desired import LiveSpec
from sage_reconcile.model.observed import Mark, ObservedLaunch, Orphan


class LaunchFailed(ReconcileError):
    """An engine did not get ready. `tail` holds its last log lines, `hint` what to do where it is known,
    `cause` and `said` the known cause and the line of the log that shows it."""

    def __init__(
        self, message: str, tail: tuple[str, ...] = (), hint: str = "", cause: str = "", said: str = ""
    ) -> None:
        self.tail = tail
        self.hint = hint
        self.cause = cause
        self.said = said
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Started:
    """A launch that was just made: enough to wait for it, and to end it."""

    mark: Mark
    supervisor_pid: int
    supervisor_started: float
    directory: str


class Hands(Protocol):
    """What can be done to a host. Every method may raise ReconcileError; none leaves half of its work."""

    async def prepare(self, order: Launch) -> None:
        """Raises whatever would keep `order` from being launched and can be known before: a program, folder
        or secret that is not there. Starts nothing."""
        ...

    async def launch(self, order: Launch) -> Started:
        """Starts a supervisor with the engine; returns as soon as the supervisor has taken over."""
        ...

    async def await_ready(self, launch: Started | ObservedLaunch, timeout: float) -> None:
        """Returns once the launch has answered. Raises LaunchFailed when it ended or `timeout` s passed."""
        ...

    async def drain(self, launch: ObservedLaunch, timeout: float) -> bool:
        """Returns once the gateway has no request of the launch in flight, or after `timeout` seconds: False
        if it has some even then."""
        ...

    async def stop(self, launch: Started | ObservedLaunch, drain: float) -> None:
        """Ends the launch: when it returns no process of it is left and its GPU memory is back."""
        ...

    async def reap(self, orphan: Orphan) -> None:
        """Ends the leftover processes, those only that still prove to be the orphan's."""
        ...

    async def update_live(self, launch: ObservedLaunch, live: LiveSpec) -> None:
        """Gives the supervisor new settings; returns when it has taken them."""
        ...

    async def sleep(self, launch: Started | ObservedLaunch) -> None:
        """Lets the engine give its GPU memory back without ending it; TransientError if it does not."""
        ...

    async def wake(self, launch: ObservedLaunch) -> None:
        """Lets the engine take its GPU memory again; when it returns, it has answered a real request."""
        ...

    async def load_adapter(self, launch: Started | ObservedLaunch, adapter: Adapter) -> None:
        """Returns once the engine has the adapter loaded from its path, be it that it had. Raises
        TransientError with the engine's own words where it does not take it."""
        ...

    async def unload_adapter(self, launch: ObservedLaunch, adapter: Adapter) -> None:
        """Returns once the engine has it no more."""
        ...

    def last_line(self, launch: Started | ObservedLaunch) -> str:
        """The newest line of the engine's log, for progress; "" when there is none."""
        ...
