"""The endpoints that a client knows, and which of them gets a request."""

import threading
import time
from collections.abc import Collection
from dataclasses import dataclass

from sage_reconcile.client.discovery import Endpoint, Model, discover, given_endpoint
from sage_reconcile.client.errors import UnknownModelError
from sage_reconcile.client.settings import Settings
from sage_reconcile.model.desired import Kind

# Engines that were found on their ports are looked for again after so long; a gateway knows its own.
REFRESH_S = 30.0
NAMES_TOLD = 20
WORDS = {Kind.LLM: "chat", Kind.EMBEDDING: "embedding"}


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes, and for which model."""

    endpoint: Endpoint
    model: str


class Backends:
    """Thread-safe. What it knows is refreshed when it grows old and when a backend is lost.

    `was_reached` tells that something has answered before, so that a refused connection may be a restart.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._looking = threading.Lock()
        self._lock = threading.Lock()
        self._endpoints: tuple[Endpoint, ...] = ()
        self._looked_at: float | None = None
        self._defaults: dict[Kind, str] = dict(settings.models)
        self._turn = 0
        self.was_reached = False

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """What was found last, in order of preference; () before the first look."""
        return self._endpoints

    def known(self, kind: Kind, model: str | None, avoid: Collection[str]) -> Target | None:
        """Where to send without looking anywhere, or None if a look is needed. `avoid` are URLs."""
        with self._lock:
            name = model or self._default(kind)
            # While another looks because of age alone, what is known serves well enough.
            is_usable = not self._is_stale() or (self._looked_at is not None and self._looking.locked())
            if name is None or not (is_usable or self._settings.url):
                return None
            if self._settings.url:
                return Target(given_endpoint(self._settings), name)
            return self._pick(name, avoid)

    def look(self, kind: Kind, model: str | None, avoid: Collection[str]) -> Target:
        """Looks for what serves, then says where to send. Blocks: network.

        Raises NoBackendError, AccessDeniedError, UnknownModelError.
        """
        seen = self._looked_at
        with self._looking:
            # Whoever waited here while another looked takes what that one found.
            if self._looked_at == seen or self._is_stale():
                self.refresh()
        with self._lock:
            name = model or self._default(kind)
            target = self._pick(name, avoid) or self._pick(name, ())
            if target is None and model is None and self._forget(kind, name):
                name = self._default(kind)
                target = self._pick(name, ())
            if name is None:
                raise UnknownModelError(self._none_of(kind))
            if target is None:
                raise UnknownModelError(self._unknown(name, kind, is_default=model is None))
            return target

    def refresh(self) -> None:
        """Looks for what serves. Raises NoBackendError, AccessDeniedError."""
        found = discover(self._settings, self._endpoints)
        with self._lock:
            self._endpoints, self._looked_at, self.was_reached = found, time.monotonic(), True

    def lost(self, url: str) -> None:
        """The endpoint broke the connection: the next request looks again."""
        with self._lock:
            left = tuple(known for known in self._endpoints if known.url != url)
            # Many requests may lose the same one; only the first makes a look due.
            if len(left) < len(self._endpoints):
                self._endpoints, self._looked_at = left, None

    def has_other(self, model: str, avoid: Collection[str]) -> bool:
        """Whether another endpoint is known to serve the model."""
        with self._lock:
            return any(e.serves(model) and e.url not in avoid for e in self._endpoints)

    def forget_default(self, kind: Kind, model: str) -> bool:
        """The chat model that this client chose is gone: the next try chooses anew. False if it may not.

        A default that was given is kept, and so is an embedding model: vectors of another model could not be
        compared with those that the caller has already.
        """
        with self._lock:
            if not self._forget(kind, model):
                return False
            self._endpoints, self._looked_at = (), None
            return True

    def _forget(self, kind: Kind, model: str | None) -> bool:
        is_chosen = kind not in self._settings.models and self._defaults.get(kind) == model
        if kind is Kind.EMBEDDING or model is None or not is_chosen:
            return False
        del self._defaults[kind]
        return True

    def _is_stale(self) -> bool:
        if self._looked_at is None:
            return True
        is_gateway = all(endpoint.is_gateway for endpoint in self._endpoints)
        return not is_gateway and time.monotonic() - self._looked_at > REFRESH_S

    def _pick(self, model: str | None, avoid: Collection[str]) -> Target | None:
        able = [e for e in self._endpoints if model and e.serves(model) and e.url not in avoid]
        if model is None or not able:
            return None
        self._turn += 1
        return Target(able[self._turn % len(able)], model)

    def _default(self, kind: Kind) -> str | None:
        """The default model of a kind, None if none is listed. Once chosen, it stays."""
        if kind not in self._defaults:
            listed = [model for endpoint in self._endpoints for model in endpoint.models]
            if chosen := _first_of(listed, kind):
                self._defaults[kind] = chosen.name
        return self._defaults.get(kind)

    def _names(self) -> str:
        names = list(dict.fromkeys(model.name for e in self._endpoints for model in e.models))
        more = f" and {len(names) - NAMES_TOLD} more" if len(names) > NAMES_TOLD else ""
        return (", ".join(names[:NAMES_TOLD]) or "none") + more

    def _places(self) -> str:
        return ", ".join(endpoint.url for endpoint in self._endpoints)

    def _unknown(self, name: str, kind: Kind, is_default: bool) -> str:
        what = f"the default {WORDS[kind]} model {name!r}" if is_default else f"the model {name!r}"
        return f"{what} is not served by {self._places()}; models served: {self._names()}"

    def _none_of(self, kind: Kind) -> str:
        return (
            f"no {WORDS[kind]} model is listed by {self._places()} (models: {self._names()}); "
            f"add an engine of kind {kind.value} to the stack, or name the model by model="
        )


def _first_of(models: list[Model], kind: Kind) -> Model | None:
    """The first ready one of the kind, else the first of the kind, else the first without a kind."""
    of_kind = [model for model in models if model.kind is kind]
    ready = [model for model in of_kind if model.is_ready]
    untold = [model for model in models if model.kind is None]
    return next(iter([*ready, *of_kind, *untold]), None)
