"""The tries of one request: where it goes first, and what follows a fault."""

from sage_reconcile.client.backends import Backends, Target
from sage_reconcile.client.errors import NoBackendError
from sage_reconcile.client.faults import is_lost, is_refused, is_unknown_model, status_of, told
from sage_reconcile.model.desired import Kind

# A request that breaks engines must not go through all of them, one after another.
MAX_SENDS = 3
# Waits between tries where nothing else serves the model: long enough for a gateway's restart.
WAITS_S = (0.1, 0.2, 0.4, 0.8, 1.5, 2.0, 2.0, 2.0)


class Attempts:
    """Nothing of an answer has reached the caller while these go on, so a request may be sent again."""

    def __init__(self, backends: Backends, kind: Kind, model: str | None, timeout: float) -> None:
        self._backends = backends
        self._kind = kind
        self._model = model
        self._timeout = timeout
        self._target: Target | None = None
        self._avoid: set[str] = set()
        self._sends = 0
        self._waits = list(WAITS_S)
        self._was_not_found = False

    def known(self) -> Target | None:
        """Where the next try goes, or None if that takes a look()."""
        self._target = self._backends.known(self._kind, self._model, self._avoid)
        return self._target

    def look(self) -> Target:
        """Where the next try goes; blocks while it looks for what serves. Raises as Backends.look does."""
        self._target = None
        self._target = self._backends.look(self._kind, self._model, self._avoid)
        return self._target

    def answered(self) -> None:
        """The try went well."""
        self._backends.was_reached = True

    def after(self, error: Exception) -> float:
        """Seconds to wait before the next try. Raises the error for the caller where there is none."""
        if self._target is None:
            if isinstance(error, NoBackendError) and self._backends.was_reached and self._waits:
                return self._waits.pop(0)
            raise error
        target = self._target
        self._backends.was_reached |= not is_refused(error)
        wait = self._wait_after(error, target)
        if wait is None:
            raise told(error, target.endpoint.url, target.model, self._timeout) from error
        return wait

    def _wait_after(self, error: Exception, target: Target) -> float | None:
        url = target.endpoint.url
        if is_lost(error):
            self._backends.lost(url)
            self._avoid.add(url)
            self._sends += not is_refused(error)
            if self._sends >= MAX_SENDS or not self._waits or not self._backends.was_reached:
                return None
            has_other = self._backends.has_other(target.model, self._avoid)
            return 0.0 if has_other else self._waits.pop(0)
        if status_of(error) >= 500 and not target.endpoint.is_gateway:
            self._avoid.add(url)
            self._sends += 1
            has_other = self._backends.has_other(target.model, self._avoid)
            return 0.0 if has_other and self._sends < MAX_SENDS else None
        if status_of(error) == 404 and not self._was_not_found:
            self._was_not_found = True
            return 0.0 if self._may_serve_elsewhere(error, target) else None
        return None

    def _may_serve_elsewhere(self, error: Exception, target: Target) -> bool:
        """Whether another try makes sense after a 404: what this client knows may be outdated."""
        if not target.endpoint.is_gateway:
            self._backends.lost(target.endpoint.url)
            return True
        is_default = self._model is None and is_unknown_model(error)
        return is_default and self._backends.forget_default(self._kind, target.model)
