"""What a client was given, by arguments and by environment variables."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from sage_reconcile.errors import PermanentError
from sage_reconcile.model.desired import Kind

URL_VARIABLE = "SAGE_UNIFIED_BASE_URL"
DEFAULT_GATEWAY_PORT = 8000


@dataclass(frozen=True, slots=True)
class Settings:
    """`url` is the one place to ask, given by `url_source`; "" leaves it to discovery. URLs have no `/v1`.

    `timeout` is in seconds. `models` are the default models that were given, by kind.
    """

    url: str
    url_source: str
    gateway_url: str
    api_key: str = field(repr=False)
    timeout: float
    models: Mapping[Kind, str]

    @classmethod
    def of(
        cls,
        environ: Mapping[str, str],
        url: str | None,
        api_key: str | None,
        models: Mapping[Kind, str | None],
        timeout: float,
    ) -> "Settings":
        """Arguments first, then the environment. Raises PermanentError for a value that cannot be."""
        if not timeout > 0:
            raise PermanentError(f"timeout must be more than 0 seconds, not {timeout}")
        source = "control_plane_url" if url else URL_VARIABLE
        given = url or environ.get(URL_VARIABLE, "")
        chosen = {Kind.LLM: environ.get("SAGE_UNIFIED_MODEL", ""), Kind.EMBEDDING: ""}
        chosen |= {kind: name for kind, name in models.items() if name}
        return cls(
            url=_checked(given, source) if given else "",
            url_source=source if given else "",
            gateway_url=_gateway_url(environ),
            api_key=_checked_key(api_key or environ.get("SAGE_UNIFIED_API_KEY", "")),
            timeout=timeout,
            models={kind: name for kind, name in chosen.items() if name},
        )


def is_loopback(url: str) -> bool:
    """Whether the URL is of this machine, so that no proxy of the environment leads there."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _checked(url: str, source: str) -> str:
    try:
        parts = urlsplit(url.strip())
        is_url = parts.scheme in ("http", "https") and bool(httpx.URL(url.strip()).host) and parts.port != 0
    except (ValueError, httpx.InvalidURL):
        is_url = False
    if not is_url:
        raise PermanentError(f"{source}: {url!r} is not a URL; write it like http://127.0.0.1:8000")
    if parts.username or parts.password:
        raise PermanentError(f"{source}: the URL carries a user name or password; pass api_key= instead")
    if parts.query or parts.fragment:
        raise PermanentError(f"{source}: {url!r} must end with its path; leave out what follows")
    return url.strip().rstrip("/").removesuffix("/v1").rstrip("/")


def _checked_key(key: str) -> str:
    key = key.strip()
    if not key.isascii() or not key.isprintable():
        raise PermanentError(
            "the API key has a character that no HTTP header can carry; check where it is from"
        )
    return key


def _gateway_url(environ: Mapping[str, str]) -> str:
    port = environ.get("SAGE_GATEWAY_PORT") or str(DEFAULT_GATEWAY_PORT)
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise PermanentError(f"SAGE_GATEWAY_PORT: {port!r} is not a port; give a number from 1 to 65535")
    host = environ.get("SAGE_GATEWAY_HOST") or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
