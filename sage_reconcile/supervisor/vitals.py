"""Ready, failing or hung: what a row of looks at an engine that was ready says. Pure."""

from sage_reconcile.supervisor.probe import Look

# How many times `failures` misses an engine may have before it counts as hung.
HUNG_FACTOR = 4


# So many looks at an engine of which no token was seen are followed by a canary: /health may say 200 where
# every request fails. Rare enough to cost an idle engine nothing.
ROUTINE = 30


class Vitals:
    """Counts misses. Tokens that move prove that an engine works, however late it answers its probes."""

    def __init__(self) -> None:
        self.misses = 0
        self.stalls = 0
        self._tokens: float | None = None
        self._knows_metrics: bool | None = None
        self._looks = 0

    @property
    def wants_metrics(self) -> bool:
        """Until the first look that got an answer showed that the engine has no counters."""
        return self._knows_metrics is not False

    def wants_canary(self, failures: int) -> bool:
        """/health answers but requests run without a token, or none came for long: only a request of our own
        can tell."""
        return self.stalls >= failures or self._looks >= ROUTINE

    def take(self, look: Look, failures: int) -> str:
        """ "ready", "failing" or "hung" after one more look."""
        is_comparable = look.tokens is not None and self._tokens is not None
        has_moved = is_comparable and look.tokens != self._tokens
        was_canary = self.wants_canary(failures)
        if look.tokens is not None:
            self._tokens, self._knows_metrics = look.tokens, True
        elif look.is_ok and self._knows_metrics is None:
            self._knows_metrics = False
        # A canary may wait behind long requests; without counters nobody can tell that from a hang.
        is_undecided = was_canary and look.is_silent and not self._knows_metrics
        is_proved = has_moved or (was_canary and (look.is_ok or is_undecided))
        self._looks = 0 if is_proved else self._looks + 1
        if look.is_ok or has_moved:
            self.misses = 0
            is_stalled = bool(look.running) and is_comparable and not has_moved and not was_canary
            self.stalls = self.stalls + 1 if is_stalled else 0
            return "ready"
        if was_canary and look.is_silent:
            # It waited long, and nothing moved meanwhile: that says as much as many looks.
            self.misses += 0 if is_undecided else HUNG_FACTOR
        else:
            self.misses += 1
        if self.misses >= failures * HUNG_FACTOR:
            return "hung"
        return "failing" if self.misses >= failures else "ready"
