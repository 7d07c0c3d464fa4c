"""The official openai package: imported when it is needed, one client of it per endpoint."""

import asyncio
import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sage_reconcile.client.discovery import Endpoint
from sage_reconcile.client.settings import is_loopback
from sage_reconcile.errors import PermanentError

if TYPE_CHECKING:
    import openai

CONNECT_TIMEOUT_S = 5.0
# The package insists on a key; where there is none, the header is left out instead.
NO_KEY = "none"

Key = tuple[str, str]


def require_sdk() -> None:
    """Raises PermanentError if the openai package is missing."""
    try:
        import openai  # noqa: F401
    except ImportError as error:
        raise PermanentError(
            "UnifiedInferenceClient needs the openai package, which is not installed: "
            "pip install 'sage-reconcile[client]'"
        ) from error


class Sdk:
    """Clients of the openai package by endpoint, and by event loop too where asynchronous: a connection
    belongs to the loop that opened it. `timeout` in seconds."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()
        self._is_closed = False
        self._blocking: dict[Key, openai.OpenAI] = {}
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Key, openai.AsyncOpenAI]]
        self._loops = WeakKeyDictionary()

    def blocking(self, endpoint: Endpoint) -> "openai.OpenAI":
        """The client for this endpoint. Raises PermanentError after close()."""
        import openai

        with self._lock:
            self._check_open()
            key = (endpoint.url, endpoint.api_key)
            if key not in self._blocking:
                http = openai.DefaultHttpxClient(**self._http_options(endpoint))
                self._blocking[key] = openai.OpenAI(http_client=http, **_options(endpoint))
            return self._blocking[key]

    def asynchronous(self, endpoint: Endpoint) -> "openai.AsyncOpenAI":
        """The client for this endpoint in the running loop. Raises PermanentError after close()."""
        import openai

        with self._lock:
            self._check_open()
            clients = self._loops.setdefault(asyncio.get_running_loop(), {})
            key = (endpoint.url, endpoint.api_key)
            if key not in clients:
                http = openai.DefaultAsyncHttpxClient(**self._http_options(endpoint))
                clients[key] = openai.AsyncOpenAI(http_client=http, **_options(endpoint))
            return clients[key]

    def close(self) -> None:
        """Ends the blocking connections; nothing can be asked after."""
        with self._lock:
            self._is_closed = True
            ended = list(self._blocking.values())
            self._blocking.clear()
        for client in ended:
            client.close()

    async def aclose(self) -> None:
        """Ends all connections, those of other event loops excepted; nothing can be asked after."""
        self.close()
        with self._lock:
            ended = list(self._loops.pop(asyncio.get_running_loop(), {}).values())
        for client in ended:
            await client.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise PermanentError("this UnifiedInferenceClient is closed; make another by create()")

    def _http_options(self, endpoint: Endpoint) -> dict[str, Any]:
        import openai

        return {
            "timeout": openai.Timeout(self._timeout, connect=min(self._timeout, CONNECT_TIMEOUT_S)),
            # A proxy of the environment does not lead to this machine's own ports.
            "trust_env": not is_loopback(endpoint.url),
            "follow_redirects": False,
            # Loading certificates takes longer than a short answer; plain HTTP needs none.
            "verify": endpoint.url.startswith("https:"),
        }


def request_headers(endpoint: Endpoint) -> dict[str, Any]:
    """Headers of each request. Nothing of the environment's OPENAI_ variables is meant for these servers, and
    an endpoint without a key gets none: the package wants that said with the request."""
    from openai import Omit

    unsent = ["OpenAI-Organization", "OpenAI-Project", *([] if endpoint.api_key else ["Authorization"])]
    return {name: Omit() for name in unsent}


def _options(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "base_url": f"{endpoint.url}/v1",
        "api_key": endpoint.api_key or NO_KEY,
        # Which try follows which fault is decided in attempts.py, where other backends are known.
        "max_retries": 0,
    }
