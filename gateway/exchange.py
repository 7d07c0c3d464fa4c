"""One request of a client to an engine, and its reply: routed, sent, sent again, accounted for."""

import logging
from typing import TYPE_CHECKING

from gateway import heads
from gateway.asked import Asked
from gateway.attempt import RETRIED, Attempt
from gateway.errors import RequestError, bad_reply, engine_lost, engine_timeout, internal_error, too_large
from gateway.line import Ask
from gateway.member import Member
from gateway.upstream import NOT_HTTP, STALE

if TYPE_CHECKING:
    from gateway.fleet import Plan
    from gateway.keys import Key
    from gateway.protocol import GatewayProtocol
    from gateway.sessions.turn import Turn

logger = logging.getLogger("gateway")

# A request that breaks engines must not go through all of them, one after another.
MAX_SENDS = 3
# A kept connection that breaks within this time had been closed by the engine before the request came.
STALE_S = 1.0
# The status of a connection that went on as something else.
SWITCHED = 101
# What is counted where the client left before it had an answer; nobody reads this status.
CLIENT_LEFT = 499


class _Nothing:
    def set(self) -> None:
        """Nobody waits for it."""


class Exchange:
    """A request and its reply. Times are in monotonic seconds, 0.0 for what has not happened.

    To the server's protocol it stands where the cycle of an ASGI request stands, with the same attributes:
    `keep_alive`, `response_complete`, `disconnected`, `message_event`. Most of what it may become to know is
    set here and not in the constructor: few requests wait, or are sent twice.
    """

    keep_alive = knows_chunks = True
    response_complete = disconnected = False
    message_event = _Nothing()
    is_complete = is_next = is_admitted = was_moved = False
    key: "Key | None" = None
    plan: "Plan | None" = None
    attempt: Attempt | None = None
    ask: Ask | None = None
    turn: "Turn | None" = None
    code = reason = ""
    status = sends = retries = reserved = 0
    prompt_tokens = completion_tokens = 0
    started = queued_s = held_s = 0.0
    waits_since = hold_until = retry_at = 0.0
    avoid: tuple[Member, ...] = ()

    def __init__(self, client: "GatewayProtocol", asked: Asked) -> None:
        self.client = client
        self.asked = asked
        self.lane = lane = client.lane
        self.meter = lane.nobodys_meter

    @property
    def has_begun_to_answer(self) -> bool:
        """Whether the client has the head of a reply, and with it whether the connection is kept."""
        return self.attempt is not None and self.attempt.is_passed_on

    # Of the client's connection.

    def add_body(self, data: bytes) -> None:
        """Takes a piece of the request's body."""
        asked = self.asked
        asked.size += len(data)
        asked.parts.append(data)
        if asked.size > self.lane.body_limit:
            self.refuse(too_large(self.lane.body_limit))

    def complete(self) -> None:
        """The request is complete."""
        self.is_complete = True
        if self.is_next and not self.response_complete:
            self._begin()

    def take_turn(self) -> None:
        """All earlier requests of the connection are answered. What the head tells is looked at before the
        body is read."""
        self.is_next = True
        if refusal := self.lane.look_at_head(self):
            self.refuse(refusal)
        elif self.is_complete:
            self._begin()
        else:
            self.client.send_continue()

    def client_left(self) -> None:
        """Nobody is there any more for an answer: the engine's work ends, too."""
        if not self.status:
            self.meter.client_left += 1
            self._drop_work()
            self._account(CLIENT_LEFT)
            if self.turn is not None:
                self.turn.client_left()

    # Routing.

    def dispatch(self, is_called: bool = False) -> None:
        """Sends the request to a backend, or lets it wait. `is_called`: it was the first of its line."""
        now = self.lane.time()
        plan = self.lane.fleet.plans.get(self.asked.model)
        if plan is None:
            self.refuse(self.lane.unknown(self))
            return
        self.plan = plan
        # Whoever comes new goes behind those who wait.
        may_choose = is_called or self.avoid or not len(plan.pool.line)
        key = self.asked.affinity(plan.route.policy) if len(plan.ready) > 1 else b""
        member = plan.choose(key, self.avoid, now) if may_choose else None
        if member is not None:
            self._send_to(member, now)
        elif plan.is_busy(self.avoid):
            self.lane.waiting.queue(self, now)
        else:
            self.lane.waiting.hold(self, now)

    def goes_elsewhere(self, attempt: Attempt) -> bool:
        """Whether another backend is to be asked after this attempt."""
        plan, avoid = self.plan, (*self.avoid, attempt.member)
        return self.sends < MAX_SENDS and plan is not None and plan.has_other(avoid, self.lane.time())

    def refuse(self, error: RequestError) -> None:
        """Ends the request with an answer of sage's own."""
        if self.response_complete:
            return
        self._drop_work()
        body = error.body()
        if not self.is_complete and self.client.is_continue_awaited:
            self.keep_alive = False  # nobody can tell whether its body follows
        head = heads.of_error(error.status, error.headers.items(), body, self.added_lines(b"sage"))
        if not self.client.transport.is_closing():
            self.client.transport.write(head + body)
        self.code = error.code
        self.meter.refused[error.code] = self.meter.refused.get(error.code, 0) + 1
        self._finish(error.status)

    def added_lines(self, source: bytes) -> bytes:
        """What sage adds to the head of a reply. `source` says who answered: engine or sage."""
        added = b"x-request-id: %b\r\nx-sage-src: %b\r\n" % (self.asked.request_id, source)
        if origin := self.asked.seen.get(b"origin"):
            added += b"".join([b"%b: %b\r\n" % pair for pair in self.lane.cors_headers(origin)])
        return added if self.keep_alive else added + b"connection: close\r\n"

    # Of the attempt.

    def on_unreached(self, attempt: Attempt, reason: str) -> None:
        """The backend did not take the connection."""
        self._release(attempt)
        attempt.member.failed("connect", self.lane.time())
        self._again(attempt.member, reason)

    def on_unable(self, attempt: Attempt, reason: str) -> None:
        """The backend says that it cannot answer."""
        self._release(attempt)
        attempt.member.failed("bad_status", self.lane.time())
        self._again(attempt.member, reason)

    def on_lost(self, attempt: Attempt, reason: str, kind: str) -> None:
        """There was no reply, and the client got nothing yet."""
        now = self.lane.time()
        self._release(attempt)
        if kind == STALE and now - attempt.sent_at < STALE_S:
            # The others have been kept as long: ask over a new one.
            attempt.member.close_idle()
            self.sends -= 1
            self.dispatch(is_called=True)
            return
        attempt.member.failed(kind, now)
        if kind == NOT_HTTP and not self.goes_elsewhere(attempt):
            self.refuse(bad_reply(self.asked.model, reason))
            return
        self._again(attempt.member, reason)

    def on_silent(self, attempt: Attempt, kind: str, reason: str) -> None:
        """The backend was given up before the client got anything; `kind` is a word for the metrics."""
        attempt.leave()
        self._release(attempt)
        attempt.member.failed(kind, self.lane.time())
        self.was_moved = True
        if self.goes_elsewhere(attempt):
            self._again(attempt.member, reason)
        else:
            self.refuse(engine_timeout(self.asked.model, reason))

    def on_broken(self, attempt: Attempt, reason: str) -> None:
        """The connection broke in the middle of the reply."""
        logger.warning("request %s: %s was lost midway: %s", self.asked.id, attempt.member.name, reason)
        attempt.member.failed("reset", self.lane.time())
        self.meter.broken += 1
        self.code = "engine_lost"
        self._finish(attempt.head.status if attempt.head else 502)

    def on_tunnel_closed(self, attempt: Attempt) -> None:
        """Both sides have said what they had to say."""
        if not self.response_complete:
            attempt.member.succeeded()
            self._finish(SWITCHED)

    def on_answered(self, attempt: Attempt) -> None:
        """The reply is complete."""
        assert attempt.head is not None
        status = attempt.head.status
        if status in RETRIED:
            attempt.member.failed("bad_status", attempt.last_at)
        else:
            attempt.member.succeeded()
        self.prompt_tokens, self.completion_tokens = attempt.tokens()
        self._finish(status)

    def _begin(self) -> None:
        try:
            self._enter()
        except RequestError as error:
            self.refuse(error)
        except Exception:
            # A defect of sage: the parser, whose callback this is, would take it for the client's.
            logger.exception("request %s failed by a defect of sage", self.asked.id)
            self.refuse(internal_error(self.asked.id))

    def _enter(self) -> None:
        lane, asked = self.lane, self.asked
        self.started = now = lane.time()
        asked.read(lane.body_limit)
        plan = lane.fleet.plans.get(asked.model)
        if plan is None:
            raise lane.unknown(self)
        self.meter = plan.meter
        if self.key is not None:
            tokens = asked.size // 4 + asked.max_tokens
            if refusal := self.key.admit(asked.model, tokens, now):
                raise refusal
            self.reserved, self.is_admitted = tokens, True
        if lane.accounts.tracer is not None:
            asked.trace = lane.accounts.tracer.begin(asked.seen.get(b"traceparent", b""))
        if asked.session is None:
            self.dispatch()
        else:
            lane.sessions.take(self)

    def _send_to(self, member: Member, now: float) -> None:
        member.in_flight += 1
        self.meter.in_flight += 1
        self.attempt = attempt = Attempt(self, member, now)
        member.attempts.add(attempt)
        attempt.start(now)

    def _again(self, member: Member, reason: str) -> None:
        self.reason = f"{member.name}: {reason}"
        logger.warning("%s for request %s", self.reason, self.asked.id)
        if self.sends >= MAX_SENDS:
            self.refuse(engine_lost(self.asked.model, self.sends, self.reason))
            return
        self.avoid = (*self.avoid, member)
        self.retries += 1
        self.meter.retries += 1
        self.dispatch()

    def _drop_work(self) -> None:
        if self.attempt is not None:
            self.attempt.leave()
        self.lane.waiting.forget(self)

    def _finish(self, status: int) -> None:
        self._account(status)
        self.client.exchange_is_over(self)

    def _account(self, status: int) -> None:
        self.status = status
        self.response_complete = True
        attempt = self.attempt
        self.lane.account(self, attempt)
        if attempt is None or not attempt.is_passed_on:
            self.asked.forget_body()
        if attempt is not None:
            self._release(attempt)

    def _release(self, attempt: Attempt) -> None:
        """Gives the place at the backend to the next one that waits for it."""
        self.attempt = None
        member = attempt.member
        member.in_flight -= 1
        self.meter.in_flight -= 1
        member.attempts.discard(attempt)
        if not member.is_accepting:
            self.lane.tell_leaving()
        for pool in member.pools:
            if len(pool.line):
                self.lane.waiting.serve(pool)
