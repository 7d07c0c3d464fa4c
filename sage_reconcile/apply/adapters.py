"""LoRA adapters come and go in a running engine, by vLLM's own paths."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sage_reconcile.apply.hands import Started
from sage_reconcile.errors import TransientError
from sage_reconcile.model.adapters import Adapter
from sage_reconcile.model.observed import ObservedLaunch

if TYPE_CHECKING:
    import httpx

Launched = Started | ObservedLaunch

REQUEST_S = 120.0
"""Seconds that an engine gets to read an adapter's weights."""

MESSAGE_LIMIT = 500


async def load(launch: Launched, adapter: Adapter) -> None:
    """Loads the adapter unless it is there; one of its name from elsewhere gives way.

    Raises TransientError.
    """
    what = f"{launch.mark.replica.short} did not load LoRA adapter {adapter.name} from {adapter.path}"
    if not await asyncio.to_thread(Path(adapter.path).is_dir):
        raise TransientError(f"{what}: the directory does not exist")
    there = await _there(launch, what)
    if there.get(adapter.name) == adapter.path:
        return
    if adapter.name in there:
        await _post(launch, "/v1/unload_lora_adapter", {"lora_name": adapter.name}, what)
    body = {"lora_name": adapter.name, "lora_path": adapter.path}
    await _post(launch, "/v1/load_lora_adapter", body, what)


async def unload(launch: Launched, adapter: Adapter) -> None:
    """Unloads the adapter if it is there. Raises TransientError."""
    what = f"{launch.mark.replica.short} did not unload LoRA adapter {adapter.name}"
    if adapter.name in await _there(launch, what):
        await _post(launch, "/v1/unload_lora_adapter", {"lora_name": adapter.name}, what)


async def _there(launch: Launched, what: str) -> dict[str, str]:
    """The paths of the loaded adapters by name."""
    reply = await _ask(launch, "GET", "/v1/models", None, what)
    entries = _json(reply).get("data")
    found = [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    return {str(one.get("id")): str(one.get("root")) for one in found if one.get("parent")}


async def _post(launch: Launched, path: str, body: dict[str, str], what: str) -> None:
    await _ask(launch, "POST", path, body, what)


async def _ask(
    launch: Launched, method: str, path: str, body: dict[str, str] | None, what: str
) -> "httpx.Response":
    import httpx

    url = f"{launch.mark.placement.url}{path}"
    try:
        async with httpx.AsyncClient(timeout=REQUEST_S, trust_env=False) as client:
            reply = await client.request(method, url, json=body)
    except httpx.HTTPError as error:
        raise TransientError(f"{what}: {path}: {error or type(error).__name__}") from error
    if not reply.is_success:
        raise TransientError(f"{what}: {_words(reply)}")
    return reply


def _words(reply: "httpx.Response") -> str:
    """The engine's own words on one line: {"error": {"message"}}, an older {"message"}, or the text."""
    body = _json(reply)
    error = body.get("error", body)
    said = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    words = " ".join(str(said or reply.text).split())[:MESSAGE_LIMIT]
    return f"it answered {reply.status_code}" + (f": {words}" if words else "")


def _json(reply: "httpx.Response") -> dict[str, Any]:
    try:
        body = reply.json()
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}
