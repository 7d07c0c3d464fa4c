"""Finds the engines that run by hand on this host, asks each for its models, and makes entries of them."""

import asyncio
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sage_reconcile.home import Home
from sage_reconcile.importing.flags import redacted
from sage_reconcile.importing.managed import Gpus, Managed, managed, managed_command
from sage_reconcile.importing.processes import Candidate, candidates
from sage_reconcile.importing.text import Entry, Environment
from sage_reconcile.model.desired import ProbeKind
from sage_reconcile.model.observed import ForeignLaunch, ObservedLaunch, ObservedState, Orphan
from sage_reconcile.observe.deadline import Deadline
from sage_reconcile.observe.look import SCAN_SECONDS, LocalEyes
from sage_reconcile.observe.ports import listeners
from sage_reconcile.observe.probes import list_models, probe_ready
from sage_reconcile.stack.fields import is_name

ASK_SECONDS = 5.0
PROBE_SECONDS = 30.0
MAX_AT_ONCE = 16
BY_HAND = "by-hand"
DENIED = frozenset({401, 403})


@dataclass(slots=True)
class Findings:
    """What the file is made of. `keys` are the values of variables that it refers to: kept in memory only.

    `notes` say what was seen and not taken.
    """

    host: str
    entries: list[Entry] = field(default_factory=list)
    runtimes: dict[str, Environment] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Asked:
    """A candidate, and what /v1/models said: the status (0: no answer) and its entries."""

    one: Candidate
    status: int
    models: tuple[Mapping[str, Any], ...]
    kind: str


async def gather(home: Home, environ: Mapping[str, str], ports: Collection[int] = ()) -> Findings:
    """Everything of this user that serves OpenAI HTTP and is not sage's own; only at `ports`, where any are
    given. Raises OSError without /proc."""
    eyes = LocalEyes(home, environ=environ)
    observed = await eyes.look()
    listening = await Deadline("the list of ports", SCAN_SECONDS, listeners)()
    listening = tuple(one for one in listening if not ports or one.port in ports)
    bound = asyncio.Semaphore(MAX_AT_ONCE)
    asked = await asyncio.gather(*(_ask(one, bound) for one in candidates(listening, _ours(observed))))
    found = Findings(eyes.node)
    found.notes += [f"{gap.node}: {gap.reason}" for gap in observed.gaps]
    taken: set[str] = set()
    for one in asked:
        if one.one.known is None and not one.models:
            if one.status in DENIED:
                where = f"process {one.one.pid} at port {one.one.port}"
                found.notes.append(f"{where} answers {one.status}: if it is an engine, add it by hand")
            continue
        _add(one, found, taken, _gpus(one.one, observed))
    return found


def _ours(observed: ObservedState) -> frozenset[int]:
    owners: tuple[ObservedLaunch | Orphan | ForeignLaunch, ...]
    owners = (*observed.launches, *observed.orphans, *observed.foreign)
    return frozenset(pid for owner in owners for pid in owner.pids)


async def _ask(one: Candidate, bound: asyncio.Semaphore) -> Asked:
    headers = {"authorization": f"Bearer {key}"} if (key := _key(one)) else None
    async with bound:
        status, models = await list_models(one.url, ASK_SECONDS, headers)
        kind = "llm"
        if one.known is not None:
            kind = "embedding" if one.known.is_embedding else "llm"
        elif models and await _only_embeds(one.url, models[0]["id"], headers):
            kind = "embedding"
    return Asked(one, status, tuple(models), kind)


async def _only_embeds(url: str, model: str, headers: Mapping[str, str] | None) -> bool:
    """For a program that is not known: what it answers to."""
    token = await probe_ready(url, model, ProbeKind.GENERATE, "/health", PROBE_SECONDS, headers)
    if token.ok or not token.has_answered:
        return False
    return (await probe_ready(url, model, ProbeKind.EMBED, "/health", PROBE_SECONDS, headers)).ok


def _key(one: Candidate) -> str:
    """The key that the engine asks for, where its command line or environment says it."""
    given = one.known.flag("api-key") if one.known else None
    first = given[0] if isinstance(given, tuple) else given
    return str(first or one.environ.get("VLLM_API_KEY", ""))


def _gpus(one: Candidate, observed: ObservedState) -> Gpus:
    held = [
        (gpu.index, sum(holder.mib for holder in gpu.holders if holder.pid in one.pids))
        for gpu in observed.gpus
    ]
    is_known = not any(gap.what == "gpus" for gap in observed.gaps)
    return Gpus(tuple((index, mib) for index, mib in held if mib), is_known)


def _add(asked: Asked, found: Findings, taken: set[str], gpus: Gpus) -> None:
    """The entries of one process: one, and one more for each further model that is not just another name."""
    one = asked.one
    models, aliases, others = _names(asked)
    name = _unique(models or one.argv[0], taken)
    api_key = {}
    if (key := _key(one)) or asked.status in DENIED:
        variable = re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_") + "_API_KEY"
        variable = variable if variable[0].isalpha() else f"ENGINE_{variable}"
        api_key = {"api_key": f"${{env:{variable}}}"}
        found.keys |= {variable: key} if key else {}
    base = {"name": name, "kind": asked.kind}
    outside = {"runtime": "external", "url": one.url} | api_key
    aliases = tuple(alias for alias in aliases if alias != name)
    fields = {**base, "model": models, **outside} | ({"aliases": list(aliases)} if aliases else {})
    inside = managed(one, one.known, base, gpus) if one.known else managed_command(one, base, models, gpus)
    if inside is not None:
        if one.known and not one.known.runtime:
            inside.fields["model"] = models  # of a command it is the name that the program answers to
        elif not inside.fields["model"]:  # from a file of options: the engine itself says what it has loaded
            inside.fields["model"] = str((asked.models[0].get("root") if asked.models else "") or models)
        served = one.known.served if one.known else ()
        names = dict.fromkeys([*served, models, *aliases])
        if more_names := [alias for alias in names if alias not in (inside.fields["model"], name)]:
            inside.fields["aliases"] = more_names
        if api_key:
            inside.notes.append("no key: sage's engines listen on loopback, and the gateway asks for keys")
        _name_runtime(inside, found.runtimes)
    found.entries.append(Entry(fields, _comments(asked, gpus), inside))
    for other in others:
        more = {"name": _unique(other, taken), "kind": asked.kind, "model": other, **outside}
        found.entries.append(Entry(more, (f"Also of process {one.pid}.",)))


def _names(asked: Asked) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """(what it answers to, its other names, other models of the same process)."""
    known = asked.one.known
    if known is not None and known.runtime == "transformers":
        return known.model, (), ()  # it answers to that only, and lists what lies in its cache
    served = known.served if known else ()
    ids = [str(entry["id"]) for entry in asked.models]
    first = ids[0] if ids else (served[0] if served else known.model if known else "")
    roots = {str(entry["id"]): (entry.get("root"), entry.get("parent")) for entry in asked.models}
    same = [name for name in ids[1:] if name in served or (known and roots[name] == roots[first])]
    aliases = [name for name in dict.fromkeys([*served, *same]) if name != first]
    others = [name for name in dict.fromkeys(ids[1:]) if name not in aliases and name != first]
    return first, tuple(aliases), tuple(others)


def _unique(text: str, taken: set[str]) -> str:
    """A name for the engine: the last part of its model, in small letters."""
    last = text.rstrip("/").rpartition("/")[2].lower().removesuffix(".gguf")
    name = re.sub(r"[^a-z0-9._-]+", "-", last).strip("._-")[:50]
    name = name if is_name(name) else "engine"
    chosen, number = name, 2
    while chosen in taken:
        chosen, number = f"{name}-{number}", number + 1
    taken.add(chosen)
    return chosen


def _name_runtime(inside: Managed, runtimes: dict[str, Environment]) -> None:
    """Gives the environment of the process a name in `runtimes`, each one once."""
    if not inside.python:
        return
    wanted = Environment(str(inside.fields["runtime"]), inside.python)
    name, number = f"{wanted.kind}-{BY_HAND}", 2
    while runtimes.setdefault(name, wanted) != wanted:
        name, number = f"{wanted.kind}-{BY_HAND}-{number}", number + 1
    inside.fields["runtime"] = name


def _comments(asked: Asked, gpus: Gpus) -> tuple[str, ...]:
    one = asked.one
    program = one.known.program if one.known else "a program that answers /v1/models"
    lines = [f"Process {one.pid}, {program}, in {one.cwd}: {shlex.join(redacted(one.argv))}"]
    if gpus.held:
        lines.append("Holds " + ", ".join(f"{mib:,} MiB of GPU {index}" for index, mib in gpus.held) + ".")
    if asked.status == 0:
        lines.append("It did not answer at /v1/models.")
    if one.host not in ("127.0.0.1", "::1"):
        lines.append(f"It listens on {one.host or 'all addresses'}: whoever reaches this host reaches it.")
    return tuple(lines)
