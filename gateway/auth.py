"""Where the gateway may listen without asking for a key."""

import ipaddress

from gateway.keys import Keys
from sage_reconcile.errors import BlockedError


def check_listen(host: str, keys: Keys) -> None:
    """Raises BlockedError if the gateway would serve other machines without asking for a key."""
    if not keys and not _is_loopback(host):
        raise BlockedError(
            f"the gateway does not listen on {host} without API keys, as anybody could use it: "
            "set SAGE_API_KEYS, give --api-key-file, list keys in gateway.keys or references in "
            "gateway.api_keys of the stack file (--stack), or listen on 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
