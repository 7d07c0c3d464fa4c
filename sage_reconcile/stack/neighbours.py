"""Checks between engines: ports, names that clients send, dependencies. And between keys. Pure."""

from collections.abc import Iterator, Sequence

from sage_reconcile.stack.check import Checked
from sage_reconcile.stack.gateway import Gateway
from sage_reconcile.stack.problems import Problem, did_you_mean
from sage_reconcile.stack.select import client_names


def check_ports(engines: Sequence[Checked], gateway: Gateway | None) -> Iterator[Problem]:
    """Fixed ports that two engines, or an engine and the gateway, would both take. Replicas count up."""
    taken: dict[int, str] = {gateway.port: "the gateway"} if gateway else {}
    for it in engines:
        if it.engine.port is None or it.bad & {"port", "replicas"}:
            continue
        last = min(it.engine.port + it.engine.replicas, 65536)
        ports = range(it.engine.port, last)
        clash = next((port for port in ports if port in taken), None)
        if clash is not None:
            which = f"port {clash}" if clash == it.engine.port else f"port {clash} of a replica"
            hint = "leave port out and sage chooses one"
            yield Problem(it.at("port"), f"{which} is taken by {taken[clash]}", hint)
        for port in ports:
            taken.setdefault(port, f'the engine "{it.engine.name}"')


def check_keys(gateway: Gateway) -> Iterator[Problem]:
    """Names of keys that are given twice."""
    first: dict[str, int] = {}
    for index, key in enumerate(gateway.keys):
        if key.name in first:
            path = ("gateway", "keys", index, "name")
            message = f'the key name "{key.name}" is given twice'
            yield Problem(path, message, f"gateway.keys[{first[key.name]}] has it, too")
        first.setdefault(key.name, index)


def check_names(engines: Sequence[Checked]) -> Iterator[Problem]:
    """Names that clients send and that would lead to two different models. The same model makes a pool."""
    owners: dict[str, Checked] = {}
    for it in engines:
        for name in client_names(it.engine):
            owner = owners.setdefault(name, it)
            same = (owner.engine.model, owner.engine.kind) == (it.engine.model, it.engine.kind)
            if owner is it or same or owner.engine.name == it.engine.name:
                continue
            message = f'clients that ask for "{name}" could mean "{owner.engine.name}" or this engine'
            yield Problem(_claim(it, name), message, "use another name, label or alias")


def check_adapters(engines: Sequence[Checked]) -> Iterator[Problem]:
    """Names of adapters that mean something else elsewhere.

    The same adapter of the same model makes a pool.
    """
    models = {name: it for it in engines for name in client_names(it.engine)}
    owners: dict[str, tuple[str, str]] = {}
    for it in engines:
        for number, adapter in enumerate(it.engine.lora or ()):
            where, hint = it.at("lora", number, "name"), "use another name"
            if adapter.name in models:
                message = (
                    f'"{adapter.name}" is a model name of the engine "{models[adapter.name].engine.name}"'
                )
                yield Problem(where, message, hint)
            what = (it.engine.model, adapter.path)
            if owners.setdefault(adapter.name, what) != what:
                yield Problem(where, f'another adapter is called "{adapter.name}", too', hint)


def _claim(it: Checked, name: str) -> tuple[str | int, ...]:
    """The path of the field by which the engine claims `name`."""
    if name in it.engine.aliases:
        return it.at("aliases", it.engine.aliases.index(name))
    for field in ("name", "label"):
        if getattr(it.engine, field) == name:
            return it.at(field)
    return it.at("model")


def check_dependencies(engines: Sequence[Checked], names: Sequence[str]) -> Iterator[Problem]:
    """Unknown engines in depends_on, and cycles; each cycle is told once, at its first engine."""
    known = set(names)
    for it in engines:
        for position, name in enumerate(it.engine.depends_on):
            if name not in known:
                where = it.at("depends_on", position)
                yield Problem(where, f'there is no engine "{name}"', did_you_mean(name, names))
    by_name = {it.engine.name: it for it in reversed(engines)}
    done: set[str] = set()
    for it in engines:
        for cycle in _cycles_from(it.engine.name, by_name, done):
            first = min((by_name[name] for name in cycle), key=lambda member: member.index)
            start = cycle.index(first.engine.name)
            turned = [*cycle[start:], *cycle[:start], first.engine.name]
            message = "waits for itself: " + " -> ".join(turned)
            yield Problem(first.at("depends_on"), message, "remove one of these depends_on")


def _cycles_from(start: str, by_name: dict[str, Checked], done: set[str]) -> Iterator[list[str]]:
    """Cycles met on a walk from `start`; iterative, because chains may be thousands of engines long."""
    if start in done:
        return
    path = [start]
    on_path = {start}
    pending = [iter(by_name[start].engine.depends_on)]
    while pending:
        name = next(pending[-1], None)
        if name is None:
            pending.pop()
            finished = path.pop()
            on_path.discard(finished)
            done.add(finished)
        elif name in on_path:
            yield path[path.index(name) :]
        elif name in by_name and name not in done:
            path.append(name)
            on_path.add(name)
            pending.append(iter(by_name[name].engine.depends_on))
