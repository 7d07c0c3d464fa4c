"""Engines that run elsewhere: which addresses may be routed to, and whether the model answers there."""

import ipaddress
import socket
from urllib.parse import urlsplit

from sage_reconcile.control.entries import EngineOptions, EntryOptions
from sage_reconcile.errors import PermanentError
from sage_reconcile.observe.probes import list_models

ASK_SECONDS = 5.0

# Where clouds tell machines their credentials, beside the link-local range.
METADATA = frozenset(map(ipaddress.ip_address, ("100.100.100.200", "fd00:ec2::254", "168.63.129.16")))


def checked_url(url: str) -> str:
    """The address without a trailing slash or /v1.

    Raises PermanentError for one that no engine has, and for one that would make the gateway a door to what
    only this machine may ask: link-local and metadata addresses. A name is refused if one of its addresses
    is.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise PermanentError(f"url: {url!r} is no address: {error}") from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise PermanentError(f"url: write it as http://HOST:PORT or https://HOST, not {url!r}")
    if parts.username is not None or parts.password is not None:
        raise PermanentError("url: no user and password; `api_key` of a stack file refers to a key")
    for address in _addresses(host, port or (443 if parts.scheme == "https" else 80)):
        if reason := _refused(address):
            raise PermanentError(f"url: {host} is {address}, {reason}: no engine is served there")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise PermanentError(f"url: {host} cannot be found: {why}") from None
    return sorted({str(address[0]) for *_, address in found})


def _refused(text: str) -> str:
    address = ipaddress.ip_address(text.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    if address in METADATA or address.is_link_local:
        return "a link-local or metadata address"
    if address.is_multicast or address.is_unspecified or address.is_reserved:
        return "not the address of one machine"
    return ""


def external_fields(url: str, options: EngineOptions) -> EntryOptions:
    """The options of an external engine at this address."""
    fields: EntryOptions = {**options, "runtime": "external", "url": checked_url(url)}
    return fields


async def require_model(url: str, model: str) -> None:
    """Raises PermanentError where nothing answers, or something that lists its models and not this one."""
    status, models = await list_models(url, ASK_SECONDS, {})
    if not status:
        raise PermanentError(f"nothing answers at {url}/v1/models: check the address, and that it runs")
    names = [str(entry.get("id")) for entry in models]
    if status == 200 and names and model not in names:
        raise PermanentError(f"{url} does not serve {model}; it serves: {', '.join(names[:10])}")
