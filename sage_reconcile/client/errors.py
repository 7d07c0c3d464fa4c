"""What a request can end with, by what the caller does next; `status` is HTTP's, 0 without a reply."""

from sage_reconcile.errors import PermanentError, TransientError


class NoBackendError(TransientError):
    """Nothing that serves models was found, or what was given cannot be reached."""


class UnknownModelError(PermanentError):
    """The model is not served, or no model of the asked kind is."""

    status = 404


class AccessDeniedError(PermanentError):
    """The API key is missing or not one of the gateway's."""

    def __init__(self, message: str, status: int = 401) -> None:
        self.status = status
        super().__init__(message)


class RequestRejectedError(PermanentError):
    """The request itself is at fault: a parameter, a prompt that is too long."""

    def __init__(self, message: str, status: int) -> None:
        self.status = status
        super().__init__(message)


class EngineError(TransientError):
    """The engine failed, was lost, is overloaded or took too long; `delay` follows its Retry-After."""

    def __init__(self, message: str, status: int = 0, delay: float = 1.0) -> None:
        self.status = status
        super().__init__(message, delay)
