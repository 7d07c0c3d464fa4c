"""A tiny real hub: the few routes of the Hugging Face hub that its own client asks for."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

MODEL = "org/tiny"
COMMITS = {"main": "a" * 40, "v1": "b" * 40}
FILES = {
    "config.json": b'{"architectures": ["TinyForCausalLM"], "dtype": "float32"}',
    "weights.bin": b"x" * 100_000,
}


class Hub:
    """What it was asked, and how it misbehaves: `cut` bodies end after so many bytes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[tuple[str, str, str]] = []
        self.cut: int | None = None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.hub.asked.append((self.command, path, self.headers.get("range", "")))
        if path == "/api/models":
            search = parse_qs(urlsplit(self.path).query).get("search", [""])[0]
            info = {"id": MODEL, "modelId": MODEL, "downloads": 1234, "pipeline_tag": "text-generation"}
            info["lastModified"] = "2026-01-02T03:04:05.000Z"
            self._json([info] if search in MODEL else [])
        elif path.startswith("/api/models/org/gated"):
            self._error(403, "GatedRepo")
        elif path.startswith(f"/api/models/{MODEL}/"):
            self._model(path.split("/")[5:])
        elif path.startswith(f"/{MODEL}/resolve/"):
            self._file(*path.split("/")[4:6])
        else:
            self._error(404, "RepoNotFound")

    def _model(self, words: list[str]) -> None:
        commit = COMMITS.get(words[1]) or words[1]
        if commit not in COMMITS.values():
            self._error(404, "RevisionNotFound")
        elif words[0] == "tree":
            self._json(
                [{"type": "file", "path": n, "size": len(d), "oid": _oid(d)} for n, d in FILES.items()]
            )
        else:
            files = [{"rfilename": name, "size": len(data)} for name, data in FILES.items()]
            self._json({"id": MODEL, "sha": commit, "siblings": files, "private": False, "tags": []})

    def _file(self, revision: str, name: str) -> None:
        data = FILES[name]
        begin = int(self.headers.get("range", "bytes=0-")[6:].partition("-")[0])
        body = data[begin:]
        self.send_response(206 if begin else 200)
        self.send_header("etag", f'"{_oid(data)}"')
        self.send_header("x-repo-commit", COMMITS.get(revision, revision))
        self.send_header("content-length", str(len(body)))
        if begin:
            self.send_header("content-range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: self.hub.cut])
            self.close_connection = self.hub.cut is not None

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("x-error-code", code)
        self.send_header("content-length", "0")
        self.end_headers()


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    Handler.hub = hub
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
