"""What each runtime is started with: command lines, environments, names and GPU memory, as values."""

from dataclasses import replace

import pytest

from sage_reconcile.engines.activations import VLLM_CONTEXT_MIB
from sage_reconcile.engines.base import CommandLine, LaunchContext, render_args
from sage_reconcile.engines.registry import RUNTIMES, runtime
from sage_reconcile.model.desired import Device, Kind, LaunchSpec
from sage_reconcile.model.observed import Placement

MIB = 81559


def context(model: str = "org/name", gpus: tuple[str, ...] = (), total: int | None = None) -> LaunchContext:
    place = Placement("here", 8901, tuple(f"GPU-{n}" for n in gpus))
    return LaunchContext(place, model, "/env/bin/python", gpus, total)


def spec(name: str, **fields: object) -> LaunchSpec:
    return replace(LaunchSpec(Kind.LLM, name, "org/name", Device.GPU), **fields)  # type: ignore[arg-type]


def line(one: LaunchSpec, where: LaunchContext) -> CommandLine:
    return runtime(one.runtime).command_line(one, where)


def value(found: CommandLine, flag: str) -> str:
    return found.argv[found.argv.index(flag) + 1]


def test_flags_of_every_kind_of_value() -> None:
    args = (("a", 1), ("b", True), ("c", False), ("d", None), ("e", ("x", "y")), ("f", 0.5), ("g", "h i"))
    one = spec("command", args=args, extra_args=("--raw", "z"))
    same = ["-a", "1", "-b"]
    rest = ["-e", "x", "y", "-f", "0.5", "-g", "h i", "--raw", "z"]
    assert render_args(one) == [*same, *rest]
    assert render_args(one, negative=True) == [*same, "--no-c", *rest]


@pytest.mark.parametrize("name", sorted(RUNTIMES))
def test_a_cpu_engine_sees_no_gpu(name: str) -> None:
    one = spec(name, device=Device.CPU, command=("serve", "--port", "{port}"))
    assert dict(line(one, context()).env)["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize("name", sorted(RUNTIMES))
def test_a_gpu_engine_sees_its_own_gpus_and_no_others(name: str) -> None:
    one = spec(name, tensor_parallel=2, command=("serve", "--port", "{port}"))
    env = dict(line(one, context(gpus=("1", "3"), total=MIB)).env)
    assert env["CUDA_VISIBLE_DEVICES"] == "1,3"
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize("name", ["vllm", "transformers", "sentence-transformers"])
def test_a_model_that_is_a_directory_needs_no_hub(name: str) -> None:
    assert dict(line(spec(name), context("/models/org/name")).env)["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in dict(line(spec(name), context()).env)


def test_vllm_answers_to_the_name_in_the_file_wherever_the_model_lies() -> None:
    found = line(spec("vllm"), context("/models/org/name"))
    assert found.argv[:3] == ("/env/bin/python", "-m", "vllm.entrypoints.openai.api_server")
    assert (value(found, "--model"), value(found, "--served-model-name")) == ("/models/org/name", "org/name")
    assert found.model == "org/name"
    own = line(spec("vllm", args=(("served-model-name", ("first", "second")),)), context())
    assert own.model == "first"
    assert own.argv.count("--served-model-name") == 1


def test_vllm_parallel_sizes() -> None:
    found = line(
        spec("vllm", tensor_parallel=4, pipeline_parallel=2), context(gpus=tuple("01234567"), total=MIB)
    )
    assert value(found, "--tensor-parallel-size") == "4"
    assert value(found, "--pipeline-parallel-size") == "2"
    assert "--tensor-parallel-size" not in line(spec("vllm"), context(gpus=("0",), total=MIB)).argv


@pytest.mark.parametrize(
    ("fields", "flag", "need"),
    [
        ({}, "0.9", int(0.9 * MIB)),
        ({"gpu_memory": 0.4}, "0.4", int(0.4 * MIB)),
        ({"gpu_memory": 20480}, "0.2511", 20480),
    ],
)
def test_what_vllm_is_told_is_what_the_ledger_counts(fields: dict[str, object], flag: str, need: int) -> None:
    one = spec("vllm", **fields)
    assert value(line(one, context(gpus=("0",), total=MIB)), "--gpu-memory-utilization") == flag
    found = runtime("vllm").need_mib(one, MIB)
    assert found is not None
    assert abs(found - need - VLLM_CONTEXT_MIB) <= 1


def test_vllm_memory_given_in_args_counts_too() -> None:
    one = spec("vllm", args=(("gpu-memory-utilization", 0.3),))
    found = line(one, context(gpus=("0",), total=MIB))
    assert found.argv.count("--gpu-memory-utilization") == 1
    assert runtime("vllm").need_mib(one, MIB) == int(0.3 * MIB) + VLLM_CONTEXT_MIB


def test_vllm_is_told_no_more_than_one_that_fills_nothing_was_counted_with() -> None:
    """It refuses to start where its share is not free, also when it would leave most of that alone."""
    where = replace(context(gpus=("0",), total=MIB), counted_mib=4000 + VLLM_CONTEXT_MIB)
    one = spec("vllm", kind=Kind.EMBEDDING)
    assert value(line(one, where), "--gpu-memory-utilization") == f"{4000 / MIB:.4g}"
    given = replace(one, gpu_memory=0.4)
    assert value(line(given, where), "--gpu-memory-utilization") == "0.4"


def test_no_share_makes_an_empty_gpu_too_small() -> None:
    assert runtime("vllm").need_mib(spec("vllm", gpu_memory=0.995), MIB) == MIB


def test_vllm_on_the_cpu_is_told_nothing_about_gpu_memory() -> None:
    assert "--gpu-memory-utilization" not in line(spec("vllm", device=Device.CPU), context()).argv


def test_vllm_embeds_by_pooling() -> None:
    assert value(line(spec("vllm", kind=Kind.EMBEDDING), context()), "--runner") == "pooling"


def test_vllm_can_only_sleep_in_its_development_mode() -> None:
    assert dict(line(spec("vllm", can_sleep=True), context()).env)["VLLM_SERVER_DEV_MODE"] == "1"
    assert "VLLM_SERVER_DEV_MODE" not in dict(line(spec("vllm"), context()).env)


def test_transformers_keeps_the_models_own_name_by_starting_in_the_models_folder() -> None:
    found = line(spec("transformers"), context("/home/models/org/name"))
    assert found.argv[1:5] == ("-m", "transformers.cli.transformers", "serve", "org/name")
    assert (found.model, found.cwd) == ("org/name", "/home/models")


def test_transformers_with_a_folder_of_the_file_is_named_by_the_path() -> None:
    found = line(spec("transformers", cwd="/work"), context("/home/models/org/name"))
    assert (found.model, found.cwd) == ("/home/models/org/name", None)


def test_the_embedding_server_answers_to_the_name_in_the_file() -> None:
    found = line(spec("sentence-transformers", kind=Kind.EMBEDDING), context("/models/org/name"))
    assert found.argv[2] == "sage_reconcile.embedding.server"
    assert (value(found, "--model"), value(found, "--served-model-name")) == ("/models/org/name", "org/name")


@pytest.mark.parametrize(("memory", "share"), [(10_000, 9_400 / MIB), (0.5, 0.5 - 600 / MIB)])
def test_the_embedding_server_keeps_within_gpu_memory(memory: int | float, share: float) -> None:
    one = spec("sentence-transformers", kind=Kind.EMBEDDING, gpu_memory=memory)
    found = line(one, context(gpus=("0",), total=MIB))
    assert float(value(found, "--gpu-memory-fraction")) == pytest.approx(share, abs=1e-4)
    own = replace(one, args=(("gpu-memory-fraction", 0.3),))
    assert line(own, context(gpus=("0",), total=MIB)).argv.count("--gpu-memory-fraction") == 1


def test_without_a_limit_or_a_gpu_it_is_given_none() -> None:
    one = spec("sentence-transformers", kind=Kind.EMBEDDING)
    for given, where in ((one, context(gpus=("0",), total=MIB)), (replace(one, gpu_memory=0.5), context())):
        assert "--gpu-memory-fraction" not in line(given, where).argv


def test_every_placeholder_of_a_command_is_filled() -> None:
    command = ("serve", "{model}", "--at={host}:{port}", "--gpus", "{gpus}", "{other}")
    found = line(spec("command", command=command, args=(("n", 3),)), context(gpus=("0", "2"), total=MIB))
    assert found.argv == ("serve", "org/name", "--at=127.0.0.1:8901", "--gpus", "0,2", "{other}", "-n", "3")


def test_only_what_is_declared_is_known_of_other_programs() -> None:
    for name in ("command", "transformers", "sentence-transformers"):
        assert runtime(name).need_mib(spec(name), MIB) is None
        assert runtime(name).need_mib(spec(name, gpu_memory=0.5), MIB) == MIB // 2
        assert runtime(name).need_mib(spec(name, gpu_memory=1000), MIB) == 1000
