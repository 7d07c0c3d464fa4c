"""The stack file as pydantic models. The reference page and the JSON schema are generated from them."""

from typing import Annotated, Literal

from pydantic import AliasChoices, BeforeValidator, Field, StrictStr, model_validator

from sage_reconcile.stack.fields import (
    Args,
    Bool,
    Env,
    GpuMemory,
    Gpus,
    Int,
    Metadata,
    Name,
    Port,
    Secret,
    Text,
    Url,
    Words,
)
from sage_reconcile.stack.gateway import Gateway
from sage_reconcile.stack.programs import Version, check_program, long_forms
from sage_reconcile.stack.section import Section
from sage_reconcile.stack.sections import Health, Lora, OnDemand, Restart, Rollout, Routing

RuntimeKind = Literal["vllm", "transformers", "sentence-transformers", "command", "external"]
BUILTIN_RUNTIMES: tuple[str, ...] = ("vllm", "transformers", "sentence-transformers", "command", "external")


class Runtime(Section):
    """A program that serves models, and the Python environment that it lives in."""

    kind: Annotated[
        RuntimeKind,
        Field(
            description="The built-in runtime that this one is a variant of; may be left out for vllm, "
            "transformers and sentence-transformers themselves."
        ),
    ]
    version: Annotated[
        Version | None,
        Field(
            description="The version of the program, installed by `sage runtime install`; for vllm, "
            "transformers and sentence-transformers. "
            '`vllm: "0.24.0"` is short for `vllm: {kind: vllm, version: "0.24.0"}`.'
        ),
    ] = None
    python: Annotated[
        Text | None,
        Field(
            description="The Python interpreter that has the runtime installed; with `version`, the version "
            'of Python to install it for, such as `"3.12"`.'
        ),
    ] = None
    packages: Annotated[
        Words,
        Field(alias="with", description="Requirements that are installed besides, as pip writes them."),
    ] = ()
    index: Annotated[
        Text | None,
        Field(
            description="Where `version` is installed from: the URL of a package index, or a directory of "
            "wheels, and then from nowhere else. Default: as uv is configured."
        ),
    ] = None
    env: Annotated[
        Env, Field(description="Environment variables of engines on this runtime; the engine's win.")
    ] = {}
    args: Annotated[Args, Field(description="Flags of engines on this runtime; the engine's win.")] = {}
    command: Annotated[
        Words, Field(description="The command line of `kind: command`; an engine's own command wins.")
    ] = ()

    @model_validator(mode="after")
    def _installed_as_a_whole(self) -> "Runtime":
        check_program(self.kind, self.version, self.python, self.packages, self.index)
        return self


class EngineFields(Section):
    """What an engine may say, and `defaults` for all engines."""

    kind: Annotated[Literal["llm", "embedding"], Field(description="What the engine does.")] = "llm"
    runtime: Annotated[
        Text | None,
        Field(
            description="The program that serves: `vllm` (default for llm), `sentence-transformers` (default "
            "for embedding), `transformers`, `command`, `external`, or a name from `runtimes`."
        ),
    ] = None
    command: Annotated[
        Words,
        Field(
            description="The command line of `runtime: command`, a list of words. `{host}`, `{port}`, "
            "`{model}` and `{gpus}` are filled in; `{port}` must occur."
        ),
    ] = ()
    cwd: Annotated[
        Text | None,
        Field(
            description="Working directory, relative to this file. Default: the folder of this file where "
            "a word of `command` names a file in it."
        ),
    ] = None
    env: Annotated[
        Env,
        Field(description="Environment variables. `${env:NAME}` and `${file:PATH}` stay secret references."),
    ] = {}
    args: Annotated[
        Args,
        Field(
            description="Flags, appended to the command line: `{max-model-len: 4096, enforce-eager: true}` "
            "gives `--max-model-len 4096 --enforce-eager`."
        ),
    ] = {}
    extra_args: Annotated[Words, Field(description="Words appended to the command line as they are.")] = ()
    replicas: Annotated[Int, Field(ge=1, le=1024, description="How many of this engine run.")] = 1
    gpus: Annotated[
        Gpus,
        Field(
            description="`auto`, `0` for the CPU, the count per replica (must equal tensor_parallel x "
            "pipeline_parallel), or a list of indices or UUIDs to run on."
        ),
    ] = "auto"
    gpu_memory: Annotated[
        GpuMemory,
        Field(description="Memory to take of each GPU: `auto`, a size as `20GiB`, or a fraction as `0.5`."),
    ] = "auto"
    state: Annotated[
        Literal["running", "asleep", "stopped"],
        Field(description="What the engine should do. `asleep` (vllm only): loaded, without its GPU memory."),
    ] = "running"
    health: Annotated[Health, Field(description="Probes.")] = Health()
    restart: Annotated[Restart, Field(description="What happens after an exit.")] = Restart()
    rollout: Annotated[Rollout, Field(description="How a change is carried out.")] = Rollout()
    depends_on: Annotated[
        tuple[StrictStr, ...], Field(description="Engines that must be ready before this one is started.")
    ] = ()
    tensor_parallel: Annotated[Int, Field(ge=1, le=1024, description="GPUs that share each layer.")] = 1
    pipeline_parallel: Annotated[
        Int, Field(ge=1, le=1024, description="GPU groups that share the layers.")
    ] = 1
    port: Annotated[
        Port | None,
        Field(description="Port on loopback; replicas take the ports after it. Default: chosen, and kept."),
    ] = None
    label: Annotated[Text | None, Field(description="A name that clients may send as `model`.")] = None
    aliases: Annotated[
        tuple[Text, ...], Field(description="More names that clients may send as `model`.")
    ] = ()
    use_gpu: Annotated[Bool | None, Field(description="Default: true for llm, false for embedding.")] = None
    max_concurrent: Annotated[
        Int,
        Field(
            ge=1,
            validation_alias=AliasChoices("max_concurrent", "max_concurrent_requests"),
            description="Requests that one replica gets at once at most. Also: `max_concurrent_requests`.",
        ),
    ] = 256
    metadata: Annotated[Metadata, Field(description="Anything, passed on to GET /v1/models.")] = {}
    lora: Annotated[
        tuple[Lora, ...] | None,
        Field(
            description="LoRA adapters of a vllm engine, loaded and unloaded while it runs. `[]`: none yet, "
            "but ready for them; left out: the engine is started without LoRA."
        ),
    ] = None
    on_demand: Annotated[
        OnDemand | None,
        Field(description="Loaded when it is asked for, and put aside when idle; `{}` for the defaults."),
    ] = None
    routing: Annotated[Routing, Field(description="How requests are shared.")] = Routing()
    url: Annotated[
        Url | None, Field(description="Where an engine of `runtime: external` answers, without /v1.")
    ] = None
    api_key: Annotated[
        Secret | None, Field(description="Reference to the key that an external engine wants.")
    ] = None


class Defaults(EngineFields):
    """Fields that every engine has unless it says otherwise; maps are merged."""

    model: Annotated[Text | None, Field(description="See engines.")] = None


class Engine(EngineFields):
    """One engine: a model and how it is served."""

    name: Annotated[Name, Field(description="Unique in the stack; clients may send it as `model`.")]
    model: Annotated[
        Text,
        Field(description="A Hugging Face id, a directory, or for command and external what clients send."),
    ]


class Stack(Section):
    """A stack file: the engines of one host and the gateway in front of them."""

    version: Annotated[Literal[1], Field(description="Version of this format.")] = 1
    name: Annotated[Name | None, Field(description="Name of the stack. Default: the file's name.")] = None
    description: Annotated[StrictStr, Field(description="For people.")] = ""
    include: Annotated[
        tuple[Text, ...], Field(description="Files, relative to this one, that this one is laid over.")
    ] = ()
    defaults: Annotated[Defaults, Field(description="Fields for every engine.")] = Defaults()
    runtimes: Annotated[
        dict[str, Runtime], BeforeValidator(long_forms), Field(description="Runtimes by name.")
    ] = {}
    gateway: Annotated[Gateway, Field(description="The gateway.")] = Gateway()
    engines: Annotated[tuple[Engine, ...], Field(description="The engines; `[]` stops all of this stack.")]
