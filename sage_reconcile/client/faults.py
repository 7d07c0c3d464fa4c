"""What the openai package raises, sorted by what may be done about it, and told in words."""

import json
from typing import Any

import httpx

from sage_reconcile.client.discovery import access_denied, plain_reason, unreachable
from sage_reconcile.client.errors import (
    AccessDeniedError,
    EngineError,
    NoBackendError,
    RequestRejectedError,
    UnknownModelError,
)
from sage_reconcile.errors import ReconcileError

RETRY_AFTER_MAX_S = 300.0
# By name: the package changed its HTTP library between its versions 2 and 3, and these names stayed.
_NOT_CONNECTED = frozenset({"ConnectError", "ConnectTimeout"})


def sdk_faults() -> tuple[type[Exception], ...]:
    """What a call can raise; some faults of the HTTP library and the JSON parser pass through the package."""
    import openai

    return (openai.OpenAIError, httpx.HTTPError, json.JSONDecodeError, UnicodeDecodeError)


def is_refused(error: BaseException) -> bool:
    """Whether no connection was made, so that the request was not sent."""
    return type(error.__cause__).__name__ in _NOT_CONNECTED


def is_lost(error: BaseException) -> bool:
    """Whether the connection, or the engine behind the gateway, was lost before the answer began."""
    import openai

    if isinstance(error, openai.APITimeoutError | httpx.TimeoutException):
        return is_refused(error)
    is_broken = isinstance(error, openai.APIConnectionError | httpx.TransportError)
    return is_broken or (status_of(error) == 0 and getattr(error, "code", None) == "engine_lost")


def status_of(error: BaseException) -> int:
    """The HTTP status of the reply, 0 where there was none."""
    status = getattr(error, "status_code", 0)
    return status if isinstance(status, int) else 0


def is_unknown_model(error: BaseException) -> bool:
    return status_of(error) == 404 and getattr(error, "code", None) == "model_not_found"


def told(error: BaseException, url: str, model: str, timeout: float) -> ReconcileError:
    """The error that the caller gets for what `url` did with a request for `model`."""
    import openai

    if is_refused(error):
        return NoBackendError(unreachable(url, "", _cause(error)))
    if isinstance(error, openai.APITimeoutError | httpx.TimeoutException):
        return EngineError(
            f"{url} sent nothing for {timeout:g} s on a request for {model!r}; "
            "give create() a larger timeout=, or ask for less by max_tokens="
        )
    if is_lost(error):
        return EngineError(
            f"{url} closed the connection before it answered a request for {model!r} ({_cause(error)}); "
            "`sage status` and `sage logs` tell of its engines"
        )
    if status_of(error):
        return _told_status(error, url, model)
    if isinstance(error, openai.APIError) and error.body is not None:
        return EngineError(f"{url} broke off its answer for {model!r}: {error.message}")
    return EngineError(f"{url} answered a request for {model!r} with what is not OpenAI's JSON: {error}")


def _told_status(error: Any, url: str, model: str) -> ReconcileError:
    status = status_of(error)
    message = _message(error)
    said = f"{url} answered {status} to a request for {model!r}: {message}"
    if status in (401, 403):
        return AccessDeniedError(f"{access_denied(url, status)} ({message})", status)
    if is_unknown_model(error):
        return UnknownModelError(said)
    if status in (408, 429) or status >= 500:
        return EngineError(said, status, _retry_after(error.response.headers.get("retry-after")))
    return RequestRejectedError(said, status)


def _message(error: Any) -> str:
    """What the server says, without the wrapping of the package."""
    body = error.body
    if isinstance(body, dict):
        inner = body.get("message") or body.get("detail") or body.get("error")
        return str(inner or body)
    return str(body or error.message).strip()[:500]


def _retry_after(header: str | None) -> float:
    try:
        return min(max(float(header or 1.0), 0.0), RETRY_AFTER_MAX_S)
    except ValueError:
        return 1.0


def _cause(error: BaseException) -> str:
    return plain_reason(error.__cause__ or error)
