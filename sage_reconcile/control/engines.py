"""The life of engines as a class: start, stop, ask."""

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Unpack

from sage_reconcile import adhoc
from sage_reconcile.apply.execute import Options
from sage_reconcile.control import edits
from sage_reconcile.control.entries import EngineOptions, EntryOptions, entry, fields_of
from sage_reconcile.control.looking import all_engines, blocking, look
from sage_reconcile.control.naming import name_of
from sage_reconcile.converge import Host, local_host
from sage_reconcile.errors import PermanentError
from sage_reconcile.home import Home
from sage_reconcile.model.desired import ProbeKind
from sage_reconcile.model.management import EngineInfo
from sage_reconcile.model.observed import ObservedState
from sage_reconcile.stack.problems import did_you_mean

if TYPE_CHECKING:
    from sage_reconcile.control.edits import Work

HEALTH_TIMEOUT_S = 5.0


class EngineLifecycleManager:
    """Engines of this SAGE_HOME. What waits for engines is asynchronous: `health_check`, `health_check_all`.
    The rest is synchronous, also inside an event loop, which then waits with it.

    Engines are named as the API names them (`adhoc/chat#0`), or short: `adhoc/chat`, `chat`. Every fault is a
    ReconcileError whose text says what to do.
    """

    def __init__(self, home: Home | None = None, host: Host | None = None) -> None:
        self._host = host or local_host((home or Home.from_environ()).claim())

    def spawn_engine(
        self,
        model_id: str,
        name: str | None = None,
        *,
        wait: bool = False,
        replace: bool = False,
        **options: Unpack[EngineOptions],
    ) -> str:
        """Starts an engine; its id. It becomes an entry of adhoc.yaml, see EngineOptions.

        Returns once its process runs; with `wait` once it has answered a real request: then an engine that
        cannot be started is a PermanentError with its last words, and the file is as it was before. What runs
        already under that name is only ended for other options with `replace`.
        """
        return blocking(self.start(model_id, name, options, edits.Work(), wait=wait, may_replace=replace))

    async def start(
        self,
        model_id: str,
        name: str | None,
        options: EngineOptions | EntryOptions,
        work: "Work",
        *,
        wait: bool = True,
        may_replace: bool = False,
    ) -> str:
        """As `spawn_engine`, for whoever follows the work. The id."""
        called = name or name_of(model_id)
        fields = fields_of(model_id, options)
        decide = partial(entry, self._host.home, called, fields)
        wanted = edits.Start(called, decide, may_replace, Options(wait=wait))
        await edits.start(self._host, wanted, work)
        return f"{adhoc.STACK}/{called}#0"

    def stop_engine(self, engine_id: str, drain: bool = True) -> bool:
        """Stops every process of an engine and waits for it; False when nothing of it ran. Its entry stays
        with `state: stopped`, so that `spawn_engine` of the same model starts it as it was. An external
        engine is no longer routed to, and its entry goes.

        Raises PermanentError for an engine of another stack: its own file decides.
        """
        return blocking(self.end(engine_id, drain, edits.Work()))

    async def end(self, engine_id: str, drain: bool, work: "Work") -> bool:
        """As `stop_engine`, for whoever follows the work."""
        info = await self.find(engine_id)
        name = self.require_adhoc(info, engine_id)
        if info.is_managed:
            applied = await edits.stop(self._host, name, drain, work)
        else:
            applied = await edits.forget(self._host, lambda _: frozenset({name}), work)
        return bool(applied.outcomes)

    def get_engine_status(self, engine_id: str) -> EngineInfo:
        """The engine as it is now. Raises PermanentError for an engine that there is not."""
        return blocking(self.find(engine_id))

    def list_engines(self) -> list[EngineInfo]:
        """Every engine: those that run, external ones, and entries of adhoc.yaml without a process. Changes
        nothing."""
        return blocking(self.look())

    def discover_running_engines(self) -> list[EngineInfo]:
        """Those that answer, or are about to: found by the marks of their processes and by probing, so also
        what another program started. Engines that run by hand are taken in by `sage import`."""
        return [one for one in self.list_engines() if one.state in ("READY", "STARTING", "DRAINING")]

    def prune_stopped_engines(self) -> int:
        """Takes the entries of stopped engines out of adhoc.yaml; how many. Nothing that runs is touched."""
        return len(blocking(self.prune(edits.Work())))

    async def prune(self, work: "Work") -> list[str]:
        """As `prune_stopped_engines`; the names."""
        names: frozenset[str] = frozenset()

        def choose(observed: ObservedState) -> frozenset[str]:
            nonlocal names
            names = edits.stopped_entries(self._host, observed)
            return names

        await edits.forget(self._host, choose, work)
        return sorted(names)

    async def health_check(self, engine_id: str, timeout: float = HEALTH_TIMEOUT_S) -> bool:
        """Whether the engine answers a real request (a token, a vector) within `timeout` seconds. Listing and
        checking start and stop nothing."""
        return await self._answers(await self.find(engine_id), timeout)

    async def health_check_all(self, timeout: float = HEALTH_TIMEOUT_S) -> dict[str, bool]:
        """The same of all that should answer, by id; all are asked at once."""
        engines = [one for one in await self.look() if one.state != "STOPPED"]
        answers = await asyncio.gather(*(self._answers(one, timeout) for one in engines))
        return {one.engine_id: answer for one, answer in zip(engines, answers, strict=True)}

    async def look(self) -> list[EngineInfo]:
        """As `list_engines`."""
        return all_engines(self._host, await look(self._host))

    async def find(self, engine_id: str) -> EngineInfo:
        """As `get_engine_status`."""
        engines = await self.look()
        exact = [one for one in engines if engine_id in _names(one)]
        if not exact:
            known = {_short(one) for one in engines}
            hint = did_you_mean(engine_id, known) or f"there are: {', '.join(sorted(known)) or 'none'}"
            raise PermanentError(f"no engine named {engine_id}; {hint}")
        stacks = sorted({one.stack for one in exact})
        if len(stacks) > 1:
            raise PermanentError(f"{engine_id} is in the stacks {', '.join(stacks)}: name it STACK/ENGINE")
        alive = [one for one in exact if one.pid or not one.is_managed]
        return (alive or exact)[0]

    def require_adhoc(self, info: EngineInfo, asked: str) -> str:
        """The name of an engine of adhoc.yaml that may be stopped by this id."""
        name = _name(info)
        if info.stack != adhoc.STACK:
            raise edits.ConflictError(
                f"{name} is of stack {info.stack}, not of adhoc.yaml: edit its file, or use "
                f"`sage stop {info.stack}/{name}`"
            )
        replicas = int(adhoc.entries_or_fault(self._host.home)[0].get(name, {}).get("replicas") or 1)
        if "#" in asked and replicas > 1:
            raise edits.ConflictError(
                f"{name} has {replicas} replicas, and {asked} is one of them: name {adhoc.STACK}/{name} to "
                f"stop all, or set `replicas` in {self._host.home.adhoc_file}"
            )
        return name

    async def _answers(self, info: EngineInfo, timeout: float) -> bool:
        from sage_reconcile.observe.probes import probe_ready

        if not info.url:
            return False
        probe = ProbeKind.EMBED if info.engine_kind == "embedding" else ProbeKind.GENERATE
        result = await probe_ready(info.url, await self._served(info), probe, "/health", timeout)
        return result.ok

    async def _served(self, info: EngineInfo) -> str:
        """The name that the engine itself answers to: a model directory where the host has one."""
        observed = await self._host.eyes.look()
        names = (one.mark.model for one in observed.launches if str(one.replica) == info.engine_id)
        return next(names, info.model_id)


def _name(info: EngineInfo) -> str:
    return info.engine_id.partition("/")[2].partition("#")[0]


def _short(info: EngineInfo) -> str:
    """As people name it: without the stack if that is adhoc.yaml."""
    return _name(info) if info.stack == adhoc.STACK else f"{info.stack}/{_name(info)}"


def _names(info: EngineInfo) -> Iterable[str]:
    """Whatever names this engine or this replica of it."""
    engine, _, number = info.engine_id.partition("#")
    name = _name(info)
    return info.engine_id, engine, name, f"{name}#{number}"
