"""Writes the reference page of the stack file from its schema: `python -m sage_reconcile.stack.reference`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sage_reconcile.stack.jsonschema import stack_schema

_HEAD = """# Stack file reference

Generated from the schema by `python -m sage_reconcile.stack.reference`; do not edit.

An unknown key is an error, with the nearest known key named. Durations are written `30s`, `500ms`, `10m`,
`1h30m` or as a number of seconds; sizes `20GiB`, `500MiB` or `8GB`. `${env:NAME}` in any value is replaced
when the file is loaded, but in `env`, `api_key`, `gateway.api_keys`, the `key` of `gateway.keys` and the
`url` of `gateway.sessions`, where `${env:NAME}` and `${file:PATH}` are references to secrets that are read
only when a process is started.
`$${` is a literal `${`. Paths are relative to the file that holds them.
"""

_SECTIONS = (
    ("Top level", None, ""),
    ("engines[]", "Engine", "engines"),
    ("defaults", "Defaults", "Every field of `engines[]` but `name`; see there."),
    ("runtimes.NAME", "Runtime", ""),
    ("gateway", "Gateway", ""),
    ("gateway.keys[]", "GatewayKey", ""),
    ("lora[]", "Lora", ""),
    ("gateway.sessions", "Sessions", ""),
    ("health", "Health", ""),
    ("health.canary", "Canary", ""),
    ("restart", "Restart", ""),
    ("rollout", "Rollout", ""),
    ("routing", "Routing", ""),
    ("queue", "Queue", ""),
)


def reference() -> str:
    """The page as Markdown."""
    schema = stack_schema()
    parts = [_HEAD]
    for title, definition, note in _SECTIONS:
        section = schema["$defs"][definition] if definition else schema
        parts.append(f"\n## {title}\n\n{section['description']}\n")
        if definition == "Defaults":
            parts.append(f"\n{note}\n")
            continue
        parts.append("\n| field | value | default | meaning |\n|---|---|---|---|\n")
        parts += _rows(section)
    return "".join(parts)


def _rows(section: dict[str, Any]) -> Iterator[str]:
    required = section.get("required", [])
    names = sorted(section["properties"], key=lambda name: name not in required)
    for name in names:
        field = section["properties"][name]
        if name == "max_concurrent_requests":
            continue
        default = "required" if name in required else _default(field.get("default"))
        description = field.get("description", "").replace("|", "\\|")
        yield f"| `{name}` | {_kind(field)} | {default} | {description} |\n"


def _default(value: Any) -> str:
    if value is None or value in ([], {}, ""):
        return ""
    if isinstance(value, dict):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value}`"


def _kind(field: dict[str, Any]) -> str:
    """The values that a field takes, in words; the reference and null options are the same everywhere."""
    options = field.get("anyOf", [field])
    words = [_option(option) for option in options if not _is_common(option)]
    return " or ".join(dict.fromkeys(word for word in words if word))


def _is_common(option: dict[str, Any]) -> bool:
    return option.get("type") == "null" or option.get("pattern") == r"\$\{env:"


def _option(option: dict[str, Any]) -> str:
    if "$ref" in option:
        name = str(option["$ref"]).rpartition("/")[2].lower()
        return f"[map](#{name})" if name in {title for title, _, _ in _SECTIONS} else "map"
    if "const" in option:
        return f"`{option['const']}`"
    if "enum" in option:
        return ", ".join(f"`{value}`" for value in option["enum"])
    if option.get("type") == "array":
        return "list"
    if option.get("type") == "object":
        return "map"
    if "minimum" in option and "maximum" in option:
        return f"{option['type']}, {option['minimum']} to {option['maximum']}"
    if "minimum" in option:
        return f"{option['type']} from {option['minimum']}"
    kind = str(option.get("type"))
    return {"string": "text", "boolean": "`true`, `false`"}.get(kind, kind)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/stack-reference.md")
    target.write_text(reference(), "utf-8")
