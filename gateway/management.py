"""The management API as a worker sees it: described here, answered by the control process.

A request is passed on once its key is known to be an administrator's; see keys.py. What comes back, streams
included, goes to the client as it is. None of this is imported or started before the first such request.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example, OpenAPIMediaType, Operation, Reference, RequestBody
from litestar.response import Stream

from gateway.described import errors
from gateway.errors import RequestError
from gateway.lane import Lane
from sage_reconcile.model import management as wire

if TYPE_CHECKING:
    import httpx

AnyRequest = Request[Any, Any, State]
Reply = Response[bytes] | Stream

# A look takes seconds where a host is busy, and so does the start of the control process.
CONNECT_S, ANSWER_S = 5.0, 60.0
# With ?wait=true: as long as the longest start; the client's own patience ends it sooner.
WAIT_S = 3600.0
MAX_BODY = 1 << 20

ROOT = "/v1/management"
NO_KEYS = "x-sage-open"
"""Says to the control process that the gateway has no keys: nobody has shown to be an administrator."""

START = {
    "model_id": "Qwen/Qwen2.5-7B-Instruct",
    "tensor_parallel_size": 2,
    "engine_label": "main-chat",
    "max_concurrent_requests": 256,
}
REGISTER = {"url": "http://10.0.0.7:8000", "model_id": "my-model", "engine_label": "far"}


def management_handlers(lane: Lane, control: str) -> list[HTTPRouteHandler]:
    """All routes. `control` is the abstract name of the control process's socket, "" where it has none."""

    async def passed_on(request: AnyRequest) -> Reply:
        check_origin(request, has_keys=bool(lane.keys))
        return await pass_on(request, control, has_keys=bool(lane.keys))

    return [*_looking(passed_on), *_changing(passed_on), *_following(passed_on)]


def _looking(passed_on: Any) -> list[HTTPRouteHandler]:
    @get(ROOT, summary="What the management API offers", responses=_answers(wire.Directory))
    async def directory(request: AnyRequest) -> Reply:
        return await _reply(passed_on, request)

    @get(f"{ROOT}/engines", summary="Every engine, external ones too", responses=_answers(wire.EngineList))
    async def engines(request: AnyRequest) -> Reply:
        return await _reply(passed_on, request)

    @get(f"{ROOT}/status", summary="Engines, GPUs, and what is reserved", responses=_answers(wire.Status))
    async def status(request: AnyRequest) -> Reply:
        return await _reply(passed_on, request)

    @get(f"{ROOT}/backends", summary="Engines by kind", responses=_answers(wire.Backends))
    async def backends(request: AnyRequest) -> Reply:
        return await _reply(passed_on, request)

    @get(f"{ROOT}/gpu", summary="GPUs and their memory", responses=_answers(wire.GpuList))
    async def gpu(request: AnyRequest) -> Reply:
        return await _reply(passed_on, request)

    return [directory, engines, status, backends, gpu]


def _changing(passed_on: Any) -> list[HTTPRouteHandler]:
    done = {200: ResponseSpec(wire.Operation, description="With ?wait=true: how it ended")}

    @post(
        f"{ROOT}/engines",
        status_code=202,
        summary="Starts an engine",
        description="With `wait=true` the answer comes when it is ready or has failed; `replace=true` lets "
        "it end what runs under its name with other options.",
        operation_class=StartBody,
        responses={**_answers(wire.Operation, 202, 400, 409, 422, 429), **done},
    )
    async def start(request: AnyRequest, wait: bool = False, replace: bool = False) -> Reply:
        return await _reply(passed_on, request)

    @post(
        f"{ROOT}/engines/register",
        status_code=202,
        summary="Routes to an engine that runs elsewhere",
        operation_class=RegisterBody,
        responses={**_answers(wire.Operation, 202, 400, 409, 422, 429), **done},
    )
    async def register(request: AnyRequest, wait: bool = False) -> Reply:
        return await _reply(passed_on, request)

    @post(
        f"{ROOT}/engines/prune",
        status_code=202,
        summary="Takes the entries of stopped engines out of adhoc.yaml",
        responses={**_answers(wire.Operation, 202, 400, 409, 422, 429), **done},
    )
    async def prune(request: AnyRequest, wait: bool = False) -> Reply:
        return await _reply(passed_on, request)

    @delete(
        f"{ROOT}/engines/{{engine_id:path}}",
        status_code=202,
        summary="Stops an engine, or routes no longer to an external one",
        description="`drain=false` waits neither for requests in flight nor for another sage.",
        responses={**_answers(wire.Operation, 202, 400, 404, 409, 422, 429), **done},
    )
    async def stop(request: AnyRequest, engine_id: str, drain: bool = True, wait: bool = False) -> Reply:
        return await _reply(passed_on, request)

    return [start, register, prune, stop]


def _following(passed_on: Any) -> list[HTTPRouteHandler]:
    events = ResponseSpec(
        None, description="Events, then `event: end` with the operation", generate_examples=False
    )

    @get(
        f"{ROOT}/operations/{{operation_id:str}}",
        summary="How an operation is going",
        responses=_answers(wire.Operation, 200, 404),
    )
    async def operation(request: AnyRequest, operation_id: str) -> Reply:
        return await _reply(passed_on, request)

    @get(
        f"{ROOT}/operations/{{operation_id:str}}/events",
        summary="What happens in an operation, as it happens (SSE)",
        media_type="text/event-stream",
        responses={200: events, **errors(401, 403, 404, 503)},
    )
    async def follow(request: AnyRequest, operation_id: str) -> Reply:
        return await _reply(passed_on, request)

    return [operation, follow]


async def _reply(passed_on: Any, request: AnyRequest) -> Reply:
    reply: Reply = await passed_on(request)
    return reply


def _answers(kind: type, status: int = 200, *more: int) -> dict[int, ResponseSpec]:
    answer = ResponseSpec(
        kind, description=(kind.__doc__ or "").strip().split("\n")[0], generate_examples=False
    )
    return {status: answer, **errors(400, 401, 403, 503, *more)}


@dataclass
class StartBody(Operation):
    """The body of a start, with an example."""

    def __post_init__(self) -> None:
        self.request_body = _body(wire.StartEngine, START)


@dataclass
class RegisterBody(Operation):
    """The body of a registration, with an example."""

    def __post_init__(self) -> None:
        self.request_body = _body(wire.RegisterEngine, REGISTER)


def _body(kind: type, example: dict[str, Any]) -> RequestBody:
    from litestar.openapi.spec import Schema

    (_, parts) = msgspec.json.schema_components([kind], ref_template="#/components/schemas/{name}")
    schema = Schema(**{_snake(key): value for key, value in parts[kind.__name__].items() if key != "title"})
    examples: dict[str, Example | Reference] = {"typical": Example(value=example)}
    return RequestBody(
        {"application/json": OpenAPIMediaType(schema=schema, examples=examples)}, required=True
    )


def _snake(key: str) -> str:
    return {"additionalProperties": "additional_properties"}.get(key, key)


def check_origin(request: AnyRequest, has_keys: bool) -> None:
    """Without keys whoever reaches the gateway may manage it, and so could any web page in a browser of this
    machine: pages of other origins, and names that only lead here, are turned away."""
    if has_keys:
        return
    origin = request.headers.get("origin", "")
    host = request.headers.get("host", "")
    name = urlsplit(f"//{host}").hostname or ""
    is_here = name in ("localhost", "::1") or name.startswith("127.")
    if not is_here or (origin and urlsplit(origin).netloc != host):
        message = (
            "This gateway has no keys, so it is managed only from this machine and not by web pages. Set an "
            "admin key (`sage gateway key`) to manage it from elsewhere."
        )
        raise RequestError(403, message, "admin_key_required")


async def pass_on(request: AnyRequest, control: str, has_keys: bool) -> Reply:
    """What the control process answers. Raises RequestError where it cannot be asked."""
    import httpx

    body = await request.body()
    if len(body) > MAX_BODY:
        raise RequestError(413, f"The request body is larger than {MAX_BODY >> 20} MiB.", "body_too_large")
    if not control:
        raise unreachable("the gateway has no socket for it")
    scope = request.scope
    raw = scope.get("raw_path") or scope["path"].encode()
    query = scope["query_string"]
    target = raw.partition(b"?")[0] + (b"?" + query if query else b"")
    kept = ("content-type", "accept", "x-request-id")
    headers = {name: value for name in kept if (value := request.headers.get(name))}
    if not has_keys:
        headers[NO_KEYS] = "1"
    patience = WAIT_S if b"wait=" in query or request.url.path.endswith("/events") else ANSWER_S
    url = httpx.URL("http://control", raw_path=target)
    asked = httpx.Request(request.method, url, headers=headers, content=body)
    # It may end, not being needed, or be killed at the very moment: looking twice does no harm.
    for is_last in (request.method != "GET", True):
        client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=f"\0{control}", verify=False),
            timeout=httpx.Timeout(patience, connect=CONNECT_S),
        )
        try:
            return await _ask(client, asked)
        except (httpx.HTTPError, OSError) as error:
            await client.aclose()
            if is_last:
                raise unreachable(str(error) or type(error).__name__) from error
    raise AssertionError("the last try returns or raises")


async def _ask(client: "httpx.AsyncClient", asked: "httpx.Request") -> Reply:
    """The answer; a stream goes on, and closes the client at its end."""
    reply = await client.send(asked, stream=True)
    kind = reply.headers.get("content-type", "application/json")
    if kind.startswith("text/event-stream"):
        return Stream(_events(client, reply), status_code=reply.status_code, media_type="text/event-stream")
    content = await reply.aread()
    await client.aclose()
    back = {name: value for name in ("location", "retry-after") if (value := reply.headers.get(name))}
    return Response(content, status_code=reply.status_code, media_type=kind, headers=back)


async def _events(client: "httpx.AsyncClient", reply: "httpx.Response") -> AsyncIterator[bytes]:
    import httpx

    try:
        async for piece in reply.aiter_raw():
            yield piece
    except (httpx.HTTPError, OSError) as error:
        fault = unreachable(str(error) or type(error).__name__)
        yield b"event: error\ndata: " + fault.body() + b"\n\n"
    finally:
        await client.aclose()


def unreachable(why: str) -> RequestError:
    """503: engines and their requests go on without it."""
    message = (
        f"The control process cannot be asked ({why}). Engines and their requests go on; try again, and see "
        "`sage gateway logs`. On the gateway's machine `sage status` and `sage llm engine` do the same."
    )
    return RequestError(503, message, "control_unavailable", retry_after="2")
