"""Checks that no single field can make: within one engine, and between engines. Pure."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sage_reconcile.model.desired import ArgValue
from sage_reconcile.stack.lora import check_lora
from sage_reconcile.stack.problems import Path, Problem, did_you_mean
from sage_reconcile.stack.schema import Engine, Runtime
from sage_reconcile.stack.select import wants_cpu

_PLACEHOLDER = re.compile(r"(?<![${])\{([A-Za-z_][A-Za-z0-9_]*)\}(?!\})")
_PLACEHOLDERS = ("host", "port", "model", "gpus")
_MANAGED_ARGS = {
    "host": "sage engines listen on loopback",
    "port": "use the field port",
    "model": "use the field model",
    "tensor-parallel-size": "use the field tensor_parallel",
    "pipeline-parallel-size": "use the field pipeline_parallel",
}
_OWN_PROCESS_FIELDS = (
    "command", "cwd", "env", "args", "extra_args", "replicas", "gpus", "gpu_memory",
    "tensor_parallel", "pipeline_parallel", "port", "use_gpu", "restart", "on_demand",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Checked:
    """One engine under check: `own` are the fields that it gives itself, `bad` those already at fault."""

    index: int
    engine: Engine
    own: frozenset[str]
    bad: frozenset[str]
    runtime: Runtime | None
    runtime_names: tuple[str, ...]

    def at(self, *parts: str | int) -> Path:
        return ("engines", self.index, *parts)

    @property
    def kind(self) -> str:
        """The built-in runtime below the engine's runtime; "" where it is unknown."""
        return self.runtime.kind if self.runtime else ""

    @property
    def args(self) -> dict[str, ArgValue]:
        """Flags of the runtime with the engine's over them."""
        return {**(self.runtime.args if self.runtime else {}), **self.engine.args}

    @property
    def command(self) -> tuple[str, ...]:
        return self.engine.command or (self.runtime.command if self.runtime else ())


def check_engine(engine: Checked) -> Iterator[Problem]:
    """Every contradiction inside one engine; a rule is left out where a field that it reads is at fault."""
    for fields, rule in _RULES:
        if not engine.bad.intersection(fields):
            yield from rule(engine)


def _runtime_known(it: Checked) -> Iterator[Problem]:
    name = it.engine.runtime
    if it.runtime is None and name is not None:
        hint = did_you_mean(name, it.runtime_names) or f"there are {', '.join(it.runtime_names)}"
        yield Problem(it.at("runtime"), f'there is no runtime "{name}"', hint)


def _command_given(it: Checked) -> Iterator[Problem]:
    if it.kind == "command" and not it.command:
        hint = 'write command: ["python3", "server.py", "--port", "{port}"]'
        yield Problem(it.at("runtime"), "the command runtime needs a command", hint)
    if it.kind not in ("command", "") and it.engine.command and "command" in it.own:
        yield Problem(
            it.at("command"), f"the runtime {it.kind} makes its own command", "write runtime: command", True
        )


def _command_placeholders(it: Checked) -> Iterator[Problem]:
    if it.kind != "command" or not it.command:
        return
    typos = False
    for position, word in enumerate(it.command):
        for name in _PLACEHOLDER.findall(word):
            if name not in _PLACEHOLDERS:
                typos = True
                known = ", ".join(f"{{{placeholder}}}" for placeholder in _PLACEHOLDERS)
                near = did_you_mean(name, _PLACEHOLDERS)
                where = it.at("command", position) if it.engine.command else it.at("runtime")
                yield Problem(where, f"{{{name}}} is not a placeholder", near or f"there are {known}")
    if not typos and not any("{port}" in word for word in it.command):
        where = it.at("command") if it.engine.command else it.at("runtime")
        hint = 'sage chooses the port: write "--port", "{port}"'
        yield Problem(where, "the command does not take {port}", hint)


def _external(it: Checked) -> Iterator[Problem]:
    if it.kind == "external":
        if it.engine.url is None:
            yield Problem(it.at("runtime"), "an external engine needs a url", "write url: http://HOST:PORT")
        for name in _OWN_PROCESS_FIELDS:
            if name in it.own:
                yield Problem(
                    it.at(name), "an external engine is never started by sage", f"remove {name}", True
                )
        if it.engine.state == "asleep":
            yield Problem(it.at("state"), "an external engine cannot be put to sleep")
    elif it.kind:
        for name in ("url", "api_key"):
            if getattr(it.engine, name) is not None and name in it.own:
                message = f"{name} is only for engines that sage does not start"
                yield Problem(it.at(name), message, "write runtime: external", True)


def _sleep(it: Checked) -> Iterator[Problem]:
    if it.kind in ("", "external"):
        return
    if it.engine.state == "asleep":
        yield from _can_sleep(it, it.at("state"), "asleep", "write state: stopped")
    if it.engine.rollout.strategy == "sleep-swap":
        hint = "write auto, surge or recreate"
        yield from _can_sleep(it, it.at("rollout", "strategy"), "sleep-swap", hint)


def _can_sleep(it: Checked, where: Path, what: str, hint: str) -> Iterator[Problem]:
    if it.kind != "vllm":
        yield Problem(where, f"an engine of runtime {it.kind} cannot sleep", f"{what} needs vllm")
    elif wants_cpu(it.engine):
        yield Problem(where, "vllm cannot sleep on the CPU", hint)
    elif it.args.get("enable-sleep-mode") is False:
        yield Problem(where, f"{what} contradicts args.enable-sleep-mode: false", "remove the flag")


def _canary(it: Checked) -> Iterator[Problem]:
    health = it.engine.health
    if health.canary is None or not it.kind:
        return
    where = it.at("health", "canary")
    if it.kind == "external":
        yield Problem(where, "the canary is for engines that sage starts", "remove it")
    elif it.engine.kind == "embedding" or health.probe in ("embed", "http"):
        probe = health.probe or "embed"
        yield Problem(
            where, f"a canary needs an engine that generates, and the probe is {probe}", "remove it"
        )


def _gpus(it: Checked) -> Iterator[Problem]:
    engine = it.engine
    needed = engine.tensor_parallel * engine.pipeline_parallel
    product = f"tensor_parallel x pipeline_parallel = {engine.tensor_parallel} x {engine.pipeline_parallel}"
    if isinstance(engine.gpus, int) and engine.gpus not in (0, needed):
        hint = f"write gpus: auto, or tensor_parallel: {engine.gpus}"
        yield Problem(it.at("gpus"), f"{engine.gpus} GPUs per replica, but {product} = {needed}", hint)
    if isinstance(engine.gpus, tuple) and len(engine.gpus) not in (needed, needed * engine.replicas):
        wanted = f"list {needed}" + (
            f", or {needed * engine.replicas} for all" if engine.replicas > 1 else ""
        )
        message = f"{len(engine.gpus)} GPUs are listed, but {product} = {needed}"
        yield Problem(it.at("gpus"), message, f"{wanted}; replicas: {engine.replicas}")
    if engine.use_gpu is False and engine.gpus not in (0, "auto"):
        yield Problem(it.at("use_gpu"), "use_gpu: false contradicts gpus", "remove one of the two")
    if engine.use_gpu is True and engine.gpus == 0:
        yield Problem(it.at("use_gpu"), "use_gpu: true contradicts gpus: 0", "remove one of the two")


def _managed_args(it: Checked) -> Iterator[Problem]:
    if it.kind in ("", "command", "external"):
        return
    for name, hint in _MANAGED_ARGS.items():
        if name in it.args:
            yield Problem(it.at("args"), f"sage itself sets --{name}", hint)


def _last_port(it: Checked) -> Iterator[Problem]:
    port, replicas = it.engine.port, it.engine.replicas
    if port is not None and port + replicas - 1 > 65535:
        message = (
            f"{replicas} replicas from port {port} on end at {port + replicas - 1}, the last port is 65535"
        )
        yield Problem(it.at("port"), message)


def _on_demand(it: Checked) -> Iterator[Problem]:
    if it.engine.on_demand is not None and it.engine.state == "asleep":
        message = "an engine on demand sleeps and wakes by itself"
        yield Problem(it.at("state"), message, "remove state: asleep, or on_demand")


_RULES: tuple[tuple[tuple[str, ...], Callable[[Checked], Iterator[Problem]]], ...] = (
    (("runtime",), _runtime_known),
    (("runtime", "command"), _command_given),
    (("runtime", "command"), _command_placeholders),
    (("runtime", "url", "api_key"), _external),
    (("runtime", "state", "rollout", "args", "gpus", "use_gpu"), _sleep),
    (("gpus", "use_gpu", "tensor_parallel", "pipeline_parallel", "replicas"), _gpus),
    (("runtime", "args"), _managed_args),
    (("port", "replicas"), _last_port),
    (("runtime", "lora", "args"), check_lora),
    (("runtime", "kind", "health"), _canary),
    (("runtime", "on_demand", "state"), _on_demand),
)
