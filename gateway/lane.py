"""The data plane of one worker: what all requests to engines share."""

import asyncio
import logging
import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from gateway import heads
from gateway.accounts import Accounts
from gateway.demand import DemandTold
from gateway.errors import RequestError, too_large, unknown_model
from gateway.fleet import Fleet
from gateway.keys import Keys, open_names, refusal
from gateway.policyfile import PolicyFile
from gateway.record import WorkerRecord
from gateway.sessions.service import Sessions
from gateway.settings import POLICY_FILE, Settings
from gateway.source import TableSource
from gateway.timeouts import Timeouts
from gateway.waiting import Waiting

if TYPE_CHECKING:
    from gateway.attempt import Attempt
    from gateway.exchange import Exchange
    from gateway.protocol import GatewayProtocol

logger = logging.getLogger("gateway")

# Places are given away at once; this is only how often the table and the time are looked at.
TICK_S = 0.1
# While a request waits for an engine to be loaded: its time is told in tenths of a second, too.
TICK_HELD_S = 0.02
# Longer than clients keep idle connections, so that none is closed under a request.
CLIENT_KEEP_ALIVE_S = 75.0
# How often those are looked for that are idle for longer.
CLOSE_EVERY_S = 5.0


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
        self._policy_file = PolicyFile(settings.home / POLICY_FILE)
        self.waiting = Waiting(self)
        self.demand = DemandTold(settings.home, self.fleet, self.waiting)
        self.sessions = Sessions(settings.sessions, settings.home)
        self._timeouts = Timeouts(self)
        self._cors = frozenset(origin.encode() for origin in settings.cors_origins)
        # All of the server's, set by the first of them.
        self.connections: Collection[GatewayProtocol] = ()
        self._next_close = 0.0

    def open(self) -> None:
        """Serves by the table as it is now. The record comes first: whoever drains sees a worker that has
        not loaded its table yet."""
        self.record.write("", {})
        self.accounts.snapshots.start()
        self.demand.start()
        self.refresh()

    async def close(self) -> None:
        """Nothing is served any more."""
        await self.sessions.close()
        await self.accounts.close(self.time())
        self.demand.tick(self.time(), at_once=True)
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
            await asyncio.sleep(TICK_HELD_S if self.demand.is_waited_for else TICK_S)
            self.refresh()
            self.demand.tick(self.time())
            self.waiting.sweep()
            self._timeouts.sweep()
            self._close_idle()
            self.accounts.tick(self.fleet.members.values(), self.time())

    def _close_idle(self) -> None:
        now = self.time()
        if now >= self._next_close:
            self._next_close = now + CLOSE_EVERY_S
            for connection in list(self.connections):
                connection.close_if_idle(now - CLIENT_KEEP_ALIVE_S)

    def tell_leaving(self) -> None:
        """Writes down what is in flight where no new requests go, for whoever drains there."""
        self.record.write(self.source.digest, self.fleet.leaving())

    def set_queue_policy(self, policy: str) -> None:
        """All workers of this gateway serve all lines by this policy from now on; "" is what the table says.

        Raises OSError.
        """
        self._policy_file.write(policy)
        self.refresh()

    def cors_headers(self, origin: bytes) -> heads.Headers:
        """Reply headers for a page of this origin; none if it may not read replies."""
        if b"*" in self._cors:
            allowed = b"*"
        elif origin in self._cors:
            allowed = origin
        else:
            return []
        exposed = b"x-request-id, x-sage-src, retry-after"
        return [
            (b"access-control-allow-origin", allowed),
            (b"access-control-expose-headers", exposed),
            (b"vary", b"origin"),
        ]

    def look_at_head(self, exchange: "Exchange") -> RequestError | None:
        """Why a request is refused before its body is read, or None. Notes whose it is."""
        seen = exchange.asked.seen
        if self.keys:
            key = exchange.client.key_of(seen.get(b"authorization", b""), seen.get(b"x-api-key", b""))
            if key is None:
                return refusal(self.keys, exchange.asked.path.decode(), None)
            exchange.key = key
        coding = seen.get(b"transfer-encoding")
        if coding and coding.lower() != b"chunked":
            message = "The transfer-encoding of the request is not taken: only chunked is."
            return RequestError(400, message, "unsupported_transfer_encoding")
        announced = seen.get(b"content-length")
        return too_large(self.body_limit) if announced and int(announced) > self.body_limit else None

    def unknown(self, exchange: "Exchange") -> RequestError:
        """The refusal of a model name that is not served. It tells those that the key may use."""
        return unknown_model(exchange.asked.model, open_names(self.fleet.plans, exchange.key))

    def account(self, exchange: "Exchange", attempt: "Attempt | None") -> None:
        """Counts an exchange that is over."""
        now = self.time()
        self.accounts.count(exchange, attempt, now)
        if exchange.key is not None and exchange.is_admitted:
            used = exchange.prompt_tokens + exchange.completion_tokens
            if not used and attempt is not None and attempt.is_passed_on:
                used = exchange.reserved
            exchange.key.finish(exchange.reserved, used, now)
