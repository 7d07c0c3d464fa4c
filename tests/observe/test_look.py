import asyncio
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from sage_reconcile.home import Home
from sage_reconcile.model import codec
from sage_reconcile.model.desired import (
    DesiredEngine,
    DesiredState,
    EngineState,
    HealthSpec,
    Kind,
    LaunchSpec,
    LiveSpec,
    ProbeKind,
    RouteSpec,
)
from sage_reconcile.model.observed import (
    Gap,
    GpuHolder,
    Health,
    LastExit,
    ObservedGpu,
    ObservedLaunch,
    ObservedState,
)
from sage_reconcile.model.routing import Route, RoutingTable
from sage_reconcile.observe import look as look_module
from sage_reconcile.observe.deadline import Deadline
from sage_reconcile.observe.look import LocalEyes, held
from sage_reconcile.observe.probes import probe_ready
from tests.engines.checkpoints import write_model
from tests.engines.configs import KNOWN
from tests.observe.launches import Launches, eventually, make_mark, with_spec, write_exit
from tests.observe.scripted import HANGS, scripted

NO_GPUS = {"SAGE_DISABLE_NVML": "1"}
CHAT = "/v1/chat/completions"
CHOICE = (200, {"choices": [{"index": 0, "finish_reason": "length"}]})


def look(home: Home, desired: DesiredState | None = None, **environ: str) -> ObservedState:
    return asyncio.run(LocalEyes(home, "here", NO_GPUS | environ).look(desired))


def look_at_one(home: Home, desired: DesiredState | None = None) -> ObservedLaunch:
    (launch,) = look(home, desired).launches
    return launch


def test_an_idle_host(home: Home) -> None:
    before = time.time()
    seen = look(home, SAGE_GPU_MOCK_COUNT="2")
    assert before <= seen.at <= time.time()
    (node,) = seen.nodes
    assert (node.name, len(node.gpus), node.boot_id != "") == ("here", 2, True)
    assert (seen.launches, seen.orphans, seen.exits, seen.gaps, seen.routing) == ((), (), (), (), None)
    assert not seen.is_described


def test_the_record_of_a_launch_tells_its_story(home: Home, launches: Launches) -> None:
    mark = make_mark(home)
    supervisor = launches.start(mark, "--children", "1")
    worker = psutil.Process(supervisor.pid).children(recursive=True)[-1].pid
    directory = launches.write_record(mark, "ready", engine={"pid": worker, "started": 1.0})
    write_exit(directory, 50.0)
    launch = look_at_one(home)
    assert worker in launch.pids
    assert launch == ObservedLaunch(
        mark=mark,
        health=Health.READY,
        supervisor_pid=supervisor.pid,
        supervisor_started=launch.supervisor_started,
        engine_pid=worker,
        pids=launch.pids,
        since=100.0,
        ready_at=120.0,
        restarts=2,
        live=LiveSpec(),
        message="the supervisor's word",
        directory=str(directory),
        last_exit=LastExit(50.0, 1, None, True, tail=("last words",)),
        engine_started=1.0,
    )


@pytest.mark.parametrize("engine", [None, {"pid": 1, "started": 1.0}])
def test_between_two_engines_there_is_no_engine_pid(
    home: Home, launches: Launches, engine: dict[str, float] | None
) -> None:
    mark = make_mark(home)
    launches.start(mark)
    launches.write_record(mark, "backoff", engine=engine)
    assert look_at_one(home).engine_pid is None


@pytest.mark.parametrize("state", ["starting", "failing", "backoff", "stopping"])
def test_no_probe_contradicts_a_supervisor_that_does_not_say_ready(
    home: Home, launches: Launches, state: str
) -> None:
    mark = make_mark(home)
    launches.start(mark)
    launches.write_record(mark, state)
    launch = look_at_one(home)
    assert launch.health.value == state.replace("stopping", "exited")
    assert launch.message == "the supervisor's word"


def test_ready_with_nobody_listening_is_failing(home: Home, launches: Launches) -> None:
    mark = make_mark(home)
    launches.start(mark, "--listen-delay", "600", is_listening=False)
    launches.write_record(mark, "ready")
    launch = look_at_one(home)
    assert launch.health is Health.FAILING
    assert f"127.0.0.1:{mark.placement.port} refuses connections" in launch.message


def test_ready_and_busy_stays_ready(home: Home, launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look_module, "PROBE_SECONDS", 0.2)
    with scripted({"/health": HANGS}) as server:
        mark = make_mark(home, port=server.port)
        launches.start(mark, "--exit-after", "600", "--listen-delay", "600")
        launches.write_record(mark, "ready")
        assert look_at_one(home).health is Health.READY
        assert server.paths == [], "a look asks a ready engine nothing: its supervisor does"


def test_with_the_run_directory_gone_an_answer_says_ready(home: Home, launches: Launches) -> None:
    mark = make_mark(home)
    supervisor = launches.start(mark)
    launches.write_record(mark, "ready")
    shutil.rmtree(home.run)
    launch = look_at_one(home)
    assert (launch.mark, launch.health) == (mark, Health.READY)
    assert (launch.live, launch.last_exit, launch.ready_at) == (None, None, None)
    assert launch.since == launch.supervisor_started
    assert launch.supervisor_pid == supervisor.pid


def test_with_the_run_directory_gone_no_answer_says_starting(home: Home, launches: Launches) -> None:
    mark = make_mark(home)
    launches.start(mark, "--error-status", "503")
    launch = look_at_one(home)
    assert launch.health is Health.STARTING
    assert f"its record is missing, and asked directly: {CHAT} answered 503" in launch.message


@pytest.mark.parametrize("text", ["", "{}", '{"version": 1, "mark": 5}'])
def test_a_broken_record_counts_as_none(home: Home, launches: Launches, text: str) -> None:
    mark = make_mark(home)
    launches.start(mark)
    (launches.write_record(mark, "failing") / "launch.json").write_text(text)
    assert look_at_one(home).health is Health.READY


def test_without_a_record_the_stack_says_how_to_ask(home: Home, launches: Launches) -> None:
    with scripted({"/alive": (200, "")}) as server:
        mark = make_mark(home, port=server.port)
        launches.start(mark, "--listen-delay", "600")
        health = HealthSpec(probe=ProbeKind.HTTP, path="/alive")
        engine = DesiredEngine("chat", mark.spec, RouteSpec(("fake",)), live=LiveSpec(health))
        assert look_at_one(home).health is Health.STARTING
        assert look_at_one(home, DesiredState("demo", (engine,))).health is Health.READY
        assert look_at_one(home, DesiredState("other", (engine,))).health is Health.STARTING


def test_without_a_record_an_embedding_engine_is_asked_for_a_vector(home: Home, launches: Launches) -> None:
    mark = with_spec(make_mark(home), kind=Kind.EMBEDDING)
    launches.start(mark)
    assert look_at_one(home).health is Health.READY


@pytest.mark.parametrize(
    ("state", "can_sleep", "says", "health"),
    [
        ("ready", True, True, Health.ASLEEP),
        ("ready", True, False, Health.READY),
        ("ready", False, True, Health.READY),
        ("failing", True, True, Health.ASLEEP),
        ("backoff", True, True, Health.BACKOFF),
        (None, True, True, Health.ASLEEP),
    ],
)
def test_asleep_is_what_the_engine_says(
    home: Home, launches: Launches, state: str | None, can_sleep: bool, says: bool, health: Health
) -> None:
    with scripted({"/health": (200, ""), "/is_sleeping": (200, {"is_sleeping": says})}) as server:
        mark = with_spec(make_mark(home, port=server.port), can_sleep=can_sleep)
        launches.start(mark, "--listen-delay", "600")
        if state is not None:
            launches.write_record(mark, state)
        assert look_at_one(home).health is health


def test_an_orphan_is_seen_with_its_processes(home: Home, launches: Launches) -> None:
    mark = make_mark(home)
    supervisor = launches.start(mark)
    launches.write_record(mark, "ready")
    (engine,) = psutil.Process(supervisor.pid).children()
    supervisor.kill()
    supervisor.wait()
    seen = look(home)
    assert seen.launches == ()
    assert [(orphan.mark, orphan.pids) for orphan in seen.orphans] == [(mark, (engine.pid,))]


def test_a_mark_that_cannot_be_read_is_a_gap(home: Home, launches: Launches) -> None:
    launches.sleeper(SAGE_LAUNCH=f"{home.root} {{")
    (gap,) = look(home).gaps
    assert (gap.node, gap.what) == ("here", "processes")
    assert "carries a mark that cannot be read" in gap.reason


def gpu(uuid: str, *holders: GpuHolder) -> ObservedGpu:
    return ObservedGpu("here", 0, uuid, "H100", 1000, holders=holders)


def test_memory_is_what_nvml_says_of_the_members() -> None:
    gpus = (
        gpu("GPU-b", GpuHolder(7, "w", 30), GpuHolder(8, "w", 12), GpuHolder(9, "other", 500)),
        gpu("GPU-a", GpuHolder(7, "w", 5)),
        gpu("GPU-c", GpuHolder(8, "said nothing", 0)),
    )
    assert held(gpus, (7, 8)) == (("GPU-a", 5), ("GPU-b", 42))
    assert held(gpus, (1, 2)) == ()


def test_memory_reaches_launches_and_orphans(
    home: Home, launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = [make_mark(home, launch="l1"), make_mark(home, launch="l2")]
    supervisors = [launches.start(mark) for mark in marks]
    supervisors[1].kill()
    supervisors[1].wait()
    engine, left = look(home).launches[0].engine_pid, look(home).orphans[0].pids[0]
    assert engine is not None
    eyes = LocalEyes(home, "here", NO_GPUS)
    found = (gpu("GPU-a", GpuHolder(engine, "e", 40), GpuHolder(left, "e", 50)),)
    eyes._read_gpus = Deadline("NVML", 5.0, lambda: (found, ()))
    seen = asyncio.run(eyes.look())
    assert seen.launches[0].gpu_mib == (("GPU-a", 40),)
    assert seen.orphans[0].gpu_mib == (("GPU-a", 50),)
    assert seen.gpus == found


def test_parts_that_fail_are_gaps_and_the_rest_is_seen(home: Home, launches: Launches) -> None:
    def fail() -> None:
        raise RuntimeError("driver fell off")

    mark = make_mark(home)
    launches.start(mark)
    eyes = LocalEyes(home, "here", NO_GPUS)
    eyes._read_gpus = Deadline("NVML", 5.0, fail)  # type: ignore[assignment]
    seen = asyncio.run(eyes.look())
    assert [launch.mark for launch in seen.launches] == [mark]
    assert seen.gaps == (Gap("here", "gpus", "GPUs cannot be read: driver fell off"),)
    eyes = LocalEyes(home, "here", NO_GPUS | {"SAGE_GPU_MOCK_COUNT": "1"})
    eyes._read_processes = Deadline("the process table", 5.0, fail)  # type: ignore[assignment]
    seen = asyncio.run(eyes.look())
    assert len(seen.gpus) == 1
    assert seen.launches == ()
    assert {gap.what for gap in seen.gaps} == {"processes", "ports"}


def wanting(model: str) -> DesiredState:
    spec = LaunchSpec(Kind.LLM, "vllm", model)
    return DesiredState("demo", (DesiredEngine("chat", spec, RouteSpec(("m",))),))


def test_the_files_of_models_are_part_of_the_look(home: Home, launches: Launches) -> None:
    """Those of the stack, and those of what runs and has left the stack."""
    write_model(home.models / "o" / "wanted", KNOWN["llama-3-8b"].config)
    mark = make_mark(home)
    launches.start(with_spec(mark, runtime="vllm", model="o/running"))
    seen = look(home, wanting("o/wanted"))
    assert [(one.model, one.shape is not None) for one in seen.models] == [
        ("o/running", False),
        ("o/wanted", True),
    ]


def test_a_model_directory_that_hangs_delays_a_look_and_spoils_nothing(home: Home) -> None:
    hangs = threading.Event()
    eyes = LocalEyes(home, "here", NO_GPUS)
    eyes._read_models = Deadline("the model directories", 0.05, lambda: (hangs.wait(60.0), ())[1])
    try:
        seen = asyncio.run(eyes.look(wanting("o/m")))
    finally:
        hangs.set()
    assert seen.gaps == ()
    (files,) = seen.models
    assert files.unknown == "the model directories gave no answer within 0.05 s"


def test_exits_and_the_published_table_are_part_of_the_look(home: Home) -> None:
    write_exit(home.launch_dir("demo", "chat", 0, "x"), 5.0)
    table = RoutingTable((Route("m", "llm", ()),))
    home.routing_file.parent.mkdir()
    home.routing_file.write_bytes(codec.encode(table))
    seen = look(home)
    assert [(str(replica), exit_.at) for replica, exit_ in seen.exits] == [("demo/chat#0", 5.0)]
    assert seen.routing == table
    home.routing_file.write_text("{")
    assert look(home).routing is None


def external(url: str, **changes: object) -> DesiredState:
    live = LiveSpec(HealthSpec(timeout=0.5))
    spec = LaunchSpec(Kind.LLM, "external", "m", url=url)
    engine = DesiredEngine("far", replace(spec, **changes), RouteSpec(("m",)), live=live)  # type: ignore[arg-type]
    return DesiredState("demo", (engine,))


def test_external_engines_are_asked_with_their_key(home: Home, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")
    with scripted({CHAT: CHOICE}) as server:
        for reference in ("${env:KEY}", f"${{file:{tmp_path / 'key'}}}"):
            (health,) = look(home, external(server.url + "/v1/", api_key=reference), KEY="from-env").external
            assert (health.engine, health.health) == ("far", Health.READY)
        look(home, external(server.url))
    keys = [headers.get("authorization") for _, headers, _ in server.seen]
    assert keys == ["Bearer from-env", "Bearer from-file", None]


def test_external_engines_that_do_not_answer(home: Home, tmp_path: Path) -> None:
    with scripted({CHAT: HANGS}) as server:
        (silent,) = look(home, external(server.url)).external
        (keyless,) = look(home, external(server.url, api_key="${env:KEY}")).external
        (fileless,) = look(home, external(server.url, api_key=f"${{file:{tmp_path / 'no'}}}")).external
    (refused,) = look(home, external(server.url)).external
    with scripted({CHAT: (500, {"error": {"message": "boom"}})}) as server:
        (wrong,) = look(home, external(server.url)).external
    assert (silent.health, silent.message) == (Health.UNKNOWN, "gave no answer within 0.5 s")
    assert (refused.health, refused.message) == (Health.FAILING, "does not answer: connection refused")
    assert wrong.health is Health.FAILING
    assert wrong.message == "answers, but not as it should: /v1/chat/completions answered 500: boom"
    assert keyless.health is fileless.health is Health.UNKNOWN
    assert keyless.message == "cannot be asked: api_key: the environment variable KEY is not set"
    assert "/no: No such file or directory" in fileless.message


def test_a_stopped_external_engine_is_left_alone(home: Home) -> None:
    desired = external("http://127.0.0.1:1")
    stopped = replace(desired.engines[0], state=EngineState.STOPPED)
    assert look(home, DesiredState("demo", (stopped,))).external == ()


def test_looking_twice_in_one_loop_sees_the_change(home: Home, launches: Launches) -> None:
    mark = make_mark(home)
    supervisor = launches.start(mark)

    async def twice() -> tuple[int, int]:
        eyes = LocalEyes(home, "here", NO_GPUS)
        before = len((await eyes.look()).launches)
        os.kill(supervisor.pid, 9)
        await asyncio.to_thread(supervisor.wait)
        return before, len((await eyes.look()).launches)

    assert asyncio.run(twice()) == (1, 0)


def test_the_fake_engine_answers_every_probe(home: Home, launches: Launches) -> None:
    mark = make_mark(home)
    launches.start(mark, "--ready-delay", "0.3")

    def is_ready(kind: ProbeKind) -> bool:
        return asyncio.run(probe_ready(mark.placement.url, "fake", kind, "/health", 5.0)).ok

    assert is_ready(ProbeKind.HTTP)
    eventually(lambda: is_ready(ProbeKind.GENERATE), "the fake engine generates")
    assert is_ready(ProbeKind.EMBED)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a folder away")
def test_a_home_of_another_user_is_a_gap(home: Home) -> None:
    """Its processes may not be looked at: not seen is not absent."""
    os.chown(home.root, 65534, -1)
    (gap,) = look(home).gaps
    assert (gap.node, gap.what) == ("here", "processes")
    assert gap.reason.startswith(f"SAGE_HOME {home.root} belongs to ")


def test_a_run_directory_that_cannot_be_read_is_a_gap(home: Home) -> None:
    """A link to itself stands for what another user keeps closed, which root may always read."""
    home.run.symlink_to("run")
    (gap,) = look(home).gaps
    assert gap.what == "records"
    assert gap.reason.startswith(f"{home.run} cannot be read: ")


def test_what_is_not_there_yet_is_no_gap(tmp_path: Path) -> None:
    assert look(Home(tmp_path / "nowhere" / "home")).gaps == ()
