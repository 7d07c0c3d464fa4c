"""Replies that sage itself gives when a request cannot be answered: OpenAI-shaped, and marked as sage's."""

import difflib
import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from litestar.types import Send

from gateway.settings import MAX_BODY_MIB

NAMES_SHOWN = 40
# Of names that clients choose.
LENGTH_SHOWN = 128


class RequestError(Exception):
    """A request ends with this HTTP status; str() is the message that the client reads."""

    def __init__(self, status: int, message: str, code: str, **more: str) -> None:
        """`more`: `param` names the faulty field; any other name is a reply header (`_` stands for `-`)."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = more.pop("param", None)
        self.headers = {name.replace("_", "-"): value for name, value in more.items()}

    def payload(self) -> dict[str, dict[str, object]]:
        kind = _KINDS.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
        error: dict[str, object] = {
            "message": str(self),
            "type": kind,
            "param": self.param,
            "code": self.code,
            "src": "sage",
        }
        return {"error": error}

    def body(self) -> bytes:
        return json.dumps(self.payload(), ensure_ascii=False).encode()

    async def send_to(self, send: "Send") -> None:
        """Answers with this error; the response must not have begun."""
        body = self.body()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *((name.encode(), value.encode()) for name, value in self.headers.items()),
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})


_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


def shown(name: str) -> str:
    """A name that a client gave, as a message repeats it."""
    return name if len(name) <= LENGTH_SHOWN else f"{name[:LENGTH_SHOWN]}..."


def unknown_model(model: str, known: Iterable[str]) -> RequestError:
    """404 that lists what is served and guesses what was meant; another model is never used instead."""
    names = sorted(known)
    model = shown(model)
    close = difflib.get_close_matches(model, names, n=1)
    guess = f" Did you mean '{close[0]}'?" if close else ""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    listed = ", ".join(names[:NAMES_SHOWN]) + more if names else "none"
    message = f"The model '{model}' is not served here.{guess} Models served: {listed}."
    return RequestError(404, message, "model_not_found", param="model")


def missing_model() -> RequestError:
    """400 for a request that names no model."""
    message = "The request names no model: give the field 'model'; GET /v1/models lists the names."
    return RequestError(400, message, "missing_model", param="model")


def too_large(limit: int) -> RequestError:
    """413 for a body of more than `limit` bytes."""
    message = (
        f"The request body is larger than {limit >> 20} MiB: send less, or start the gateway with a higher "
        f"{MAX_BODY_MIB} in its environment."
    )
    return RequestError(413, message, "body_too_large")


def head_too_large(size: int, count: int) -> RequestError:
    """431 for a request line and headers of more than `size` bytes, or more than `count` of them."""
    message = f"The request line and headers are larger than {size >> 10} KiB, or more than {count}."
    return RequestError(431, message, "headers_too_large")


def line_full(model: str, size: int) -> RequestError:
    """429: as many wait already as may."""
    message = (
        f"Every engine of '{model}' is busy and {size} requests wait already. Try again later; "
        "`max_concurrent` and `routing.queue.size` of the stack file set how many are taken."
    )
    return RequestError(429, message, "queue_full", param="model", retry_after="1")


def waited_too_long(model: str, timeout: float) -> RequestError:
    """429 after `timeout` seconds in the line."""
    message = f"Every engine of '{model}' was busy for {timeout:g} s. Try again later."
    return RequestError(429, message, "queue_timeout", param="model", retry_after="5")


def hopeless_deadline(model: str) -> RequestError:
    """429: the request's own deadline passed before an engine had time for it."""
    message = f"No engine of '{model}' had time before the deadline that X-SLO-Deadline-Ms names."
    return RequestError(429, message, "deadline_passed", param="model", retry_after="1")


def engine_timeout(model: str, reason: str) -> RequestError:
    """504: engines were given up."""
    message = f"No engine of '{model}' answered in time ({reason}). `sage status` shows its engines."
    return RequestError(504, message, "engine_timeout", param="model")


def internal_error(request_id: str) -> RequestError:
    """500 for a defect of sage: its details belong into the log, not into the reply."""
    message = (
        f"sage failed at this request by a defect of its own; its log tells more (request {request_id})."
    )
    return RequestError(500, message, "internal_error")


def no_backend(model: str, held: float, reason: str) -> RequestError:
    """503 after `held` seconds in which no engine of the model could be reached."""
    waited = f" within {held:g} s" if held > 0 else ""
    why = f" ({reason})" if reason else ""
    message = f"No engine of '{model}' was ready{waited}{why}. Try again; `sage status` shows its engines."
    retry_after = str(min(30, max(1, math.ceil(held / 4))))
    return RequestError(503, message, "no_ready_backend", param="model", retry_after=retry_after)


def nobody_loads(model: str, stack: str) -> RequestError:
    """503: the engine is loaded on demand, and there is nobody who would do it."""
    message = (
        f"'{model}' is loaded when it is asked for, but nobody reconciles its stack '{stack}': run "
        "`sage watch FILE` with its stack file, or `sage gateway start --stack FILE`."
    )
    return RequestError(503, message, "not_reconciled", param="model", retry_after="30")


def engine_lost(model: str, times: int, reason: str) -> RequestError:
    """502: engines took the request and broke the connection before they answered."""
    message = (
        f"Engines of '{model}' closed the connection {times} times before answering this request ({reason}). "
        "The request itself may be what ends them; `sage logs` shows their last words."
    )
    return RequestError(502, message, "engine_lost", param="model")


def bad_reply(model: str, fault: str) -> RequestError:
    """502: an engine answered with what is not HTTP."""
    message = (
        f"An engine of '{model}' gave a reply that is not valid HTTP: {fault}. `sage logs` may tell why."
    )
    return RequestError(502, message, "bad_reply", param="model")


def stream_broken(model: str, reason: str) -> RequestError:
    """The event that ends a stream whose engine was lost after the first byte."""
    message = f"The engine of '{model}' was lost while it was answering ({reason}). Send the request again."
    return RequestError(502, message, "engine_lost", param="model")
