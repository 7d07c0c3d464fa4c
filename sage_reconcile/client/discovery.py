"""Where models are served: the place that was given, else the local gateway, else engines on their ports."""

import re
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from sage_reconcile.client.errors import AccessDeniedError, NoBackendError
from sage_reconcile.client.settings import URL_VARIABLE, Settings, is_loopback
from sage_reconcile.model.desired import Kind
from sage_reconcile.plan.ports import RANGES

LOOPBACK = "127.0.0.1"
CONNECT_TIMEOUT_S = 0.5
ANSWER_TIMEOUT_S = 2.0
GIVEN_TIMEOUT_S = 10.0
SCAN_THREADS = 16
PORTS_TOLD = 5
NO_ANSWER = "no answer in time"


@dataclass(frozen=True, slots=True)
class Model:
    """A model name as it is listed. `kind` is None where the server does not tell."""

    name: str
    kind: Kind | None
    is_ready: bool = True


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI server. `url` has no `/v1`. A gateway routes every model itself; an engine serves its own."""

    url: str
    is_gateway: bool
    models: tuple[Model, ...] = ()
    api_key: str = field(default="", repr=False)

    def serves(self, model: str) -> bool:
        return self.is_gateway or any(known.name == model for known in self.models)


@dataclass(frozen=True, slots=True)
class Answer:
    """What GET brought: `body` is the JSON, None for anything else; `reason` says why there is none."""

    status: int = 0
    body: Any = None
    reason: str = ""


def given_endpoint(settings: Settings) -> Endpoint:
    """The place that was given, without asking it anything."""
    return Endpoint(settings.url, is_gateway=True, api_key=settings.api_key)


def discover(settings: Settings, known: tuple[Endpoint, ...] = ()) -> tuple[Endpoint, ...]:
    """What serves models now, never nothing; of `known` engines, those that are only slow to answer are kept.

    Raises NoBackendError, and AccessDeniedError for a wrong key.
    """
    if settings.url:
        return (_given(settings),)
    gateway, tried = _local_gateway(settings)
    if gateway and gateway.models:
        return (gateway,)
    engines, passed_over = _engines({endpoint.url: endpoint for endpoint in known})
    if engines:
        return engines
    ranges = " and ".join(f"{ports[0]}-{ports[-1]}" for ports in RANGES.values())
    over = f" ({'; '.join(passed_over)})" if passed_over else ""
    raise NoBackendError(
        f"no inference backend found: {URL_VARIABLE} is not set; {tried}; "
        f"no engine serves models on {LOOPBACK} ports {ranges}{over}. "
        "Apply a stack and start the gateway (`sage apply`, `sage gateway start`), "
        f"or tell where one runs by control_plane_url= or {URL_VARIABLE}"
    )


def _given(settings: Settings) -> Endpoint:
    with _http(settings.url, GIVEN_TIMEOUT_S) as http:
        answer = _get(http, "/v1/models", settings.api_key)
    if not answer.status:
        raise NoBackendError(unreachable(settings.url, settings.url_source, answer.reason))
    _check_access(answer, settings.url)
    return Endpoint(settings.url, True, tuple(_models(answer, None)), settings.api_key)


def unreachable(url: str, source: str, reason: str) -> str:
    """In words: `url` cannot be reached, and what to do."""
    by = f", given by {source}," if source else ""
    return (
        f"{url}{by} cannot be reached ({reason}); check the address, or start the gateway there "
        "(`sage gateway start`)"
    )


def _local_gateway(settings: Settings) -> tuple[Endpoint | None, str]:
    """The local gateway or None, and what was found in its place, in words."""
    url = settings.gateway_url
    with _http(url, ANSWER_TIMEOUT_S) as http:
        health = _get(http, "/health")
        if not health.status:
            return None, f"no gateway answers at {url} ({health.reason})"
        if not (isinstance(health.body, dict) and health.body.get("service") == "sage-gateway"):
            return None, f"what answers at {url} is not sage's gateway"
        answer = _get(http, "/v1/models", settings.api_key)
    _check_access(answer, url)
    models = tuple(_models(answer, None))
    return Endpoint(url, True, models, settings.api_key), f"the gateway at {url} serves no model"


def _check_access(answer: Answer, url: str) -> None:
    if answer.status in (401, 403):
        raise AccessDeniedError(access_denied(url, answer.status), answer.status)


def access_denied(url: str, status: int) -> str:
    return (
        f"{url} does not let this client in (HTTP {status}): "
        "pass one of its keys as api_key= or in SAGE_UNIFIED_API_KEY"
    )


def _engines(known: Mapping[str, Endpoint]) -> tuple[tuple[Endpoint, ...], list[str]]:
    """Engines on the ports that sage gives out, in their order, and why others that answer were passed over.

    No key is sent: these are ports that any local process may hold.
    """
    places = [(kind, port) for kind, ports in RANGES.items() for port in ports]
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        probed = list(pool.map(lambda place: _probe(place, known), places))
    engines = tuple(found for found in probed if isinstance(found, Endpoint))
    over = [found for found in probed if isinstance(found, str)]
    if len(over) > PORTS_TOLD:
        over[PORTS_TOLD:] = [f"and {len(over) - PORTS_TOLD} more"]
    return engines, over


def _probe(place: tuple[Kind, int], known: Mapping[str, Endpoint]) -> Endpoint | str | None:
    """The engine on this port, why what answers there is none, or None when nobody listens."""
    kind, port = place
    try:
        socket.create_connection((LOOPBACK, port), CONNECT_TIMEOUT_S).close()
    except OSError:
        return None
    url = f"http://{LOOPBACK}:{port}"
    with _http(url, ANSWER_TIMEOUT_S) as http:
        answer = _get(http, "/v1/models")
    if answer.reason == NO_ANSWER and url in known:
        return known[url]
    models = tuple(_models(answer, kind))
    if models:
        return Endpoint(url, False, models)
    why = f"answered {answer.status}" if answer.status else answer.reason
    return f"port {port}: /v1/models {'lists nothing' if answer.status == 200 else why}"


def _models(answer: Answer, kind: Kind | None) -> Iterator[Model]:
    """Models of a `/v1/models` reply, `kind` where it does not tell. Names that are none are left out."""
    data = answer.body.get("data") if answer.status == 200 and isinstance(answer.body, dict) else None
    for item in data if isinstance(data, list) else ():
        name = item.get("id") if isinstance(item, dict) else None
        if isinstance(name, str) and name:
            told = item.get("kind")
            known = Kind(told) if told in list(Kind) else kind
            yield Model(name, known, is_ready=item.get("ready", 1) != 0)


def _http(url: str, timeout: float) -> httpx.Client:
    limits = httpx.Timeout(timeout, connect=min(timeout, ANSWER_TIMEOUT_S))
    # Certificates are loaded only where they are used: that takes longer than all the rest of a scan.
    is_tls = url.startswith("https:")
    return httpx.Client(base_url=url, timeout=limits, verify=is_tls, trust_env=not is_loopback(url))


def _get(http: httpx.Client, path: str, api_key: str = "") -> Answer:
    try:
        reply = http.get(path, headers={"authorization": f"Bearer {api_key}"} if api_key else {})
    except httpx.TimeoutException:
        return Answer(reason=NO_ANSWER)
    except httpx.HTTPError as error:
        return Answer(reason=plain_reason(error))
    try:
        return Answer(reply.status_code, reply.json())
    except ValueError:
        return Answer(reply.status_code)


def plain_reason(error: BaseException) -> str:
    """What a transport error says, without the number of the system's error."""
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
