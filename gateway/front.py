"""What every request meets first: its id, the API keys, a look at its path, and the mark of who answered."""

from typing import cast

from litestar.enums import HttpMethod, ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from gateway import headers as passing
from gateway.auth import OPEN_PATHS, Keys
from gateway.errors import RequestError
from gateway.paths import is_ambiguous


class Front:
    """Wraps an ASGI application: unlike a middleware of it, also around paths that it does not know."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        headers = list(scope["headers"])
        request_id = passing.request_id(headers)
        kept = [(name, value) for name, value in headers if name != b"x-request-id"]
        scope["headers"] = [*kept, (b"x-request-id", request_id)]

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                reply = list(message["headers"])
                if not passing.get(reply, b"x-sage-src"):
                    reply.append((b"x-sage-src", b"sage"))
                message["headers"] = [*reply, (b"x-request-id", request_id)]
            await send(message)

        if self._is_refused(scope["path"], headers):
            message = "This gateway needs an API key: send the header 'Authorization: Bearer KEY'."
            error = RequestError(401, message, "invalid_api_key", www_authenticate="Bearer")
            await error.send_to(stamped)
            return
        if is_ambiguous(scope.get("raw_path") or scope["path"].encode()):
            message = (
                f"There is nothing at {scope['method']} {scope['path']}: paths with '.' or '..' segments, "
                "doubled slashes or backslashes are not taken. GET /docs lists every path."
            )
            await RequestError(404, message, "not_found").send_to(stamped)
            return
        if scope["method"] == HttpMethod.HEAD:
            # A copy: the server goes by its own scope, and leaves out the body.
            scope = cast(Scope, {**scope, "method": HttpMethod.GET.value})
        await self._app(scope, receive, stamped)

    def _is_refused(self, path: str, headers: passing.Headers) -> bool:
        if not self._keys or path in OPEN_PATHS:
            return False
        authorization = passing.get(headers, b"authorization")
        return not self._keys.allow(authorization, passing.get(headers, b"x-api-key"))
