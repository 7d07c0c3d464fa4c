"""Errors of the management API: OpenAI-shaped, by what the caller does next."""

import logging
from typing import Any

from litestar import Request, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException

from sage_reconcile.control.edits import ConflictError
from sage_reconcile.errors import BlockedError, ReconcileError, TransientError
from sage_reconcile.management.operations import TooManyError

logger = logging.getLogger("sage")

AnyRequest = Request[Any, Any, State]

KINDS = {403: "permission_error", 429: "rate_limit_error", 503: "service_unavailable_error"}


class ApiError(ReconcileError):
    """A request that is answered with this status."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


def fault(status: int, code: str, message: str, param: str | None = None) -> Response[Any]:
    kind = KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": param, "code": code, "src": "sage"}
    return Response({"error": error}, status_code=status)


def of_sage(_: AnyRequest, error: ReconcileError) -> Response[Any]:
    """409: something is in the way. 422: the same again gives the same. 503: may go away."""
    if isinstance(error, ApiError):
        return fault(error.status, error.code, str(error), error.param)
    if isinstance(error, TooManyError):
        return fault(429, "too_many_operations", str(error))
    if isinstance(error, ConflictError):
        return fault(409, "conflict", str(error))
    if isinstance(error, BlockedError):
        return fault(409, "blocked", str(error))
    if isinstance(error, TransientError):
        return fault(503, "try_again", str(error))
    return fault(422, "refused", str(error))


def of_request(_: AnyRequest, error: HTTPException) -> Response[Any]:
    """What the framework finds: a body of the wrong shape, a query that is no boolean."""
    if error.status_code in (404, 405):
        return fault(error.status_code, "not_found", "There is no such route; GET /v1/management lists them.")
    if error.status_code >= 500:
        return fault(error.status_code, "internal_error", "sage failed at this; the gateway's log tells more")
    return fault(400, "invalid_request", _told(error))


def _told(error: HTTPException) -> str:
    extra = error.extra if isinstance(error.extra, list) else []
    told = [
        f"{one.get('key', '')}: {one.get('message', '')}".removeprefix(": ")
        for one in extra
        if isinstance(one, dict)
    ]
    return "; ".join(told) or str(error.detail)


def of_defect(request: AnyRequest, error: Exception) -> Response[Any]:
    """A defect of sage: its details belong into the log."""
    if isinstance(error, RecursionError | UnicodeDecodeError):
        return fault(400, "invalid_request", "the body is not valid JSON")
    logger.error("%s %s failed by a defect of sage", request.method, request.url.path, exc_info=error)
    return fault(500, "internal_error", "sage failed at this by a defect of its own; its log tells more")
