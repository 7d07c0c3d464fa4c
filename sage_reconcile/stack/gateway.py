"""The gateway section of the stack file as pydantic models."""

from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from sage_reconcile.stack.fields import (
    Bool,
    Digest,
    Int,
    Name,
    Origins,
    Port,
    Secret,
    SessionsUrl,
    Text,
    wrong,
)
from sage_reconcile.stack.section import Section


class GatewayKey(Section):
    """A key that clients may send, and what it may. `sage gateway key` makes one."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["key"]}, {"required": ["sha256"]}]})

    name: Annotated[Name, Field(description="Unique; replies, metrics and logs name the key by it.")]
    key: Annotated[
        Secret | None, Field(description="Reference to the key itself. Exactly one of `key` and `sha256`.")
    ] = None
    sha256: Annotated[
        Digest | None, Field(description="The SHA-256 of the key: 64 hex digits in quotes.")
    ] = None
    models: Annotated[
        tuple[Text, ...],
        Field(
            description="Names that it may send as `model`; `*`, `?` and `[...]` as in file names. "
            "Default: every model."
        ),
    ] = ()
    requests_per_minute: Annotated[
        Int, Field(ge=0, description="Requests a minute, also all of them at once; 0 for no limit.")
    ] = 0
    tokens_per_minute: Annotated[
        Int, Field(ge=0, description="Tokens a minute, of prompts and answers together; 0 for no limit.")
    ] = 0
    max_concurrent: Annotated[Int, Field(ge=0, description="Requests in flight; 0 for no limit.")] = 0
    admin: Annotated[Bool, Field(description="Whether it may ask for /admin and /v1/management, too.")] = (
        False
    )

    @model_validator(mode="after")
    def _is_one_key(self) -> "GatewayKey":
        if self.key is None and self.sha256 is None:
            raise wrong("the key is missing", 'write key: "${env:NAME}", or sha256: and its digest')
        if self.key is not None and self.sha256 is not None:
            raise wrong("key and sha256 are both given", "remove one of the two")
        return self


class Sessions(Section):
    """Conversations that the gateway keeps, for chat requests with a `session_id`."""

    enabled: Annotated[Bool, Field(description="Whether there are any.")] = True
    url: Annotated[
        SessionsUrl | None,
        Field(
            description="The database: `postgresql://USER:${env:NAME}@HOST/DATABASE`, `sqlite:////PATH`, or "
            "a reference to such a URL. Default: SAGE_HOME/sage.db."
        ),
    ] = None
    max_turns: Annotated[
        Int, Field(ge=1, le=10_000, description="So many of the last turns go before a request at most.")
    ] = 200
    max_bytes: Annotated[
        Int, Field(ge=1, le=1 << 30, description="So many bytes of the last turns go before it at most.")
    ] = 1 << 20


class Gateway(Section):
    """Where `sage gateway start --stack` listens."""

    host: Annotated[Text, Field(description="Address to listen on; other than loopback needs keys.")] = (
        "127.0.0.1"
    )
    port: Annotated[Port, Field(description="Port to listen on.")] = 8000
    workers: Annotated[Int, Field(ge=1, le=256, description="Processes that share the port.")] = 1
    api_keys: Annotated[
        tuple[Secret, ...],
        Field(
            description="References to keys without a name or limits. Default, where there are no `keys` "
            "either: the keys of SAGE_API_KEYS."
        ),
    ] = ()
    keys: Annotated[
        tuple[GatewayKey, ...],
        Field(
            description="Keys with a name, and what each may. Every client needs a key where there is one."
        ),
    ] = ()
    cors_origins: Annotated[
        Origins,
        Field(
            description="Origins whose pages may use the gateway from a browser, or `*` alone. Default: none."
        ),
    ] = ()
    sessions: Annotated[Sessions | None, Field(description="Conversations that are kept.")] = None
