"""One backend as a worker sees it: its connections, its requests in flight, and how well it answers."""

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gateway.meters import BackendMeter
from gateway.references import resolve
from gateway.upstream import EngineConnection, close_idle
from sage_reconcile.model.routing import Backend

if TYPE_CHECKING:
    from gateway.attempt import Attempt
    from gateway.fleet import Pool

logger = logging.getLogger("gateway")

CONNECT_TIMEOUT_S = 5.0
# So many failures one after another, and others are asked first.
EJECT_AFTER = 3
EJECT_S = 1.0
EJECT_MAX_S = 30.0


class Member:
    """One backend. `limit` is how many requests this worker sends it at once, `name` is for people.

    After some failures in a row it is ejected for a while, twice as long each time; after that, one request
    at a time tries it again. `is_silent` is set by whoever finds that it does not answer at all.
    """

    def __init__(self, backend: Backend, meter: BackendMeter) -> None:
        self.id = backend.id
        self.name = f"{backend.engine}#{backend.replica}"
        self.meter = meter
        self.backend = backend
        self.fault = ""
        self.limit = self.weight = 1
        self.is_known = False
        self.in_flight = 0
        self.attempts: set[Attempt] = set()
        self.pools: tuple[Pool, ...] = ()
        self.idle: list[EngineConnection] = []
        self.heard_at = 0.0
        self.is_silent = False
        self._failures = 0
        self._ejections = 0
        self._ejected_until = 0.0
        # The address, set by the first renew.
        self.prefix = self.head_rest = b""
        self._host, self._port = "", 0
        self._ssl: ssl.SSLContext | None = None

    def renew(self, backend: Backend, workers: int) -> None:
        """Takes over what the table says now. The requests at once are shared out among the workers."""
        was_ready = self.is_known and self.backend.state == "ready"
        if not self.head_rest or (backend.url, backend.api_key) != (self.backend.url, self.backend.api_key):
            self._set_address(backend)
        if backend.state == "ready" and not was_ready:
            # Another start is another chance.
            self._forgive()
        self.backend = backend
        self.is_known = True
        self.weight = backend.weight
        self.limit = max(1, -(-backend.max_concurrent // workers))

    @property
    def is_accepting(self) -> bool:
        """Whether the table lets it have requests."""
        return self.is_known and self.backend.state == "ready"

    @property
    def is_ready(self) -> bool:
        """Whether it may be sent requests."""
        return self.is_accepting and not self.fault and self.weight > 0

    def is_ejected(self, now: float) -> bool:
        """Whether others are to be asked first."""
        if self.is_silent:
            return True
        return self._ejected_until > 0 and (now < self._ejected_until or self.in_flight > 0)

    @property
    def is_out(self) -> bool:
        """Whether it is ejected, or on trial after that."""
        return self.is_silent or self._ejected_until > 0

    def succeeded(self) -> None:
        """It answered."""
        if self._failures or self.is_silent:
            self._forgive()

    def failed(self, kind: str, now: float) -> None:
        """It did not answer as an engine that works does; `kind` is one word for the metrics."""
        self.meter.failures[kind] = self.meter.failures.get(kind, 0) + 1
        self._failures += 1
        if self._failures >= EJECT_AFTER and now >= self._ejected_until:
            self._ejected_until = now + min(EJECT_MAX_S, EJECT_S * 2**self._ejections)
            self._ejections += 1
            self.meter.ejections += 1
            logger.warning("%s failed %d times in a row (%s)", self.id, self._failures, kind)

    def silence(self) -> None:
        """It does not answer at all: nothing is sent there while there is another."""
        self.is_silent = True
        self.meter.ejections += 1

    def leave_idle(self, before: float) -> None:
        """Closes the connections that are idle since `before` (loop seconds)."""
        close_idle(self.idle, before)

    def close_idle(self) -> None:
        for connection in self.idle:
            connection.transport.close()
        self.idle.clear()

    async def connect(self) -> EngineConnection:
        """A new connection. Raises OSError or TimeoutError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, connection = await loop.create_connection(
                lambda: EngineConnection(self.idle), self._host, self._port, ssl=self._ssl
            )
        return connection

    def _forgive(self) -> None:
        self._failures = self._ejections = 0
        self._ejected_until = 0.0
        self.is_silent = False

    def _set_address(self, backend: Backend) -> None:
        self.close_idle()
        self.fault = ""
        try:
            url = urlsplit(backend.url)
            if url.scheme not in ("http", "https") or not url.hostname:
                raise ValueError(f"its url {backend.url!r} is not http or https")
            is_tls = url.scheme == "https"
            self._host, self._port = url.hostname, url.port or (443 if is_tls else 80)
            self._ssl = ssl.create_default_context() if is_tls else None
            authorization = resolve(backend.api_key) if backend.api_key else ""
            self.prefix = url.path.rstrip("/").encode("ascii")
            lines = f" HTTP/1.1\r\nhost: {url.netloc.rpartition('@')[2]}\r\n"
            lines += f"authorization: Bearer {authorization}\r\n" if authorization else ""
            self.head_rest = lines.encode("ascii")
        except ValueError as error:
            self.fault = str(error)
            logger.warning("%s is not used: %s", backend.id, error)
