"""What a runtime is: how to start a program that serves a model, as values. Nothing here runs anything."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from sage_reconcile.model.desired import ArgValue, Device, LaunchSpec
from sage_reconcile.model.observed import Placement


@dataclass(frozen=True, slots=True)
class LaunchContext:
    """What only the host knows at launch.

    `model` is the spec's model, or the directory that the host has for it. `python` is the interpreter of
    the runtime's environment. `visible` are the GPUs as CUDA names them (indices, or UUIDs of MIG devices);
    `gpu_total_mib` is the memory of the smallest of them. `counted_mib` is what the plan counts the launch
    with on each, where the runtime could not know it: of one that fills nothing.
    """

    placement: Placement
    model: str
    python: str
    visible: tuple[str, ...] = ()
    gpu_total_mib: int | None = None
    counted_mib: int | None = None


@dataclass(frozen=True, slots=True)
class CommandLine:
    """How to start an engine. `model` is the name that it will answer to, `env` what the runtime adds,
    `cwd` where it must be started where the file names no folder."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    model: str
    cwd: str | None = None


class Runtime(Protocol):
    """One kind of program that serves models."""

    @property
    def needs_python(self) -> bool:
        """Whether it runs in a Python environment of its own."""
        ...

    @property
    def uses_model_directory(self) -> bool:
        """Whether a model id may be replaced by a directory that the host has for it."""
        ...

    @property
    def fills(self) -> bool:
        """Whether it takes what it is given at once, so that what is measured is all that it will take."""
        ...

    def command_line(self, spec: LaunchSpec, context: LaunchContext) -> CommandLine:
        """The command and environment that start `spec`."""
        ...

    def need_mib(self, spec: LaunchSpec, gpu_total_mib: int) -> int | None:
        """MiB that one GPU of this size must have free; None where it is not known."""
        ...


def render_flag(key: str, value: ArgValue, negative: bool) -> list[str]:
    """`key: value` as flags. True: the bare flag; False: `--no-key` where `negative`, else nothing."""
    flag = f"--{key}" if len(key) > 1 else f"-{key}"
    if value is None:
        return []
    if value is True:
        return [flag]
    if value is False:
        return [f"--no-{key}"] if negative else []
    if isinstance(value, tuple):
        return [flag, *(str(item) for item in value)]
    return [flag, str(value)]


def render_args(spec: LaunchSpec, negative: bool = False) -> list[str]:
    """`args` as flags, in the order of their names, then `extra_args` as they are."""
    flags = [part for key, value in spec.args for part in render_flag(key, value, negative)]
    return [*flags, *spec.extra_args]


def gpu_environment(spec: LaunchSpec, context: LaunchContext) -> dict[str, str]:
    """Which GPUs the engine may see: its own, or none when it runs on the CPU."""
    if not context.visible:
        return {"CUDA_VISIBLE_DEVICES": ""}
    return {"CUDA_VISIBLE_DEVICES": ",".join(context.visible), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def hub_environment(context: LaunchContext) -> dict[str, str]:
    """A model that is a directory here needs no hub: without this, libraries wait for one all the same."""
    return {"HF_HUB_OFFLINE": "1"} if context.model.startswith("/") else {}


def declared_need_mib(spec: LaunchSpec, gpu_total_mib: int) -> int | None:
    """`gpu_memory` of the file in MiB per GPU; None for "auto"."""
    if isinstance(spec.gpu_memory, float):
        return int(spec.gpu_memory * gpu_total_mib)
    if isinstance(spec.gpu_memory, int):
        return spec.gpu_memory
    return None


def frozen_env(env: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(env.items()))


def arg(spec: LaunchSpec, key: str) -> ArgValue:
    """The value of one entry of `args`, None where there is none."""
    return dict(spec.args).get(key)


def runs_on_cpu(spec: LaunchSpec, context: LaunchContext) -> bool:
    return spec.device is Device.CPU or not context.visible
