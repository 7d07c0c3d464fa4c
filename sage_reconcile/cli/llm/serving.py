"""What `sage llm serve`, `stop` and `restart` do to gateway and engines together."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sage_reconcile import adhoc, gatewayd
from sage_reconcile.apply.execute import Options
from sage_reconcile.cli.llm.carry import Carrier, Fields, Wish
from sage_reconcile.cli.llm.starting import entry, tell, wish
from sage_reconcile.cli.llm.stopping import stop_engines
from sage_reconcile.cli.tail import follow
from sage_reconcile.errors import PermanentError
from sage_reconcile.gatewayd import GatewayProcess
from sage_reconcile.home import Home
from sage_reconcile.model.observed import ObservedState

CHAT, EMBED = "chat", "embed"
GPU_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
CPU_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDING_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True, slots=True)
class Served:
    """What was asked for. `embed` is None for no embedding engine."""

    chat: Mapping[str, Any]
    embed: Mapping[str, Any] | None
    gateway_port: int | None
    foreground: bool


def serve_all(asked: Served, flags: Mapping[str, Any]) -> int:
    """Gateway first: it takes little time, and a port that is taken is told before a model loads."""
    home = Home.from_environ().claim()

    def decide(observed: ObservedState) -> Fields:
        chat = {"model": _model(home, observed), **asked.chat}
        fields = {CHAT: _entry(home, CHAT, chat, observed)}
        if asked.embed is not None:
            embed = {"kind": "embedding", **_embedding(home), **asked.embed}
            fields[EMBED] = _entry(home, EMBED, embed, observed)
        return fields

    if flags["dry_run"]:
        return Carrier(home, wish(decide, flags)).run().status
    started = _start_gateway(home, asked.gateway_port)
    with _ended_unless_done(home, started) as outcome:
        carried = Carrier(home, wish(decide, flags)).run()
        outcome.append(carried.is_done)
    if not carried.is_done:
        return carried.status
    tell(home, carried)
    running = gatewayd.find(home)
    if running is not None:
        print(f"The gateway serves them: {running.options.address}/v1 (pid {running.pid}).")
    return _stay(home) if asked.foreground else 0


def _entry(home: Home, name: str, fields: Mapping[str, Any], observed: ObservedState) -> dict[str, Any]:
    """As of `engine start`, but for another model: what is served is what was asked for last."""
    known = adhoc.entries(home).get(name)
    if known is None:
        return entry(home, name, fields, observed)
    return {**fields, "state": "running"} if "state" in known else dict(fields)


def _model(home: Home, observed: ObservedState) -> str:
    known = adhoc.entries(home).get(CHAT, {}).get("model")
    return str(known) if known else GPU_MODEL if observed.gpus else CPU_MODEL


def _embedding(home: Home) -> dict[str, Any]:
    known = adhoc.entries(home).get(EMBED, {}).get("model")
    return {"model": known or EMBEDDING_MODEL}


def _start_gateway(home: Home, port: int | None) -> GatewayProcess | None:
    """The gateway, if this command started it; None where one runs already. Raises as gatewayd.start_all."""
    running = gatewayd.find(home)
    if running is None:
        return gatewayd.start_all(home, gatewayd.settle({"port": port} if port else {}, "", os.environ))
    if port not in (None, running.options.port):
        raise PermanentError(
            f"the gateway already runs on port {running.options.port}; `sage gateway stop` first, "
            "or leave --gateway-port out"
        )
    return None


@contextlib.contextmanager
def _ended_unless_done(home: Home, started: GatewayProcess | None) -> Iterator[list[bool]]:
    """A gateway that was started for engines which did not start ends again, however that came."""
    outcome: list[bool] = []
    try:
        yield outcome
    finally:
        if started is not None and outcome != [True]:
            gatewayd.stop(home)


def _stay(home: Home) -> int:
    """Shows the gateway's log until a signal comes, then stops all that `serve` is about."""
    print("Ctrl-C stops them.", flush=True)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    log = gatewayd.log_file(home)
    try:
        for text in follow(log, log.stat().st_size):
            sys.stdout.write(text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print()
    return stop_all(force=False)


def stop_all(force: bool) -> int:
    """The exit status. The gateway stays where a stack of somebody else is served."""
    home = Home.from_environ().claim()
    status = stop_engines(None, force=force)
    running = gatewayd.find(home)
    if running is None:
        return status
    others = _others(home)
    if others or running.options.stack:
        served = ", ".join(others) or running.options.stack
        print(f"The gateway goes on (pid {running.pid}): it serves {served}.")
        return status
    gatewayd.stop(home, force=force)
    print(f"Stopped the gateway (pid {running.pid}).")
    return status


def _others(home: Home) -> list[str]:
    """Stacks besides adhoc that are published."""
    from sage_reconcile.observe.records import read_routing

    table = read_routing(home)
    return sorted({b.stack for b in table.backends} - {adhoc.STACK}) if table else []


def restart_all(timeout: float | None) -> int:
    """The exit status. Raises PermanentError where nothing was ever started."""
    home = Home.from_environ().claim()
    if not adhoc.entries(home):
        raise PermanentError(f"{home.adhoc_file} has no engine: `sage llm serve` starts some")
    is_all_stopped: list[bool] = []

    def decide(observed: ObservedState) -> Fields:
        known = adhoc.entries(home)
        running = {one.replica.engine for one in observed.launches if one.replica.stack == adhoc.STACK}
        is_all_stopped[:] = [not running & known.keys()]
        if is_all_stopped[0]:
            return {name: {"state": "running"} if "state" in one else {} for name, one in known.items()}
        return {name: {} for name in known if name in running}

    carried = Carrier(home, Wish(decide, restart=True, options=Options(timeout=timeout))).run()
    if carried.is_done and is_all_stopped[0] and gatewayd.find(home) is None:
        _start_again(home)
    if carried.is_done:
        tell(home, carried)
    return carried.status


def _start_again(home: Home) -> None:
    """The gateway as it was started last."""
    before = gatewayd.recorded_options(home)
    given = {name: getattr(before, name) for name in before.given} if before else {}
    started = gatewayd.start_all(home, gatewayd.settle(given, "", os.environ))
    print(f"The gateway runs: pid {started.pid}, {started.options.address}.")
