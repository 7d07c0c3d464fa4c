"""What hangs: replies that do not begin or stop in their middle, and backends that say nothing at all."""

import asyncio
import logging
from typing import TYPE_CHECKING

from gateway.heads import ReplyHead
from gateway.upstream import KEEP_ALIVE_S

if TYPE_CHECKING:
    from gateway.attempt import Attempt
    from gateway.lane import Lane
    from gateway.member import Member
    from gateway.upstream import EngineConnection

logger = logging.getLogger("gateway")

# How often replies are looked at.
LOOK_S = 1.0
# A backend from which nothing came for so long, though it has requests, is asked whether it is there.
SILENT_S = 15.0
# How long it may take to say that, whatever it says; and how often it is asked.
PROBE_S = 5.0


class Timeouts:
    """Ends what hangs, and asks elsewhere where nothing of a reply was passed on yet."""

    def __init__(self, lane: "Lane") -> None:
        self._lane = lane
        self._next_look = 0.0
        self._probing: dict[str, asyncio.Task[None]] = {}

    def sweep(self) -> None:
        """Looks at all requests in flight, once a second."""
        now = self._lane.time()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_S
        for member in list(self._lane.fleet.members.values()):
            for attempt in list(member.attempts):
                self._check(attempt, now)
            self._listen(member, now)
            member.leave_idle(now - KEEP_ALIVE_S)

    def _check(self, attempt: "Attempt", now: float) -> None:
        plan = attempt.exchange.plan
        if plan is None or attempt.connection is None:
            return
        route = plan.route
        if attempt.connection.is_paused:
            # It is the client who takes its time.
            attempt.last_at = now
        elif attempt.is_passed_on:
            if 0 < route.idle_timeout < now - attempt.last_at:
                attempt.give_up(f"nothing came for {route.idle_timeout:g} s")
        elif 0 < route.first_byte_timeout < now - attempt.sent_at:
            reason = f"its reply did not begin within {route.first_byte_timeout:g} s"
            attempt.exchange.on_silent(attempt, "timeout", reason)

    def _listen(self, member: "Member", now: float) -> None:
        """Has a backend asked, if it is silent."""
        if member.id in self._probing:
            return
        oldest = min((attempt.sent_at for attempt in member.attempts), default=now)
        if member.is_silent or now - max(member.heard_at, oldest) > SILENT_S:
            task = asyncio.get_running_loop().create_task(self._probe(member))
            self._probing[member.id] = task
            task.add_done_callback(lambda _: self._probing.pop(member.id))

    async def _probe(self, member: "Member") -> None:
        is_there = await _answers(member) or await _answers(member)
        now = self._lane.time()
        if is_there:
            member.heard_at = now
            if member.is_silent:
                logger.info("%s answers again", member.id)
                member.succeeded()
            return
        if not member.is_silent:
            logger.warning("%s does not answer at all", member.id)
            member.silence()
        for attempt in list(member.attempts):
            exchange = attempt.exchange
            # Once only: what is slow everywhere must come to its end somewhere.
            if not attempt.is_passed_on and not exchange.was_moved and exchange.goes_elsewhere(attempt):
                exchange.on_silent(attempt, "silent", "it does not answer at all")
        await asyncio.sleep(PROBE_S)


async def _answers(member: "Member") -> bool:
    """Whether a backend answers GET /health within PROBE_S, whatever it says."""
    probe = _Probe()
    connection: EngineConnection | None = None
    try:
        async with asyncio.timeout(PROBE_S):
            connection = await member.connect()
            head = b"GET %b/health%bconnection: close\r\n\r\n" % (member.prefix, member.head_rest)
            connection.send(probe, head, b"")
            return await probe.answered
    except (OSError, TimeoutError):
        return False
    finally:
        if connection is not None:
            connection.leave()


class _Probe:
    """Receives the answer to a probe: its head is enough."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def on_head(self, head: ReplyHead) -> bool:
        self.answered.set_result(True)
        return False

    def on_piece(self, data: bytes) -> None:
        raise AssertionError("the connection is closed after the head")

    def on_end(self) -> None:
        raise AssertionError("the connection is closed after the head")

    def on_lost(self, reason: str, kind: str) -> None:
        if not self.answered.done():
            self.answered.set_result(False)

    def on_switched(self, connection: "EngineConnection", head: bytes, rest: bytes) -> None:
        self.answered.set_result(True)
