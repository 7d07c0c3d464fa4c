"""What differs between two values, in words: "model: A -> B", "args.max-model-len: 2048 -> 4096"."""

from collections.abc import Iterator

from sage_reconcile.model import codec
from sage_reconcile.model.desired import LaunchSpec, LiveSpec, RouteSpec
from sage_reconcile.model.routing import RoutingTable

# Maps are stored as sorted pairs, so that values are hashable and their JSON has one form.
_PAIRS = ("args", "env", "metadata")


def differences(old: LaunchSpec | LiveSpec, new: LaunchSpec | LiveSpec) -> tuple[str, ...]:
    """Every field that differs, nested ones by their path, sorted. Secrets are references in both values."""
    before, after = _flat(codec.to_plain(old)), _flat(codec.to_plain(new))
    keys = sorted(before.keys() | after.keys())
    return tuple(
        f"{key}: {_word(before, key)} -> {_word(after, key)}"
        for key in keys
        if _word(before, key) != _word(after, key)
    )


def route_differences(table: RoutingTable, backend: str, wanted: RouteSpec) -> tuple[str, ...]:
    """What the published table says about `backend` and the file does not; () when it is not in there."""
    entry = next((b for b in table.backends if b.id == backend), None)
    routes = [route for route in table.routes if backend in route.backends]
    if entry is None or not routes:
        return ()
    names = tuple(route.name for route in routes)
    changes = []
    if names != wanted.names:
        changes.append(f"names: {', '.join(names)} -> {', '.join(wanted.names)}")
    for field, is_, shall in (
        ("weight", entry.weight, wanted.weight),
        ("max_concurrent", entry.max_concurrent, wanted.max_concurrent),
    ):
        if is_ != shall:
            changes.append(f"{field}: {is_} -> {shall}")
    return tuple(changes)


def _flat(value: object) -> dict[str, object]:
    return dict(_walk("", value))


def _walk(path: str, value: object) -> Iterator[tuple[str, object]]:
    if path in _PAIRS and isinstance(value, list | tuple):
        value = dict(value)
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _walk(f"{path}.{key}" if path else key, item)
    else:
        yield path, value


def _word(values: dict[str, object], key: str) -> str:
    value = values.get(key)
    if value is None or value in ([], ()):
        return "(none)"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
