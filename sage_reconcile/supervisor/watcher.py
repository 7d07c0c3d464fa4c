"""Follows the health of one attempt, from its start to its end, by asking the engine at the right times."""

import time
from functools import partial

from sage_reconcile.supervisor import probe
from sage_reconcile.supervisor.order import Canary, Health, Live
from sage_reconcile.supervisor.prober import Prober
from sage_reconcile.supervisor.vitals import Vitals

FIRST_POLL = 0.2
LONGEST_POLL = 2.0
# The first token of a cold model may take long, and so may one of an engine that serves many others.
LONGEST_ANSWER = 60.0
# A question that the end of the startup budget cuts shorter than this says nothing by its timeout.
HASTY = 5.0
NOT_ASKED = "not asked yet"
# A port on which nothing listens says so sooner: a question that waits longer has been heard.
SILENCE = 0.1
# A canary stands in line behind the requests that are being served: so many times the health timeout.
CANARY_FACTOR = 6


class Watcher:
    """`state` is "starting", "ready", "failing", or, finally, "late" (not ready in time), "wrong" (it does
    not answer the canary rightly), "hung" or "robbed" (another process has its port; `stranger` says which).

    `next_at` (monotonic) is when `step` has something to do; a new answer wakes the caller anyway.
    """

    def __init__(self, prober: Prober) -> None:
        now = time.monotonic()
        self.prober = prober
        self.state = "starting"
        self.message = NOT_ASKED
        self.stranger = ""
        self.ready_since: float | None = None
        self.was_ready = False
        self.next_at = now
        self._started = now
        self._asked_at = now
        self._poll = FIRST_POLL
        self._is_hasty = False
        self._vitals = Vitals()
        self._wrongs = 0
        self._is_canary = self._rests = False
        # The canary that is being asked, and the one that was answered last.
        self._asked: Canary | None = None
        self._answered: Canary | None = None

    @property
    def is_over(self) -> bool:
        """Whether the attempt has to end."""
        return self.state in ("late", "wrong", "hung", "robbed")

    def step(self, live: Live) -> None:
        """Takes an answer that has come, and asks again when it is time."""
        now = time.monotonic()
        look = self.prober.answer()
        if look is not None:
            self._take(look, live, now)
        if not self.was_ready and now - self._started >= live.health.startup_timeout:
            if self.prober.is_asking and now - self._asked_at >= SILENCE:
                self._tell(probe.silence(now - self._asked_at))
            self.state = "late"
        if self.is_over:
            self.prober.cancel()
        elif self.prober.is_asking:
            self.next_at = self._bounded(self.prober.deadline, live)
        elif now >= self.next_at:
            self._ask(live, now)
            self.next_at = self._bounded(self.prober.deadline, live)
        else:
            # The interval may just have become shorter.
            self.next_at = min(self.next_at, now + max(live.health.interval, LONGEST_POLL))

    def _bounded(self, at: float, live: Live) -> float:
        return at if self.was_ready else min(at, self._started + live.health.startup_timeout)

    def _ask(self, live: Live, now: float) -> None:
        health = live.health
        self._asked_at = now
        if not self.was_ready:
            self._asked = health.canary
            remaining = self._started + health.startup_timeout - now
            self._is_hasty = remaining < HASTY
            self.prober.ask(partial(probe.ask_first, health=health), min(LONGEST_ANSWER, remaining))
            return
        self._is_canary = self._is_open(health) and not self._rests
        if self._is_canary:
            self._asked = health.canary
            question = partial(probe.ask_canary, health=health)
            self.prober.ask(question, health.timeout * CANARY_FACTOR)
            return
        is_real = health.probe != "http" and self._vitals.wants_canary(health.failures)
        with_metrics = self._vitals.wants_metrics
        timeout = health.timeout * (CANARY_FACTOR if is_real else 1)
        question = partial(probe.ask_alive, health=health, with_metrics=with_metrics, is_real=is_real)
        self.prober.ask(question, timeout + health.timeout if with_metrics else timeout)

    def _take(self, look: probe.Look, live: Live, now: float) -> None:
        self._count(look)
        if self.was_ready:
            state = self._state_of(look, live)
            self.next_at = self._asked_at + live.health.interval
        elif look.is_ok:
            state, self.was_ready = "ready", True
            self.next_at = now + live.health.interval
        elif look.stranger:
            state, self.stranger = "robbed", look.stranger
        elif self._wrongs >= live.health.failures:
            state = "wrong"  # it is asked greedily: asked for minutes, it would say the same
        else:
            state = "starting"
            self.next_at = now + self._poll
            self._poll = min(self._poll * 1.5, LONGEST_POLL)
        self._tell(look)
        if state == "ready" and self.state != "ready":
            self.ready_since = now
        elif state != "ready":
            self.ready_since = None
        self.state = state

    def _is_open(self, health: Health) -> bool:
        """Whether the canary is another one than was answered, rightly, last."""
        return health.canary is not None and (health.canary != self._answered or self._wrongs > 0)

    def _count(self, look: probe.Look) -> None:
        if look.canary:
            self._answered = self._asked
            self._wrongs = self._wrongs + 1 if look.canary == "wrong" else 0

    def _state_of(self, look: probe.Look, live: Live) -> str:
        """Of an engine that was ready. A wrong answer is an answer: no reason to end it, nor to route to it.

        A canary without an answer stands in line behind others: whether it lives, the next look asks.
        """
        self._rests = self._is_canary and not look.is_ok and not look.canary
        if self._rests:
            return self.state
        if look.canary != "wrong":
            return self._vitals.take(look, live.health.failures)
        return "failing" if self._wrongs >= live.health.failures else self.state

    def _tell(self, look: probe.Look) -> None:
        """Takes its message, unless the end of the budget left it no time: then the one before says more.

        But not that nothing listens: whoever keeps us waiting does listen.
        """
        was_cut_short = not self.was_ready and self._is_hasty and look.is_silent
        if not was_cut_short or self.message in (NOT_ASKED, probe.NOT_LISTENING):
            self.message = look.message
