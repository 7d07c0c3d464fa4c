"""What every request meets first: its id, the API keys, and the mark of who answered."""

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from gateway import headers as passing
from gateway.auth import OPEN_PATHS, Keys
from gateway.errors import RequestError


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
        await self._app(scope, receive, stamped)

    def _is_refused(self, path: str, headers: passing.Headers) -> bool:
        if not self._keys or path in OPEN_PATHS:
            return False
        authorization = passing.get(headers, b"authorization")
        return not self._keys.allow(authorization, passing.get(headers, b"x-api-key"))
