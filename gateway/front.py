"""What requests that are not for engines meet first: their id, the keys, a look at the path, who answers."""

from typing import cast

from litestar.enums import HttpMethod, ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from gateway import heads
from gateway.errors import RequestError, shown
from gateway.keys import refusal
from gateway.lane import Lane
from gateway.paths import is_ambiguous


class Front:
    """Wraps an ASGI application: unlike a middleware of it, also around paths that it does not know.

    Whoever serves it finds the data plane in the state of the lifespan, under "lane".
    """

    def __init__(self, app: ASGIApp, lane: Lane) -> None:
        self._app = app
        self._lane = lane

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            scope.get("state", {})["lane"] = self._lane
            await self._app(scope, receive, send)
            return
        headers = list(scope["headers"])
        given = heads.get(headers, b"x-request-id")
        request_id = given if heads.is_request_id(given) else heads.new_request_id()
        kept = [(name, value) for name, value in headers if name != b"x-request-id"]
        scope["headers"] = [*kept, (b"x-request-id", request_id)]

        added = [(b"x-sage-src", b"sage"), (b"x-request-id", request_id)]
        added += self._lane.cors_headers(heads.get(headers, b"origin"))

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *added]
            try:
                await send(message)
            except RuntimeError as error:
                # The client has left just now; nobody minds.
                if "handler is closed" not in str(error):
                    raise

        if len(added) > 2 and heads.get(headers, b"access-control-request-method"):
            # Asked by a browser before the request itself, and without a key.
            await _allow(stamped, heads.get(headers, b"access-control-request-headers"))
            return
        key = self._lane.keys.find(heads.get(headers, b"authorization"), heads.get(headers, b"x-api-key"))
        scope.setdefault("state", {})["key"] = key
        if error := refusal(self._lane.keys, scope["path"], key):
            await error.send_to(stamped)
            return
        if is_ambiguous(scope.get("raw_path") or scope["path"].encode()):
            message = (
                f"There is nothing at {scope['method']} {shown(scope['path'])}: paths with '.' or '..' "
                "segments, doubled slashes or backslashes are not taken. GET /docs lists every path."
            )
            await RequestError(404, message, "not_found").send_to(stamped)
            return
        if scope["method"] == HttpMethod.HEAD:
            # A copy: the server goes by its own scope, and leaves out the body.
            scope = cast(Scope, {**scope, "method": HttpMethod.GET.value})
        await self._app(scope, receive, stamped)


async def _allow(send: Send, asked_headers: bytes) -> None:
    headers = [
        (b"access-control-allow-methods", b"GET, POST, PATCH, DELETE"),
        (b"access-control-allow-headers", asked_headers or b"authorization, content-type"),
        (b"access-control-max-age", b"600"),
        (b"content-length", b"0"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
