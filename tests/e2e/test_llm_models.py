"""`sage llm model`, with the hub's own client against a tiny real hub."""

from collections.abc import Iterator

import pytest

from tests.e2e.world import Result, World, engine
from tests.hub_server import COMMITS, FILES, MODEL, Hub, running
from tests.processes import free_port


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as hub:
        yield hub


def ask(world: World, hub: Hub, *words: str, **environ: str) -> Result:
    where = {"HF_ENDPOINT": hub.url, "HF_HOME": str(world.folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return world("llm", "model", *words, **{**where, **environ})


def test_from_the_hub_to_the_cache_and_away(world: World, hub: Hub) -> None:
    (told,) = ask(world, hub, "list-remote", "tiny", "--json").ok().json()["models"]
    assert told == {"name": MODEL, "downloads": 1234, "task": "text-generation", "updated": "2026-01-02"}
    assert "1,234" in ask(world, hub, "list-remote").ok().out
    assert "no model whose name holds 'zzz'" in ask(world, hub, "list-remote", "zzz").ok().out
    assert "fetches one" in ask(world, hub, "list").ok().out

    assert f"commit {'a' * 12}" in ask(world, hub, "download", MODEL).ok().out
    (found,) = ask(world, hub, "list", "--json").ok().json()["models"]
    assert found["name"] == MODEL
    assert found["size_bytes"] == sum(map(len, FILES.values()))
    assert found["revisions"] == [f"{'a' * 12} main"]
    assert MODEL in ask(world, hub, "list").ok().out
    shown = ask(world, hub, "show", MODEL).ok().out
    assert "TinyForCausalLM" in shown
    assert "97.7 KiB" in shown

    asked = len(hub.asked)
    ask(world, hub, "download", MODEL).ok()
    assert [one for one in hub.asked[asked:] if one[0] == "GET" and "/resolve/" in one[1]] == []
    assert "pass --yes" in ask(world, hub, "delete", MODEL).failed().err
    assert "are free again" in ask(world, hub, "delete", MODEL, "--yes").ok().out
    assert ask(world, hub, "list", "--json").ok().json()["models"] == []


def test_a_revision_is_pinned(world: World, hub: Hub) -> None:
    assert f"commit {COMMITS['v1'][:12]}" in ask(world, hub, "download", MODEL, "--revision", "v1").ok().out
    told = ask(world, hub, "download", MODEL, "--revision", "v2").failed().err
    assert told.startswith(f"error: {MODEL} has no revision v2")


def test_after_a_cut_only_what_is_missing_is_fetched(world: World, hub: Hub) -> None:
    hub.cut = 60_000
    ask(world, hub, "download", MODEL).failed()
    hub.cut, hub.asked = None, []
    ask(world, hub, "download", MODEL).ok()
    fetched = {
        path.rpartition("/")[2] for method, path, _ in hub.asked if method == "GET" and "resolve" in path
    }
    assert fetched == {"weights.bin"}


def test_what_cannot_be_had_is_told_in_one_line(world: World, hub: Hub) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    for words, environ, told in (
        (["download", "org/none"], {}, "has no model org/none"),
        (["download", "org/gated"], {}, "is gated: accept its terms"),
        (["download", "no/such/name"], {}, "is no name of a model"),
        (["download", MODEL], {"HF_ENDPOINT": nowhere}, "cannot be reached: connection refused"),
        (["list-remote", "x"], {"HF_ENDPOINT": nowhere}, "cannot be reached: connection refused"),
        (["download", MODEL], {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        (["list-remote"], {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        (["show", MODEL], {}, "sage llm model download"),
    ):
        result = ask(world, hub, *words, **environ).failed()
        assert result.err.startswith("error: "), words
        assert told in result.err, words
        assert len(result.err.splitlines()) == 1, result.err


def test_a_model_in_use_is_not_deleted(world: World, hub: Hub) -> None:
    ask(world, hub, "download", MODEL).ok()
    world.write(engine("chat", model=MODEL))
    world.apply()
    assert "is used by demo/chat#0" in ask(world, hub, "delete", MODEL, "--yes").failed().err
    assert "demo/chat#0" in ask(world, hub, "show", MODEL).ok().out
    world("stop", "chat", "--yes").ok()
    ask(world, hub, "delete", MODEL, "--yes").ok()


def test_a_directory_of_sage_is_listed_and_left_alone(world: World, hub: Hub) -> None:
    folder = world.home / "models" / "org" / "own"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (found,) = ask(world, hub, "list", "--json").ok().json()["models"]
    assert (found["name"], found["where"]) == ("org/own", "home")
    assert "remove it yourself" in ask(world, hub, "delete", "org/own", "--yes").failed().err
    assert "did you mean org/own?" in ask(world, hub, "show", "org/onw").failed().err
    assert (folder / "config.json").exists()
