"""A gateway at a port of choice that serves models of both kinds, and an engine that lists what it is to."""

from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from sage_reconcile.model import codec
from tests.gateway.world import Gateway, RecordingEngine, backend, table, wait_for


class Service(Gateway):
    """A Gateway that the client talks to."""

    chat_url = ""
    embedding_url = ""

    def __init__(self, home: Path, port: int | None = None, environ: dict[str, str] | None = None) -> None:
        chosen = () if port is None else ("--port", str(port))
        super().__init__(home, *chosen, environ=environ)
        if port is not None:
            self.client.close()
            self.port, self.url = port, f"http://127.0.0.1:{port}"
            self.client = type(self.client)(base_url=self.url, trust_env=False)

    def publish(self, models: list[tuple[str, str, str, str]]) -> None:
        """Serves these (model, kind, engine URL, state) and nothing else, once this returns."""
        made = table(
            {
                model: [backend(url, f"{model}#0", state, model, kind=kind)]
                for model, kind, url, state in models
            }
        )
        kinds = {model: kind for model, kind, _, _ in models}
        routes = tuple(replace(route, kind=kinds[route.name]) for route in made.routes)
        digest = self.write(codec.encode(replace(made, routes=routes)))
        wait_for(lambda: self.table()["digest"] == digest, "the gateway serves by the new table")

    def serve_usual(self) -> None:
        chat = ("fake", "llm", self.chat_url, "ready")
        self.publish([chat, ("vec", "embedding", self.embedding_url, "ready")])


class ListingEngine(RecordingEngine):
    """A RecordingEngine that answers every GET with the JSON `listed`."""

    listed = b""

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        engine, recording = self, super()._handler()

        class Handler(recording):  # type: ignore[misc, valid-type]
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(engine.listed)))
                self.end_headers()
                self.wfile.write(engine.listed)

        return Handler
