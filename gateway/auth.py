"""API keys of the gateway: who may ask, and where it may listen without any."""

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from pathlib import Path

from sage_reconcile.errors import BlockedError, PermanentError

OPEN_PATHS = frozenset({"/health"})


class Keys:
    """A set of keys, kept as digests. Falsy when there are none."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple({hashlib.sha256(key.encode()).digest() for key in keys})

    def __bool__(self) -> bool:
        return bool(self._digests)

    def allow(self, authorization: bytes, api_key: bytes) -> bool:
        """`authorization` is the header "Bearer KEY"; `api_key` the x-api-key that Anthropic clients send."""
        scheme, _, token = authorization.partition(b" ")
        given = token.strip() if scheme.lower() == b"bearer" else api_key
        digest = hashlib.sha256(given).digest()
        # Every key is compared: the time taken says nothing about which one was close.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def load_keys(environ: Mapping[str, str], key_file: str) -> Keys:
    """Keys of SAGE_API_KEYS (comma separated) and of the file (one a line, # begins a comment line).

    Raises PermanentError if the file cannot be read or holds no key: closed, not open, by mistake.
    """
    keys = [key.strip() for key in environ.get("SAGE_API_KEYS", "").split(",") if key.strip()]
    if key_file:
        try:
            lines = Path(key_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise PermanentError(f"cannot read the API key file {key_file}: {reason}") from error
        of_file = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not of_file:
            raise PermanentError(f"the API key file {key_file} holds no key: write one key a line")
        keys += of_file
    return Keys(keys)


def check_listen(host: str, keys: Keys) -> None:
    """Raises BlockedError if the gateway would serve other machines without asking for a key."""
    if not keys and not _is_loopback(host):
        raise BlockedError(
            f"the gateway does not listen on {host} without API keys, as anybody could use it: "
            "set SAGE_API_KEYS, give --api-key-file, list references in gateway.api_keys of the stack file "
            "(--stack), or listen on 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
