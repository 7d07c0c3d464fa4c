"""What a client asked for, and how an engine gets it."""

from typing import Any

from gateway import affinity, heads
from gateway import body as request_body
from gateway.errors import RequestError
from gateway.heads import Headers
from gateway.member import Member


class Asked:
    """One request of a client to an engine. `path` is as engines know it, `target` with the query.

    `seen` holds the headers by their lower-case names; of repeated ones, the last. `size` of the body is in
    bytes. What is known only once the body is there (`model`, `max_tokens`, `session`) is "", 0 and None
    before; a `session` is what the body says, of any type.
    """

    model = ""
    max_tokens = 0
    session: Any = None
    trace = b""
    size = 0
    _body = _plain = b""

    def __init__(self, path: bytes, target: bytes, headers: Headers) -> None:
        self.path = path
        self.target = target
        self.headers = headers
        self.seen = seen = dict(headers)
        given = seen.get(b"x-request-id")
        self.request_id = given if given and heads.is_request_id(given) else heads.new_request_id()
        self.parts: list[bytes] = []

    @property
    def id(self) -> str:
        """The request's id, for people."""
        return self.request_id.decode()

    def read(self, limit: int) -> None:
        """Reads what the complete body says; it may unpack to `limit` bytes at most. Raises RequestError."""
        parts, seen = self.parts, self.seen
        if len(seen) != len(self.headers):
            self._check_repeated()
        self._body = plain = parts[0] if len(parts) == 1 else b"".join(parts)
        self.parts = []
        encoding = seen.get(b"content-encoding", b"identity")
        if encoding != b"identity":
            self._plain = plain = request_body.unpacked(plain, encoding.lower(), limit)
        self.model, self.max_tokens, self.session = request_body.read(plain, seen.get(b"content-type", b""))

    def _check_repeated(self) -> None:
        """Raises RequestError if it may be read in two ways, as an engine might read it in the other one."""
        names = [name for name, _ in self.headers]
        for name in (b"content-type", b"content-encoding"):
            if names.count(name) > 1:
                message = f"The request has more than one header '{name.decode()}'."
                raise RequestError(400, message, "repeated_header")

    @property
    def plain(self) -> bytes:
        """The body as it was before anybody packed it."""
        return self._plain or self._body

    def replace_body(self, body: bytes, headers: Headers) -> None:
        """Asks for something else in its place. `body` is not packed, whatever `headers` say."""
        self._body, self._plain = body, b""
        self.headers = [pair for pair in headers if pair[0] != b"content-encoding"]

    def forget_body(self) -> None:
        """It is not sent any more."""
        self._body = self._plain = b""
        self.parts.clear()

    def affinity(self, policy: str) -> bytes:
        """What it has in common with others that should go to the same backend, b"" if nothing."""
        if policy == "prefix_affinity":
            return affinity.prefix_key(self.plain)
        if policy == "session_affinity":
            return affinity.session_key(self.headers, self.plain)
        return b""

    def for_member(self, member: Member, model: str) -> tuple[bytes, bytes]:
        """Head and body as this backend gets them; `model` is what it is asked for. Raises RequestError if
        the model cannot be renamed."""
        headers, body, seen = self.headers, self._body, self.seen
        if model != self.model:
            content_type = seen.get(b"content-type", b"")
            body = request_body.with_model(self.plain, content_type, model)
            headers = [pair for pair in headers if pair[0] != b"content-encoding"]
        lines = heads.to_engine(headers, seen.get(b"connection", b""), self.trace)
        last = b"content-length: %d\r\nx-request-id: %b\r\n\r\n" % (len(body), self.request_id)
        return b"".join((b"POST ", member.prefix, self.target, member.head_rest, lines, last)), body
