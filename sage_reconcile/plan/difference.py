"""What differs between two values, in words: "model: A -> B", "args.max-model-len: 2048 -> 4096"."""

from collections.abc import Iterator

from sage_reconcile.model import codec
from sage_reconcile.model.desired import LaunchSpec, LiveSpec, RouteSpec
from sage_reconcile.model.routing import Route, RoutingTable
from sage_reconcile.plan.names import Names

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


def route_differences(table: RoutingTable, backend: str, wanted: RouteSpec, names: Names) -> tuple[str, ...]:
    """What the published table says about `backend` and the file does not; () when it is not in there.

    `names` are those that lead to the engine, which may be fewer than the file asks for.
    """
    entry = next((b for b in table.backends if b.id == backend), None)
    routes = [route for route in table.routes if backend in route.backends and not route.model]
    if entry is None or not (routes or names.given):
        return ()
    published = tuple(sorted(route.name for route in routes))
    found = [
        change("names", ", ".join(published), ", ".join(names.given)),
        change("weight", entry.weight, wanted.weight),
        change("max_concurrent", entry.max_concurrent, wanted.max_concurrent),
    ]
    for route in routes:
        if route.name in names.owned:
            found += _setting_changes(route, wanted)
    return tuple(dict.fromkeys(change for change in found if change))


def _setting_changes(route: Route, wanted: RouteSpec) -> list[str]:
    """What belongs to a route as a whole, by the names that the file gives it."""
    return [
        change("policy", route.policy, wanted.policy),
        change("hold", f"{route.hold:g} s", f"{wanted.hold:g} s"),
        change("metadata", _pairs(route.metadata), _pairs(wanted.metadata)),
        change("queue.policy", route.queue_policy, wanted.queue_policy),
        change("queue.size", str(route.queue_size), str(wanted.queue_size)),
        change("queue.timeout", f"{route.queue_timeout:g} s", f"{wanted.queue_timeout:g} s"),
        change("first_byte_timeout", _limit(route.first_byte_timeout), _limit(wanted.first_byte_timeout)),
        change("idle_timeout", _limit(route.idle_timeout), _limit(wanted.idle_timeout)),
    ]


def change(field: str, is_: object, shall: object) -> str:
    """One field in words, "" where both are equal."""
    return "" if is_ == shall else f"{field}: {is_ or '(none)'} -> {shall or '(none)'}"


def _limit(seconds: float) -> str:
    return f"{seconds:g} s" if seconds else ""


def _pairs(pairs: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{key}={value}" for key, value in pairs)


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
