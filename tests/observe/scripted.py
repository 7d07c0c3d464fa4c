"""A server that answers each path as a test wants, in the test's own process, on a free port."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Scripted:
    """`replies` maps a path to (status, body); other paths get 404. `seen` holds (path, headers, body)."""

    replies: dict[str, tuple[int, Any]]
    seen: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def paths(self) -> list[str]:
        return [path for path, _, _ in self.seen]


HANGS = (0, None)


@contextmanager
def scripted(replies: dict[str, tuple[int, Any]]) -> Iterator[Scripted]:
    script = Scripted(replies)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def answer(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length", 0)))
            script.seen.append((self.path, dict(self.headers), json.loads(raw) if raw else None))
            reply = script.replies.get(self.path, (404, {"error": {"message": "no such path"}}))
            if reply == HANGS:
                script.released.wait()
                self.close_connection = True
                return
            status, body = reply
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = answer

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield script
    finally:
        script.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
