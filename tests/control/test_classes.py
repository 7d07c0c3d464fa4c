"""The classes over a FakeWorld: what they answer is what the planner and the stack file say."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

import sage.llm
import sage_reconcile
from sage_reconcile import adhoc
from sage_reconcile.control import ControlPlaneManager, EngineLifecycleManager, GPUResourceManager
from sage_reconcile.control.edits import ConflictError
from sage_reconcile.errors import BlockedError, PermanentError
from sage_reconcile.model.observed import Health
from tests.build import GIB, mark, running, spec, uuid_of
from tests.control.world import fake_host
from tests.engines.checkpoints import llama_tensors, write_model

VLLM = {"required_memory_gb": 30, "use_gpu": True}


def test_they_are_where_they_were_published() -> None:
    for name in ("ControlPlaneManager", "EngineLifecycleManager", "GPUResourceManager"):
        assert getattr(sage_reconcile, name) is getattr(sage.llm, name)


def test_memory_is_never_counted_twice(tmp_path: Path) -> None:
    """Once what an engine had reserved was counted beside what it used by then."""
    host, world = fake_host(tmp_path, gpus=1)
    gpus = GPUResourceManager(host=host)
    world.add(running(mark("a", spec(need=30 * GIB))))
    (one,) = gpus.get_system_status()["gpus"]
    assert (one.memory_used_gb, one.memory_reserved_gb, one.memory_free_gb) == (30, 0, 50)
    # One that still loads holds nothing yet, and its memory is nobody else's already.
    process = world.add(running(mark("b", spec(need=20 * GIB), id="l2", port=8902), Health.STARTING))
    process.held = {uuid_of(0): GIB}
    (one,) = gpus.get_system_status()["gpus"]
    assert one.memory_used_gb + one.memory_reserved_gb + one.memory_free_gb == 80
    assert one.memory_free_gb == 30
    assert one.engines == ["demo/a#0", "demo/b#0"]


def test_where_it_fits_is_where_the_planner_puts_it(tmp_path: Path) -> None:
    host, world = fake_host(tmp_path)
    world.add(running(mark("a", spec(need=50 * GIB), gpus=(0,))))
    gpus = GPUResourceManager(host=host)
    assert gpus.allocate_resources(20) == [0]
    assert gpus.allocate_resources(40) == [1]
    assert gpus.allocate_resources(30, 2) == [0, 1]
    assert gpus.check_resource_availability(30, 2)
    assert not gpus.check_resource_availability(31, 2)
    assert gpus.release_resources([1], 80)
    assert not gpus.release_resources([0, 1], 80)
    with pytest.raises(BlockedError, match=r"2 x 31 GiB fit nowhere; free GiB: GPU 0 30, GPU 1 80"):
        gpus.allocate_resources(31, 2)
    with pytest.raises(PermanentError, match=r"no GPU 7"):
        gpus.release_resources([7], 1)


def test_pipeline_stages_take_gpus_of_their_own(tmp_path: Path) -> None:
    """Once pipeline parallel was ignored: half of the GPUs were taken."""
    host, world = fake_host(tmp_path, gpus=4)
    engines = EngineLifecycleManager(host=host)
    engines.spawn_engine("org/m", tensor_parallel_size=2, pipeline_parallel_size=2, **VLLM)
    (process,) = world.processes.values()
    assert len(process.mark.placement.gpus) == 4
    assert engines.get_engine_status("m").gpus == [0, 1, 2, 3]


def test_no_two_engines_get_one_port(tmp_path: Path) -> None:
    """Once two engines were given the same port."""
    host, world = fake_host(tmp_path, gpus=4)
    engines = EngineLifecycleManager(host=host)

    large = {**VLLM, "required_memory_gb": 60}

    async def start_all() -> None:
        await asyncio.gather(
            *(asyncio.to_thread(engines.spawn_engine, f"org/m{number}", **large) for number in range(4))
        )

    asyncio.run(start_all())
    ports = [process.mark.placement.port for process in world.processes.values()]
    assert len(set(ports)) == len(ports) == 4
    assert not world.violations
    assert sorted(adhoc.entries(host.home)) == ["m0", "m1", "m2", "m3"]


def test_an_engine_from_spawn_to_prune(tmp_path: Path) -> None:
    host, world = fake_host(tmp_path)
    engines = EngineLifecycleManager(host=host)
    engine_id = engines.spawn_engine("org/My-Model", engine_label="main", wait=True, **VLLM)
    assert engine_id == "adhoc/my-model#0"
    info = engines.get_engine_status("my-model")
    assert (info.state, info.model_id, info.is_managed) == ("READY", "org/My-Model", True)
    assert [one.engine_id for one in engines.discover_running_engines()] == [engine_id]
    assert engines.stop_engine(engine_id) is True
    assert not world.processes
    assert engines.stop_engine(engine_id) is False
    assert engines.get_engine_status(engine_id).state == "STOPPED"
    assert engines.prune_stopped_engines() == 1
    assert engines.list_engines() == []


def test_start_after_stop_keeps_every_option(tmp_path: Path) -> None:
    """Once a restart forgot memory, port and arguments."""
    host, world = fake_host(tmp_path)
    engines = EngineLifecycleManager(host=host)
    args = {"max-model-len": 4096}
    engines.spawn_engine("org/m", port=8950, args=args, extra_args=["--seed", "1"], **VLLM)
    (before,) = world.processes.values()
    engines.stop_engine("m")
    engines.spawn_engine("org/m")
    (after,) = world.processes.values()
    assert after.mark.launch != before.mark.launch
    assert replace(after.mark, launch=before.mark.launch) == before.mark


def test_a_start_that_fails_leaves_file_and_host_as_they_were(tmp_path: Path) -> None:
    host, world = fake_host(tmp_path)
    engines = EngineLifecycleManager(host=host)
    engines.spawn_engine("org/good", **VLLM)
    before = host.home.adhoc_file.read_text()
    world.script.dies_at_start.add("bad")
    with pytest.raises(PermanentError, match=r"exit code 1.*boom.*as it was before"):
        engines.spawn_engine("org/bad", wait=True, **VLLM)
    assert host.home.adhoc_file.read_text() == before
    assert [p.engine for p in world.processes.values()] == ["good"]


def test_what_runs_is_not_ended_unasked(tmp_path: Path) -> None:
    host, world = fake_host(tmp_path)
    engines = EngineLifecycleManager(host=host)
    engines.spawn_engine("org/m", wait=True, **VLLM)
    pids = world.pids()
    with pytest.raises(ConflictError, match=r"would end m"):
        engines.spawn_engine("org/m", args={"seed": 1})
    with pytest.raises(PermanentError, match=r"serves org/m"):
        engines.spawn_engine("other/m")
    assert world.pids() == pids
    engines.spawn_engine("org/m", args={"seed": 1}, replace=True)
    assert world.pids() != pids


def test_a_replica_is_not_taken_for_its_engine(tmp_path: Path) -> None:
    """Once replicas of one model were confused with each other."""
    host, world = fake_host(tmp_path)
    engines = EngineLifecycleManager(host=host)
    engines.spawn_engine("org/m", wait=True, **VLLM)
    text = host.home.adhoc_file.read_text()
    host.home.adhoc_file.write_text(text.replace("model: org/m", "model: org/m\n    replicas: 2"))
    with pytest.raises(ConflictError, match=r"has 2 replicas"):
        engines.stop_engine("m#0")
    assert len(world.processes) == 1


def test_engines_of_other_stacks_are_shown_and_left_alone(tmp_path: Path) -> None:
    host, world = fake_host(tmp_path)
    world.add(running(mark("chat")))
    engines = EngineLifecycleManager(host=host)
    assert engines.get_engine_status("demo/chat").stack == "demo"
    with pytest.raises(ConflictError, match=r"`sage stop demo/chat`"):
        engines.stop_engine("chat")
    with pytest.raises(PermanentError, match=r"did you mean demo/chat"):
        engines.stop_engine("demo/chta")
    assert world.processes


def test_settings_of_the_manager_go_into_the_entry(tmp_path: Path) -> None:
    """Once the cap on attempts wrapped to zero: then nothing was ever restarted."""
    host, world = fake_host(tmp_path)
    manager = ControlPlaneManager(host=host, max_restart_attempts=0, consecutive_failures_threshold=5)
    info = manager.request_engine_startup("org/m", wait=True, **VLLM)
    assert info.state == "READY"
    (process,) = world.processes.values()
    assert process.live.restart.policy.value == "always"
    assert process.live.restart.max_attempts == 1
    assert process.live.restart.backoff == 1.0
    assert (process.live.health.interval, process.live.health.failures) == (10.0, 5)
    cluster = manager.get_cluster_status()
    assert cluster.managed_instances == ["adhoc/m#0"]
    (reserved,) = cluster.resource_reservations
    # What the planner counts: what was declared, and what lies outside of it.
    assert reserved.engine_id == "adhoc/m#0"
    assert 30.0 <= reserved.memory_gb < 35.0
    left = manager.request_engine_shutdown("m")
    assert left is not None
    assert left.state == "STOPPED"


def test_a_policy_that_there_is_not_is_an_error(tmp_path: Path) -> None:
    host, _ = fake_host(tmp_path)
    manager = ControlPlaneManager(host=host)
    with pytest.raises(PermanentError, match=r"there are: adaptive, cost_optimized, fifo"):
        manager.update_policy("fiffo")
    manager.update_policy("priority")
    path = host.home.root / "run" / "gateway" / "queue_policy"
    assert path.read_text() == "priority\n"
    manager.update_policy("stack")
    assert not path.exists()


def test_a_synchronous_method_works_inside_an_event_loop(tmp_path: Path) -> None:
    host, _ = fake_host(tmp_path)

    async def inside() -> int:
        return len(EngineLifecycleManager(host=host).list_engines())

    assert asyncio.run(inside()) == 0


def test_what_a_model_needs_comes_from_its_files(tmp_path: Path) -> None:
    """Half of the weights on each of two GPUs; of a model that is not here nothing is made up."""
    host, _ = fake_host(tmp_path)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 32,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
    }
    write_model(host.home.models / "org" / "eight-b", config, [dict(llama_tensors(config))])
    gpus = GPUResourceManager(host=host)
    whole, half = (gpus.estimate_model_memory("org/eight-b", n, max_model_len=4096) for n in (1, 2))
    assert whole is not None
    assert half is not None
    weights = 16.06e9 / (1 << 30)
    assert weights < whole < weights * 1.4
    assert weights / 2 < half < whole * 0.75
    assert gpus.estimate_model_memory("org/nowhere") is None
