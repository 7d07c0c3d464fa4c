"""API keys: whom a request is from, which models and paths are open to it, and how much of them."""

import hashlib
import hmac
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import translate

from gateway.errors import NAMES_SHOWN, RequestError, shown
from gateway.keysource import KeyEntry, entries
from gateway.limits import SLACK_S, Bucket, share

OPEN_PATHS = frozenset({"/health"})
# Whatever begins so. Too many rather than too few: a path beside them that nobody serves is 404 for an admin.
ADMIN_PATHS = ("/admin", "/v1/management")

# Names of models come from clients: what is remembered of them is bounded.
MODELS_KNOWN = 1024
MODEL_LENGTH_KNOWN = 256


class Key:
    """One key. `models` are the names and patterns that it may ask for, empty for all; limits are those of
    the whole gateway, 0 for none. `in_flight`, `requests`, `tokens` and `refused` are this worker's counters.
    """

    __slots__ = (
        "_exact",
        "_has_limits",
        "_known",
        "_most_in_flight",
        "_patterns",
        "_request_bucket",
        "_token_bucket",
        "_workers",
        "digest",
        "in_flight",
        "is_admin",
        "max_concurrent",
        "models",
        "name",
        "refused",
        "requests",
        "requests_per_minute",
        "tokens",
        "tokens_per_minute",
    )

    def __init__(self, entry: KeyEntry, workers: int = 1) -> None:
        """`workers` processes share the port, and each of them counts by itself."""
        self.name = entry.name
        self.digest = bytes.fromhex(entry.sha256)
        self.is_admin = entry.admin
        self.models = entry.models
        self.requests_per_minute = entry.requests_per_minute
        self.tokens_per_minute = entry.tokens_per_minute
        self.max_concurrent = entry.max_concurrent
        self.in_flight = self.requests = self.tokens = self.refused = 0
        self._workers = workers
        self._exact = frozenset(entry.models)
        patterns = [translate(model) for model in entry.models if any(sign in model for sign in "*?[")]
        self._patterns = re.compile("|".join(patterns)) if patterns else None
        self._known: dict[str, bool] = {}
        self._has_limits = bool(entry.requests_per_minute or entry.tokens_per_minute or entry.max_concurrent)
        self._most_in_flight = share(entry.max_concurrent, workers)
        self._request_bucket = _bucket(entry.requests_per_minute, workers)
        self._token_bucket = _bucket(entry.tokens_per_minute, workers)

    def may_use(self, model: str) -> bool:
        """Whether the key's list has this model name, as clients send it."""
        if model in self._exact or not self._exact:
            return True
        if self._patterns is None:
            return False
        is_allowed = self._known.get(model)
        if is_allowed is None:
            is_allowed = self._patterns.match(model) is not None
            if len(model) <= MODEL_LENGTH_KNOWN:
                if len(self._known) >= MODELS_KNOWN:
                    self._known.clear()
                self._known[model] = is_allowed
        return is_allowed

    def admit(self, model: str, tokens: int, now: float) -> RequestError | None:
        """Why a request may not begin, or None: then it has begun, `tokens` are reserved, and `finish` ends
        it. `tokens` is what it will use at most, as far as known; `now` is monotonic seconds.
        """
        if self.models and not self.may_use(model):
            self.refused += 1
            return self._not_allowed(model)
        if self._has_limits:
            refused = self._over_limit(tokens, now)
            if refused is not None:
                self.refused += 1
                return refused
        self.in_flight += 1
        self.requests += 1
        return None

    def finish(self, reserved: int, used: int, now: float) -> None:
        """Ends a request that was admitted with `reserved` tokens and has used `used`, 0 if none reached an
        engine. What it used beyond, later requests wait for.
        """
        self.in_flight -= 1
        self.tokens += used
        if self._token_bucket is not None and used != reserved:
            self._token_bucket.take(used - reserved, now)

    def _over_limit(self, tokens: int, now: float) -> RequestError | None:
        """Takes from the buckets, if they all have enough; else from none of them."""
        if self._most_in_flight and self.in_flight >= self._most_in_flight:
            return self._too_many()
        of_requests, of_tokens = self._request_bucket, self._token_bucket
        request_wait = of_requests.wait(1, now) if of_requests is not None else 0.0
        token_wait = of_tokens.wait(tokens, now) if of_tokens is not None else 0.0
        if request_wait > SLACK_S or token_wait > SLACK_S:
            return self._rate_limited(tokens, request_wait, token_wait)
        if of_requests is not None:
            of_requests.take(1, now)
        if of_tokens is not None:
            of_tokens.take(tokens, now)
        return None

    def _not_allowed(self, model: str) -> RequestError:
        more = len(self.models) - NAMES_SHOWN
        allowed = ", ".join(self.models[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
        message = f"The API key '{self.name}' may not use the model '{shown(model)}'. Allowed: {allowed}."
        return RequestError(403, message, "model_not_allowed", param="model")

    def _too_many(self) -> RequestError:
        limit = self._limit(self.max_concurrent, self._most_in_flight)
        message = f"The API key '{self.name}' has as many requests in flight as it may: {limit}."
        return RequestError(429, message, "too_many_concurrent")

    def _rate_limited(self, tokens: int, request_wait: float, token_wait: float) -> RequestError:
        request_size = self._request_bucket.size if self._request_bucket else 0
        token_size = self._token_bucket.size if self._token_bucket else 0
        if token_wait == math.inf:
            limit = self._limit(self.tokens_per_minute, token_size)
            message = (
                f"This request may take {tokens} tokens, and the API key '{self.name}' may take {limit} a "
                "minute: waiting does not help, ask for fewer (max_tokens)."
            )
            return RequestError(429, message, "rate_limited", x_should_retry="false")
        if token_wait > request_wait:
            what, limit = "tokens", self._limit(self.tokens_per_minute, token_size)
        else:
            what, limit = "requests", self._limit(self.requests_per_minute, request_size)
        seconds = max(1, math.ceil(max(request_wait, token_wait) - SLACK_S / 2))
        message = (
            f"The API key '{self.name}' has used up its {what}: {limit} a minute. Try again in {seconds} s."
        )
        return RequestError(429, message, "rate_limited", retry_after=str(seconds))

    def _limit(self, limit: int, of_worker: int) -> str:
        return (
            str(limit) if self._workers == 1 else f"{limit}, {of_worker} in each of {self._workers} workers"
        )


class Keys:
    """All keys, found by their digests. Falsy when there are none; of equal keys the first counts."""

    __slots__ = ("_by_digest", "has_admin")

    def __init__(self, keys: Iterable[Key]) -> None:
        self._by_digest: dict[bytes, Key] = {}
        for key in keys:
            self._by_digest.setdefault(key.digest, key)
        self.has_admin = any(key.is_admin for key in self)

    def __bool__(self) -> bool:
        return bool(self._by_digest)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._by_digest.values())

    def find(self, authorization: bytes, api_key: bytes) -> Key | None:
        """The key that was sent. `authorization` is the header "Bearer KEY"; `api_key` the x-api-key that
        Anthropic clients send.
        """
        scheme, _, token = authorization.partition(b" ")
        given = token.strip() if scheme.lower() == b"bearer" else api_key
        if not given:
            return None
        # How long a look into a dictionary takes may tell how much of a digest is right. Nobody can use that:
        # to come nearer to a digest one would have to choose what the digest of a guess begins with, and
        # SHA-256 lets nobody choose. The key itself is compared with nothing.
        digest = hashlib.sha256(given).digest()
        key = self._by_digest.get(digest)
        return key if key is not None and hmac.compare_digest(key.digest, digest) else None


def load_keys(environ: Mapping[str, str], key_file: str, workers: int = 1) -> Keys:
    """The keys of the environment and of `key_file` ("" for none), for one of so many workers.

    Each worker counts by itself, so each has its share of a limit: rounded up, and at least 1. Raises
    PermanentError as `entries` does.
    """
    return Keys(Key(entry, workers) for entry in entries(environ, key_file))


def refusal(keys: Keys, path: str, key: Key | None) -> RequestError | None:
    """Why a request with this key (None: with none of them) may not have this path; None if it may.

    `path` is the very text that the request is routed by: another spelling of it would be another path.
    """
    if not keys or path in OPEN_PATHS:
        return None
    if key is None:
        message = "This gateway needs an API key: send the header 'Authorization: Bearer KEY'."
        return RequestError(401, message, "invalid_api_key", www_authenticate="Bearer")
    if key.is_admin or not path.startswith(ADMIN_PATHS):
        return None
    message = f"{path} needs an admin key, and '{key.name}' is none."
    if not keys.has_admin:
        message += (
            " This gateway has no admin key yet: make one by `sage gateway key` and give it `admin: true` in "
            "gateway.keys of the stack file, or set SAGE_ADMIN_API_KEYS, and restart the gateway."
        )
    return RequestError(403, message, "admin_key_required")


def open_names(names: Iterable[str], key: Key | None) -> list[str]:
    """Those of the model names that a key may use; all of them where there are no keys."""
    return [name for name in names if key is None or key.may_use(name)]


def _bucket(limit: int, workers: int) -> Bucket | None:
    return Bucket(share(limit, workers)) if limit else None
