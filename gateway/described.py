"""What the OpenAPI document tells of bodies that the framework does not read, and of errors."""

from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import (
    OpenAPIFormat,
    OpenAPIMediaType,
    OpenAPIType,
    Operation,
    RequestBody,
    Schema,
)


class ErrorDetail(msgspec.Struct):
    """`src` is there in errors of sage's own, `code` is for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | int | None = None
    src: str | None = None


class ErrorBody(msgspec.Struct):
    """Every error, in the shape that OpenAI clients know."""

    error: ErrorDetail


_ERRORS = {
    400: "The request makes no sense",
    401: "No API key, or one that is not known",
    403: "Not for this API key",
    404: "There is no such model or session",
    413: "The body is too large",
    415: "The body is packed in a way that is not taken",
    429: "Over a limit of the key, or all are busy",
    501: "Not part of this gateway",
    502: "Engines broke the connection, or did not answer in HTTP",
    503: "No engine of the model was ready, or the database of sessions is not to be had",
    504: "No engine answered in time",
}


def errors(*statuses: int) -> dict[int, ResponseSpec]:
    """How the document describes replies with these statuses."""
    return {
        status: ResponseSpec(ErrorBody, description=_ERRORS[status], generate_examples=False)
        for status in statuses
    }


@dataclass
class JsonToEngine(Operation):
    """A JSON body, of which only the model is read here."""

    content_type: ClassVar[str] = "application/json"
    more: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        model = Schema(type=OpenAPIType.STRING, min_length=1, description="GET /v1/models lists the names")
        schema = Schema(
            type=OpenAPIType.OBJECT,
            properties={"model": model, **self.more},
            required=["model", *self.more],
            additional_properties=True,
        )
        self.request_body = RequestBody({self.content_type: OpenAPIMediaType(schema=schema)}, required=True)


@dataclass
class FormToEngine(JsonToEngine):
    """A form with a file."""

    content_type: ClassVar[str] = "multipart/form-data"
    more: ClassVar[dict[str, Any]] = {"file": Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)}
