"""What is told of the requests of one worker: metrics, access log, traces."""

import asyncio
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.accesslog import Access, AccessLog
from gateway.meters import Meters
from gateway.snapshots import Snapshots
from gateway.tracing import create_tracer

if TYPE_CHECKING:
    from gateway.attempt import Attempt
    from gateway.exchange import Exchange
    from gateway.member import Member


class Accounts:
    """Counting is part of the request path; writing is done by `tick`, a few times a second."""

    def __init__(self, home: Path, has_log: bool) -> None:
        self.meters = Meters()
        # The parent is shared with the other workers, and with nobody else.
        self.snapshots = Snapshots(home / "run" / "gateway" / "metrics", self.meters, gateway=os.getppid())
        self.log = AccessLog(home / "logs" / "access.jsonl", self.meters) if has_log else None
        self.tracer = create_tracer(os.environ)
        self._has_records = self.log is not None or self.tracer is not None

    def count(self, exchange: "Exchange", attempt: "Attempt | None", now: float) -> None:
        """Counts an exchange that is over. `attempt` is the one that answered, if any did."""
        meter, status = exchange.meter, exchange.status
        meter.replies[status] = meter.replies.get(status, 0) + 1
        meter.bytes_in += exchange.asked.size
        if exchange.started:
            meter.duration.observe(now - exchange.started)
        if exchange.queued_s:
            meter.queue_wait.observe(exchange.queued_s)
        if exchange.held_s:
            meter.hold_wait.observe(exchange.held_s)
        if attempt is not None and attempt.is_passed_on:
            meter.bytes_out += attempt.bytes_out
            meter.first_byte.observe(attempt.first_at - exchange.started)
            meter.prompt_tokens += exchange.prompt_tokens
            meter.completion_tokens += exchange.completion_tokens
            backend = attempt.member.meter
            backend.replies[status] = backend.replies.get(status, 0) + 1
            backend.first_byte.observe(attempt.first_at - attempt.sent_at)
        if self._has_records:
            self._record(exchange, attempt, now)

    def tick(self, members: Iterable["Member"], now: float) -> None:
        """Writes what has come together. `now` is monotonic."""
        for member in members:
            member.meter.in_flight = member.meter.ejected = 0
        for member in members:
            # Two launches of a replica, during a rollout, count together.
            member.meter.in_flight += member.in_flight
            member.meter.ejected |= member.is_out
        if self.log is not None:
            self.log.flush()
        if self.tracer is not None:
            self.tracer.flush()
        self.snapshots.write(now)

    async def close(self, now: float) -> None:
        """Writes the rest."""
        self.snapshots.write(now, at_once=True)
        if self.log is not None:
            self.log.close()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)

    def _record(self, exchange: "Exchange", attempt: "Attempt | None", now: float) -> None:
        started = exchange.started or now
        passed_on = attempt if attempt is not None and attempt.is_passed_on else None
        ms = (now - started) * 1000
        asked, client = exchange.asked, exchange.client.client
        record = Access(
            time.time() - ms / 1000,
            asked.id,
            "POST",
            asked.path.decode(),
            asked.model,
            exchange.status,
            "engine" if passed_on else "sage",
            attempt.member.name if attempt is not None else "",
            exchange.key.name if exchange.key is not None else "",
            client[0] if client else "",
            ms,
            (passed_on.first_at - started) * 1000 if passed_on else None,
            exchange.queued_s * 1000,
            exchange.held_s * 1000,
            exchange.retries,
            asked.size,
            passed_on.bytes_out if passed_on else 0,
            exchange.prompt_tokens,
            exchange.completion_tokens,
            passed_on.is_stream if passed_on else False,
            exchange.code,
        )
        if self.log is not None:
            self.log.add(record)
        if self.tracer is not None:
            self.tracer.add(record, asked.trace, asked.seen.get(b"traceparent", b""))
