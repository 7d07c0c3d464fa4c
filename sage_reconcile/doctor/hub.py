"""Where models come from: the Hugging Face cache, and the hub behind it."""

import os
import socket
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from sage_reconcile.doctor.finding import Finding, fault, ok, warning
from sage_reconcile.doctor.host import hub_cache
from sage_reconcile.observe.deadline import Deadline

HUB = "https://huggingface.co"
SECONDS = 4.0
YES = frozenset({"1", "true", "yes", "on"})


def check_cache(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Whether downloads have somewhere to go."""
    cache = hub_cache(environ)
    there = cache
    while not there.exists() and there != there.parent:
        there = there.parent
    if os.access(there, os.W_OK | os.X_OK) and there.is_dir():
        made = "" if there == cache else ", made on first use"
        yield ok("model cache", f"{cache}{made}")
    else:
        hint = "set HF_HOME to a folder of your own"
        yield warning("model cache", f"{cache}: {there} is not writable: nothing can be downloaded", hint)


async def check_hub(environ: Mapping[str, str]) -> list[Finding]:
    """Whether the hub, or what HF_ENDPOINT names instead, can be reached; not asked where it is not used."""
    if environ.get("HF_HUB_OFFLINE", "").lower() in YES:
        return [ok("hub", "offline (HF_HUB_OFFLINE): models must be in the cache or in $SAGE_HOME/models")]
    endpoint = environ.get("HF_ENDPOINT") or HUB
    try:
        address = urlsplit(_proxy(environ, endpoint) or endpoint)
        port = address.port or (443 if address.scheme == "https" else 80)
    except ValueError:
        address, port = urlsplit(""), 0
    if address.scheme not in ("http", "https") or not address.hostname:
        return [fault("hub", f"HF_ENDPOINT is no URL: {endpoint}", f"write it as {HUB}")]
    host = address.hostname
    connect = Deadline(host, SECONDS, lambda: socket.create_connection((host, port), SECONDS).close())
    try:
        await connect()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        hint = "HF_ENDPOINT for a mirror, https_proxy for a proxy, or HF_HUB_OFFLINE=1 with models on disk"
        return [warning("hub", f"{host}:{port} cannot be reached: {reason}", hint)]
    return [ok("hub", f"{endpoint} can be reached")]


def _proxy(environ: Mapping[str, str], endpoint: str) -> str:
    name = f"{urlsplit(endpoint).scheme}_proxy"
    return environ.get(name) or environ.get(name.upper()) or environ.get("all_proxy") or ""
