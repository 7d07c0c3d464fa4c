"""JSON schemas of the stack file and of the routing table, for editors, CI and other programs."""

import json
from typing import Any

import msgspec
from pydantic.json_schema import GenerateJsonSchema

from sage_reconcile.model.routing import RoutingTable
from sage_reconcile.stack.programs import VERSION_SCHEMA
from sage_reconcile.stack.schema import Engine, Stack

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE = {"type": "string", "pattern": r"\$\{env:"}
_KEYWORDS = {"ge": "minimum", "le": "maximum"}
_NUMERIC = {"integer", "number", "boolean"}


def stack_schema() -> dict[str, Any]:
    """The schema of a stack file. Any value may be `${env:NAME}`, or null for a field not given."""
    schema = Stack.model_json_schema(schema_generator=_Generator, mode="validation")
    _accept_synonym(schema["$defs"])
    _accept_short_runtimes(schema)
    for section in [schema, *schema["$defs"].values()]:
        required = section.get("required", [])
        properties = section.get("properties", {})
        for name, value in properties.items():
            properties[name] = _widen(value, name in required)
    return {"$schema": _DIALECT, **schema, "title": "sage stack file"}


def routing_schema() -> dict[str, Any]:
    """The schema of routing.json, which the gateway reads."""
    (schema,), components = msgspec.json.schema_components((RoutingTable,), ref_template="#/$defs/{name}")
    return {"$schema": _DIALECT, **schema, "$defs": components, "title": "sage routing table"}


def schema_files() -> dict[str, str]:
    """The text of each schema file by its name."""
    return {
        "stack.schema.json": _text(stack_schema()),
        "routing.schema.json": _text(routing_schema()),
    }


class _Generator(GenerateJsonSchema):
    """Pydantic's schema without the noise: no generated titles."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _accept_synonym(definitions: dict[str, Any]) -> None:
    for name in (Engine.__name__, "Defaults"):
        properties = definitions[name]["properties"]
        properties["max_concurrent_requests"] = dict(properties["max_concurrent"])


def _accept_short_runtimes(schema: dict[str, Any]) -> None:
    """A version alone; and no `kind` where the name of the runtime says it."""
    runtimes = schema["properties"]["runtimes"]
    runtimes["additionalProperties"] = {"anyOf": [runtimes["additionalProperties"], VERSION_SCHEMA]}
    schema["$defs"]["Runtime"].pop("required")


def _widen(value: dict[str, Any], is_required: bool) -> dict[str, Any]:
    """Accept what loading accepts besides the type itself: references where they become numbers, and null."""
    options = value.pop("anyOf", None)
    keep = {key: value.pop(key) for key in ("description", "default") if key in value}
    options = [
        {_KEYWORDS.get(key, key): item for key, item in option.items()} for option in options or [value]
    ]
    if any(option.get("type") in _NUMERIC for option in options) and not any(
        option.get("type") == "string" and "pattern" not in option for option in options
    ):
        options = [*options, _REFERENCE]
    if not is_required and {"type": "null"} not in options:
        options = [*options, {"type": "null"}]
    return {**keep, **(options[0] if len(options) == 1 else {"anyOf": options})}


def _text(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
