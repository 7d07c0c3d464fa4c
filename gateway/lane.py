"""The data plane of one worker: what all requests to engines share."""

import asyncio
import logging
import os
import signal
import time
from typing import TYPE_CHECKING

from gateway.accounts import Accounts
from gateway.errors import RequestError, too_large
from gateway.fleet import Fleet
from gateway.keys import Keys, refusal
from gateway.policyfile import PolicyFile
from gateway.record import WorkerRecord
from gateway.settings import Settings
from gateway.source import TableSource
from gateway.timeouts import Timeouts
from gateway.waiting import Waiting

if TYPE_CHECKING:
    from gateway.attempt import Attempt
    from gateway.exchange import Exchange

logger = logging.getLogger("gateway")

# Places are given away at once; this is only how often the table and the time are looked at.
TICK_S = 0.1


class Lane:
    """Everything runs on the event loop without an await in between, so that no request can start on a
    backend after a table without it was loaded."""

    time = staticmethod(time.monotonic)

    def __init__(self, settings: Settings, keys: Keys) -> None:
        self.body_limit = settings.body_limit
        self.keys = keys
        self.source = TableSource(settings.home / "routing" / "routing.json")
        self.record = WorkerRecord(settings.home / "run" / "gateway")
        self.accounts = Accounts(settings.home, settings.access_log)
        self.meters = self.accounts.meters
        self.nobodys_meter = self.meters.route("")
        self.fleet = Fleet(self.meters, settings.workers)
        self._policy_file = PolicyFile(settings.home / "run" / "gateway" / "queue_policy")
        self.waiting = Waiting(self)
        self._timeouts = Timeouts(self)
        self._cors = frozenset(origin.encode() for origin in settings.cors_origins)
        self._parent = os.getppid()

    def open(self) -> None:
        """Serves by the table as it is now. The record comes first: whoever drains sees a worker that has
        not loaded its table yet."""
        self.record.write("", {})
        self.accounts.snapshots.start()
        self.refresh()

    async def close(self) -> None:
        """Nothing is served any more."""
        await self.accounts.close(self.time())
        self.record.remove()

    def refresh(self) -> None:
        """Serves by the routing file as it is now, if it is new and good."""
        before = self.source.fault
        if self._policy_file.refresh():
            self.fleet.set_queue_policy(self._policy_file.policy)
        if self.source.refresh():
            table = self.source.table
            self.meters.follow(table, self.time())
            waited = self.fleet.load(table)
            logger.info(
                "serving by table %s: %d routes, %d backends",
                self.source.digest,
                len(table.routes),
                len(table.backends),
            )
            self.waiting.table_changed(waited)
        if self.source.fault and self.source.fault != before:
            logger.warning("%s", self.source.fault)
        self.tell_leaving()

    async def follow(self) -> None:
        """Keeps everything going that time alone moves, until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            self.refresh()
            self.waiting.sweep()
            self._timeouts.sweep()
            self.accounts.tick(self.fleet.members.values(), self.time())
            if os.getppid() != self._parent:
                # Nobody would end this worker any more.
                self._parent = os.getppid()
                os.kill(os.getpid(), signal.SIGTERM)

    def tell_leaving(self) -> None:
        """Writes down what is in flight where no new requests go, for whoever drains there."""
        self.record.write(self.source.digest, self.fleet.leaving())

    def set_queue_policy(self, policy: str) -> None:
        """All workers of this gateway serve all lines by this policy from now on; "" is what the table says.

        Raises OSError.
        """
        self._policy_file.write(policy)
        self.refresh()

    def cors_lines(self, origin: bytes) -> bytes:
        """Reply header lines for a page of this origin, or b"" if it may not read replies."""
        if b"*" in self._cors:
            return b"access-control-allow-origin: *\r\n"
        if origin in self._cors:
            return b"access-control-allow-origin: %b\r\nvary: origin\r\n" % origin
        return b""

    def look_at_head(self, exchange: "Exchange") -> RequestError | None:
        """Why a request is refused before its body is read, or None. Notes whose it is."""
        seen = exchange.asked.seen
        if self.keys:
            key = exchange.client.key_of(seen.get(b"authorization", b""), seen.get(b"x-api-key", b""))
            if key is None:
                return refusal(self.keys, exchange.asked.path.decode(), None)
            exchange.key = key
        announced = seen.get(b"content-length")
        return too_large(self.body_limit) if announced and int(announced) > self.body_limit else None

    def account(self, exchange: "Exchange", attempt: "Attempt | None") -> None:
        """Counts an exchange that is over."""
        now = self.time()
        self.accounts.count(exchange, attempt, now)
        if exchange.key is not None and exchange.is_admitted:
            used = exchange.prompt_tokens + exchange.completion_tokens
            if not used and attempt is not None and attempt.is_passed_on:
                used = exchange.reserved
            exchange.key.finish(exchange.reserved, used, now)
