"""What one worker knows: the table it serves by, and how many requests each backend has in flight."""

import asyncio
import itertools
import logging
import multiprocessing
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from gateway.errors import unknown_model
from gateway.pick import pick
from gateway.record import WorkerRecord
from gateway.references import resolve
from gateway.source import TableSource
from sage_reconcile.model.routing import Backend, Route

logger = logging.getLogger("gateway")

POLL_S = 0.25


class Live:
    """Routes and counts of one worker.

    Loading, choosing and counting run on the event loop without an await in between, so that no request can
    start on a backend after a table without it was loaded.
    """

    def __init__(self, source: TableSource, record: WorkerRecord) -> None:
        self.source = source
        self.routes: dict[str, Route] = {}
        self.backends: dict[str, Backend] = {}
        self.in_flight: Counter[str] = Counter()
        self.faults: dict[str, str] = {}
        self.held = 0
        self._record = record
        self._authorization: dict[str, bytes] = {}
        self._turns: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
        self._changed = asyncio.Event()

    def refresh(self) -> None:
        """Serves by the routing file as it is now, if new and good; wakes whoever waits for a change."""
        before = self.source.fault
        if self.source.refresh():
            self._load()
        if self.source.fault and self.source.fault != before:
            logger.warning("%s", self.source.fault)
        self._record.write(self.source.digest, self._busy())

    async def follow(self) -> None:
        """Keeps the table fresh until cancelled; ends this worker when its parent process is gone."""
        parent = multiprocessing.parent_process()
        while True:
            await asyncio.sleep(POLL_S)
            self.refresh()
            if parent is not None and not parent.is_alive():
                os.kill(os.getpid(), signal.SIGTERM)
                parent = None

    async def wait_for_change(self, seconds: float) -> None:
        """Returns when a new table was loaded, or after `seconds`. Whoever waits is counted in `held`."""
        self.held += 1
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            pass
        finally:
            self.held -= 1

    def route(self, model: str) -> Route:
        """The route of a name. Raises RequestError (404) if there is none."""
        try:
            return self.routes[model]
        except KeyError:
            raise unknown_model(model, self.routes) from None

    def choose(self, route: Route, avoid: Collection[str]) -> Backend | None:
        """The ready backend that gets the next request of a route; `avoid` holds ids not to be used."""
        usable = [backend for backend in self.ready(route) if backend.id not in avoid]
        return pick(usable, self.in_flight, next(self._turns[route.name])) if usable else None

    def ready(self, route: Route) -> list[Backend]:
        """The backends of a route that may be sent requests."""
        known = (self.backends[backend_id] for backend_id in route.backends)
        return [backend for backend in known if backend.state == "ready" and backend.id not in self.faults]

    def authorization(self, backend: Backend) -> bytes:
        """The authorization header that a backend asks for, or b""."""
        return self._authorization.get(backend.id, b"")

    @contextmanager
    def counted(self, backend: Backend) -> Iterator[None]:
        """One request in flight on a backend, for as long as the block runs."""
        self.in_flight[backend.id] += 1
        try:
            yield
        finally:
            self.in_flight[backend.id] -= 1
            if not self.in_flight[backend.id]:
                del self.in_flight[backend.id]
            if not self._accepts(backend.id):
                self._record.write(self.source.digest, self._busy())

    def _load(self) -> None:
        table = self.source.table
        self.routes = {route.name: route for route in table.routes}
        self.backends = {backend.id: backend for backend in table.backends}
        self.faults, self._authorization = {}, {}
        for backend in table.backends:
            if backend.api_key:
                try:
                    self._authorization[backend.id] = b"Bearer " + resolve(backend.api_key).encode()
                except ValueError as error:
                    self.faults[backend.id] = str(error)
                    logger.warning("%s is not used: %s", backend.id, error)
        for name in [name for name in self._turns if name not in self.routes]:
            del self._turns[name]
        self._changed.set()
        self._changed = asyncio.Event()
        logger.info(
            "serving by table %s: %d routes, %d backends",
            self.source.digest,
            len(table.routes),
            len(table.backends),
        )

    def _accepts(self, backend_id: str) -> bool:
        backend = self.backends.get(backend_id)
        return backend is not None and backend.state == "ready"

    def _busy(self) -> dict[str, int]:
        return {
            backend_id: count for backend_id, count in self.in_flight.items() if not self._accepts(backend_id)
        }
