"""`sage llm serve` and its kin, `sage llm preset` and `sage embedding`, on real processes."""

import json
import os
import signal
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.test_llm_engine import rows, with_fakes
from tests.e2e.world import REPOSITORY, World, ask, engine, kill
from tests.processes import free_port, is_alive
from tests.waiting import wait_until

ENGINES_PYTHON = Path(os.environ.get("SAGE_ENGINES_PYTHON") or REPOSITORY / ".venv-engines/bin/python")
MODELS = Path(os.environ.get("SAGE_TEST_MODELS") or Path.home() / ".sage" / "models")


def post(port: int, path: str, body: object) -> dict[str, object]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        answer: dict[str, object] = json.loads(reply.read())
        return answer


def chat(port: int, model: str = "chat") -> str:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    reply = post(port, "/v1/chat/completions", {"model": model, "messages": messages, "max_tokens": 8})
    text = reply["choices"][0]["message"]["content"]  # type: ignore[index]
    assert isinstance(text, str)
    return text


@pytest.fixture
def served(world: World) -> World:
    """A world where `serve` starts fake engines: entries with ports of the test's own."""
    path = with_fakes(world)
    entry = {"runtime": "fake", "use_gpu": False, "state": "stopped"}
    engines = [
        {"name": "chat", "model": "org/chat", "port": free_port(), **entry},
        {"name": "embed", "kind": "embedding", "model": "org/embed", "port": free_port(), **entry},
    ]
    lines = "".join(f"  - {json.dumps(one)}\n" for one in engines)
    path.write_text(path.read_text().replace("engines: []", "engines:") + lines)
    world.environ["SAGE_GATEWAY_PORT"] = str(free_port())
    return world


def gateway_port(world: World) -> int:
    return int(world.environ["SAGE_GATEWAY_PORT"])


def test_serve_restart_stop_and_back(served: World) -> None:
    try:
        out = served("llm", "serve").ok().out
        assert f"The gateway serves them: http://127.0.0.1:{gateway_port(served)}/v1" in out
        before = served.until_ready("chat#0", "embed#0", stack="adhoc")
        assert chat(gateway_port(served)) == "The capital of France is Paris."
        status = served("llm", "status", "--json").ok().json()
        assert status["gateway"]["address"].endswith(str(gateway_port(served)))
        assert {row["id"]: row["state"] for row in status["engines"]} == {"chat": "ready", "embed": "ready"}
        assert "fake engine: pid" in served("llm", "logs").ok().out
        served("llm", "serve").ok()
        assert served.until_ready("chat#0", "embed#0", stack="adhoc") == before, "it serves already"

        marks = {name: served.record(name, stack="adhoc")["mark"] for name in before}
        served("llm", "restart").ok()
        after = served.until_ready("chat#0", "embed#0", stack="adhoc")
        assert not {one.engine for one in before.values()} & {one.engine for one in after.values()}
        for name, mark in marks.items():
            now = served.record(name, stack="adhoc")["mark"]
            assert {**now, "launch": ""} == {**mark, "launch": ""}, "a restart loses nothing"

        assert "Stopped the gateway" in served("llm", "stop").ok().out
        served.until_none()
        assert served("llm", "status").failed().out.startswith("gateway: does not run")
        served("llm", "restart").ok()
        served.until_ready("chat#0", "embed#0", stack="adhoc")
        assert chat(gateway_port(served)) == "The capital of France is Paris."
    finally:
        served("llm", "stop", "--force")


def test_a_serve_that_fails_leaves_nothing_behind(served: World) -> None:
    path = served.home / "stacks" / "adhoc.yaml"
    before = path.read_bytes()
    failed = served("llm", "serve", "--arg", "exit-at-start=3").failed()
    assert "told to exit" in failed.out
    assert "is as it was before" in failed.err
    assert path.read_bytes() == before
    served.until_none()


def test_foreground_ends_what_it_started(served: World) -> None:
    command = served.start("llm", "serve", "--foreground", "--no-embedding")
    command.says("Ctrl-C stops them")
    served.until_ready("chat#0", stack="adhoc")
    command.signal(signal.SIGTERM)
    assert command.end().rc == 0
    served.until_none()


def test_a_gateway_that_serves_others_goes_on(served: World) -> None:
    served.write(engine("other"))
    served.apply()
    served("llm", "serve", "--no-embedding").ok()
    try:
        assert "it serves demo" in served("llm", "stop").ok().out
        assert chat(gateway_port(served), "other") == "The capital of France is Paris."
    finally:
        served("gateway", "stop", "--force")


def test_gpus_with_the_engines_on_them(world: World) -> None:
    assert "no GPU on this host" in world("llm", "gpu").ok().out
    mock = {"SAGE_GPU_MOCK_COUNT": "2", "SAGE_GPU_MOCK_MEMORY_GB": "80"}
    world.write(engine("chat", use_gpu=True, gpu_memory="20GiB"))
    assert world("apply", "--yes", **mock).ok()
    lines = world("llm", "gpu", **mock).ok().out.splitlines()
    assert lines[0].split() == [
        "GPU",
        "NAME",
        "USED",
        "MIB",
        "TOTAL",
        "MIB",
        "FREE",
        "MIB",
        "UTIL",
        "ENGINES",
    ]
    assert [line.split()[0] for line in lines[1:]] == ["0", "1"]
    assert sum("demo/chat#0" in line for line in lines) == 1
    gpus = world("llm", "gpu", "--json", **mock).ok().json()["gpus"]
    assert [gpu["memory_total_mib"] for gpu in gpus] == [81920, 81920]


def test_presets_are_listed_shown_and_planned(world: World) -> None:
    names = {row["name"] for row in world("llm", "preset", "list", "--json").ok().json()["presets"]}
    assert names >= {"qwen-lite", "qwen-mini-with-embeddings", "quickstart"}
    shown = world("llm", "preset", "show", "quickstart").ok().out
    assert shown == (REPOSITORY / "stacks" / "quickstart.yaml").read_text()
    assert "did you mean qwen-lite?" in world("llm", "preset", "show", "qwen-lit").failed().err
    assert "2 to start" in world("llm", "preset", "apply", "-n", "quickstart", "--dry-run").ok().out
    assert "no preset named x" in world("llm", "preset", "apply", "-n", "x").failed().err
    assert "name a preset" in world("llm", "preset", "apply").failed().err


def test_a_preset_whose_engine_dies_while_loading_is_taken_back(world: World) -> None:
    """Once such an apply was said to have succeeded."""
    port = free_port()
    good = world.write(engine("chat", "--answer", "old", port=port), file="good.yaml")
    world("llm", "preset", "apply", "--file", good, "--yes").ok()
    world.until_ready("chat#0")
    bad = world.write(
        engine("chat", "--answer", "new", port=port),
        engine("late", "--listen-delay", "2", "--exit-at-start", "3", depends_on=["chat"]),
        file="bad.yaml",
    )
    failed = world("llm", "preset", "apply", "--file", bad, "--yes").failed()
    assert "rolling back" in failed.err
    world.until_ready("chat#0")
    assert ask(port, "/argv")[-1] == "old"
    world("llm", "preset", "apply", "--file", bad, "--yes", "--no-rollback").failed()
    world.until_ready("chat#0")
    assert ask(port, "/argv")[-1] == "new"


def test_embedding_engines(world: World) -> None:
    with_fakes(world)
    start = ("embedding", "start", "--runtime", "fake", "--port")
    world(*start, str(free_port()), "org/one").ok()
    world(*start, str(free_port()), "org/two", "--arg", "dim=16").ok()
    assert rows(world).keys() == {"one", "two"}
    listed = world("embedding", "list", "--json").ok().json()["engines"]
    assert {row["kind"] for row in listed} == {"embedding"}
    assert "ready are: one, two" in world("embedding", "test", "a").failed().err
    tried = world("embedding", "test", "a", "a", "b", "-e", "two", "--json").ok().json()
    assert tried["dimensions"] == 16
    assert tried["similarity"][0] == ["a", "a", 1.0]
    assert "did you mean one?" in world("embedding", "test", "-e", "ones").failed().err
    kill(*[one.supervisor for one in world.pids("adhoc").values()])
    assert "ready are: none" in world("embedding", "test").failed().err
    world("llm", "stop", "--force").ok()


@pytest.mark.real
@pytest.mark.timeout(400)
def test_real_models_are_served(world: World) -> None:
    """Nothing is said but ports: without a GPU the small models of the quickstart are served on the CPU."""
    if not ENGINES_PYTHON.exists() or not MODELS.exists():
        pytest.skip("make demo-setup builds the engines' environment and fetches the models")
    (world.home / "runtimes").mkdir(parents=True)
    for runtime in ("transformers", "sentence-transformers"):
        (world.home / "runtimes" / runtime).symlink_to(ENGINES_PYTHON.parents[1])
    (world.home / "models").symlink_to(MODELS)
    ports = [str(free_port()) for _ in range(4)]
    serve = ["--gateway-port", ports[0], "--port", ports[1], "--embedding-port", ports[2]]
    try:
        world("llm", "serve", *serve).ok()
        assert len(chat(int(ports[0]))) > 2
        near = world("embedding", "test", "a cat", "a kitten", "tax law", "--json").ok().json()
        assert near["dimensions"] == 384
        cosines = {(a, b): cosine for a, b, cosine in near["similarity"]}
        assert cosines["a cat", "a kitten"] > cosines["a cat", "tax law"]
        text = world("llm", "export").ok().out
        assert "runtime: transformers" in text
        assert "use_gpu: false" in text
        model = "HuggingFaceTB/SmolLM2-135M-Instruct"
        second = ["--engine-port", ports[3], "--label", "second", "--name", "again"]
        world("llm", "engine", "start", model, *second).ok()
        assert len(chat(int(ports[0]), "second")) > 2
        pids = world.pids("adhoc")
        assert pids.keys() == {"chat#0", "embed#0", "again#0"}
        world("llm", "engine", "stop", "again").ok()
        wait_until(lambda: not is_alive(pids["again#0"].engine), "the engine ends")
    finally:
        world("llm", "stop", "--force")


def test_a_replacement_that_fails_is_undone_on_its_own_port(served: World) -> None:
    """Once a restart forgot the port: the file's, and the one where clients of the engine itself find it."""
    path = served.home / "stacks" / "adhoc.yaml"
    served("llm", "serve").ok()
    try:
        before, port = path.read_bytes(), rows(served)["chat"]["port"]
        failed = served("llm", "serve", "-m", "org/other", "--arg", "exit-at-start=3", "--yes").failed()
        assert "is as it was before" in failed.err
        assert path.read_bytes() == before
        served.until_ready("chat#0", "embed#0", stack="adhoc")
        assert ask(int(str(port)), "/v1/models")["data"][0]["id"] == "org/chat"
        assert chat(gateway_port(served)) == "The capital of France is Paris."
        assert "No changes" in served("plan", path).ok().out
    finally:
        served("llm", "stop", "--force")
