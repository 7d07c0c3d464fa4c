"""One request to an embedding engine itself."""

import asyncio
import math
import time
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import httpx

from sage_reconcile import adhoc
from sage_reconcile.errors import BlockedError, PermanentError
from sage_reconcile.home import Home
from sage_reconcile.model.desired import Kind
from sage_reconcile.model.observed import Health, ObservedLaunch
from sage_reconcile.observe.look import LocalEyes
from sage_reconcile.stack.problems import did_you_mean

TIMEOUT = 60.0


def try_engine(engine: str | None, texts: Sequence[str]) -> dict[str, Any]:
    """What came: dimensions, seconds, and the cosine of each pair of texts.

    Raises PermanentError for an engine that there is not, BlockedError for one that does not answer.
    """
    launch = _chosen(engine)
    placement = launch.mark.placement
    body = {"model": launch.mark.model, "input": list(texts)}
    begin = time.monotonic()
    try:
        with httpx.Client(trust_env=False, timeout=TIMEOUT) as client:
            reply = client.post(f"{placement.url}/v1/embeddings", json=body)
        reply.raise_for_status()
        vectors = [one["embedding"] for one in reply.json()["data"]]
    except httpx.HTTPStatusError as error:
        told = error.response.text[:200]
        raise BlockedError(f"{launch.replica} answered {error.response.status_code}: {told}") from None
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        reason = str(error) or type(error).__name__
        raise BlockedError(f"{launch.replica} does not answer at {placement.url}: {reason}") from None
    return {
        "engine": str(launch.replica),
        "model": launch.mark.spec.model,
        "url": placement.url,
        "dimensions": len(vectors[0]),
        "seconds": round(time.monotonic() - begin, 4),
        "similarity": [
            (texts[a], texts[b], round(_cosine(vectors[a], vectors[b]), 4))
            for a, b in combinations(range(len(vectors)), 2)
        ],
    }


def _chosen(engine: str | None) -> ObservedLaunch:
    launches = asyncio.run(LocalEyes(Home.from_environ()).look()).launches
    known = {_id(one): one for one in launches if one.mark.spec.kind is Kind.EMBEDDING}
    ready = {name: one for name, one in known.items() if one.health is Health.READY}
    if engine is None and len(ready) == 1:
        return next(iter(ready.values()))
    if engine in ready:
        return ready[engine]
    if engine in known:
        raise BlockedError(f"{engine} is {known[engine].health}, not ready; see `sage llm logs {engine}`")
    listed = ", ".join(sorted(ready)) or "none; `sage embedding start MODEL` starts one"
    if engine is None:
        raise PermanentError(f"name the engine with --engine; ready are: {listed}")
    raise PermanentError(
        f"no embedding engine {engine}; {did_you_mean(engine, known) or f'ready are: {listed}'}"
    )


def _id(launch: ObservedLaunch) -> str:
    """As `sage llm engine list` names it."""
    replica = launch.replica
    of_stack = "" if replica.stack == adhoc.STACK else f"{replica.stack}/"
    return f"{of_stack}{replica.engine}{f'#{replica.replica}' if replica.replica else ''}"


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / ((math.hypot(*one) * math.hypot(*other)) or 1.0)
