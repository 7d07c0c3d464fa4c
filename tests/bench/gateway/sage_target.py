"""Starts sage's gateway as a target: a SAGE_HOME with one route, then `python -m gateway` in its place.

Nothing is switched off: what the gateway does by default is measured. API keys come from SAGE_API_KEYS.
Run as `python -m tests.bench.gateway.sage_target --home FOLDER --port N [--workers N] URL...`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sage_reconcile.model import codec
from sage_reconcile.model.routing import Backend, Route, RoutingTable

MODEL = "mock-model"
HOLD_S = 30.0
# What one replica takes at once: more than any run sends, so that admission counts and nobody waits.
MAX_CONCURRENT = 2048


def table(model: str, urls: Sequence[str]) -> RoutingTable:
    """One name, and a ready backend for each upstream."""
    backends = tuple(
        Backend(
            f"bench/mock#{number}@f:1",
            "bench",
            "mock",
            number,
            url,
            model,
            "llm",
            max_concurrent=MAX_CONCURRENT,
        )
        for number, url in enumerate(urls)
    )
    route = Route(model, "llm", tuple(sorted(backend.id for backend in backends)), hold=HOLD_S, stack="bench")
    return RoutingTable((route,), tuple(sorted(backends, key=lambda backend: backend.id)))


def publish(home: Path, made: RoutingTable) -> None:
    path = home / "routing" / "routing.json"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(codec.encode(made))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--port", required=True)
    parser.add_argument("--workers", default="1")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("urls", nargs="+", metavar="URL")
    options = parser.parse_args()
    publish(options.home, table(options.model, options.urls))
    command = [sys.executable, "-m", "gateway", "--home", str(options.home), "--port", options.port]
    os.execv(sys.executable, [*command, "--workers", options.workers])


if __name__ == "__main__":
    main()
