"""Every command as its user meets it: help, wrong words, the documented shapes, the simple ways through."""

import signal
import subprocess
import sys

import pytest

from tests.e2e.world import SAGE, World, engine, is_tidy, stack_text
from tests.processes import free_port, is_alive

COMMANDS = [
    "validate",
    "plan",
    "apply",
    "watch",
    "status",
    "logs",
    "stop",
    "restart",
    "lease",
    "events",
    "history",
    "rollback",
    "gateway",
    "schema",
    "fmt",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(world: World, command: str) -> None:
    out = world(command, "--help").ok().out
    assert f"Example: sage {command}" in out


def test_the_overview_names_every_command(world: World) -> None:
    out = world("--help").ok().out
    assert [name for name in COMMANDS if f"\n  {name} " not in out] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plna"], ['Did you mean "plan"?', "sage --help"]),
        (["plan", "--frob"], ["--frob", "sage plan --help"]),
        (["plan", "a.yaml", "b.yaml"], ["takes no b.yaml here", "sage plan --help"]),
        (["plan", "--format", "xml"], ['"xml"', "markdown"]),
        (["logs"], ["ENGINE", "sage logs --help"]),
        (["plan"], ["no stack file", "sage.yaml", "stack.yaml"]),
        (["plan", "missing.yaml"], ["missing.yaml"]),
        (["stop"], ["--all"]),
        (["stop", "nobody"], ["nobody"]),
        (["logs", "nobody"], ["nobody"]),
        (["rollback"], ["nothing was applied yet"]),
    ],
)
def test_a_wrong_command_line_gets_one_clear_line(
    world: World, arguments: list[str], words: list[str]
) -> None:
    result = world(*arguments).failed()
    assert result.out == ""
    assert len(result.err.splitlines()) == 1
    for word in words:
        assert word in result.err


def test_a_wrong_target_and_a_wrong_override_are_told(world: World) -> None:
    world.write(engine("chat"))
    assert "did you mean chat?" in world("plan", "--target", "chta").failed().err
    assert "replicsa" in world("plan", "--set", "engines.chat.replicsa=2").failed().err


def test_from_nothing_to_nothing(world: World) -> None:
    """The whole way of a small stack: validate, plan, apply, look, stop, look back."""
    port = free_port()
    world.write(engine("chat", port=port))
    assert "demo" in world("validate", "sage.yaml").ok().out
    assert "1 to start" in world("plan").ok().out

    applied = world("apply", "--yes").ok()
    assert "Applied: 1 done." in applied.out
    pids = world.until_ready("chat#0")["chat#0"]

    status = world("status", "--json").ok().json()
    assert status.keys() >= {"engines", "gpus", "orphans", "gaps"}
    assert status["orphans"] == status["gaps"] == status["gpus"] == []
    (shown,) = status["engines"]
    assert shown.keys() >= {
        *("id", "engine", "replica", "stack", "model", "runtime", "state", "pid", "port"),
        *("fingerprint", "gpus", "gpu_memory_mib", "uptime_seconds", "restarts"),
    }
    expected = {
        "engine": "chat",
        "replica": 0,
        "stack": "demo",
        "model": "model-chat",
        "runtime": "command",
        "state": "ready",
        "pid": pids.engine,
        "port": port,
        "gpus": [],
        "gpu_memory_mib": 0,
        "restarts": 0,
    }
    assert {name: shown[name] for name in expected} == expected
    assert shown["id"] == f"demo/chat#0@{shown['fingerprint']}:{world.record('chat#0')['mark']['launch']}"

    table = world("status").ok().out
    assert "demo/chat#0" in table
    assert "ready" in table
    assert f"fake engine: pid {pids.engine}" in world("logs", "chat").ok().out

    assert "1 to stop" in world("stop", "chat", "--yes").ok().out
    world.until_none()
    assert "start done" in world("events").ok().out
    kinds = [event["kind"] for event in world("events", "--json").ok().json()]
    ends = ["start begins", "start done", "stop begins", "stop done"]
    assert [kind for kind in kinds if kind in ends] == ends
    (entry,) = world("history", "--json").ok().json()
    assert (entry["stack"], entry["number"], entry["result"]) == ("demo", 1, "done")


def test_restart_gives_a_new_process_and_keeps_everything_else(world: World) -> None:
    world.write(engine("chat"), engine("other"))
    world.apply()
    before = world.until_ready("chat#0", "other#0")
    world("restart", "chat", "--yes").ok()
    after = world.until_ready("chat#0", "other#0")
    assert after["chat#0"].engine != before["chat#0"].engine
    assert after["other#0"] == before["other#0"]
    assert world("logs", "chat", "--previous").ok().out.count(str(before["chat#0"].engine)) >= 1
    world.is_settled()


def test_rollback_brings_the_earlier_stack_back(world: World) -> None:
    port = free_port()
    world.write(engine("chat", "--answer", "first", port=port))
    world.apply()
    world.write(engine("chat", "--answer", "second", port=port), engine("more"))
    world.apply()
    world.until_ready("chat#0", "more#0")
    assert "rollback to 1" in world("rollback", "--yes").ok().out + world("history").ok().out
    world.until_ready("chat#0")
    assert world.record("chat#0")["mark"]["spec"]["command"][-1] == "first"
    assert world("rollback", "9", "--yes").failed().err.startswith("error: ")


def test_the_plan_as_json_has_the_promised_shape(world: World) -> None:
    world.write(engine("chat"), engine("embed", kind="embedding", depends_on=["chat"]))
    plan = world.plan()
    assert plan.keys() >= {"version", "stack", "summary", "steps", "blocked", "gaps", "memory"}
    assert (plan["version"], plan["stack"]) == (1, "demo")
    assert plan["summary"] == {
        "start": 2,
        "replace": 0,
        "update": 0,
        "stop": 0,
        "sleep": 0,
        "wake": 0,
        "adopt": 0,
        "reap": 0,
        "keep": 0,
        "blocked": 0,
    }
    for step in plan["steps"]:
        assert step.keys() >= {"id", "action", "engine", "replica", "cause", "after"}
    assert [step["after"] for step in plan["steps"]] == [[], [plan["steps"][0]["id"]]]
    assert world.plan() == plan, "planning twice gives the same"
    assert "| start | `chat#0` |" in world("plan", "--format", "markdown").ok().out


def test_apply_as_json(world: World) -> None:
    world.write(engine("chat"), engine("bad", "--exit-at-start", "4"))
    result = world("apply", "--yes", "--json").failed().json()
    assert result["ok"] is False
    assert {one["id"]: one["result"] for one in result["outcomes"]} == {
        "start:chat#0": "done",
        "start:bad#0": "failed",
    }


def test_validate_tells_every_fault_with_its_place(world: World) -> None:
    text = stack_text([engine("chat", replicsa=2), engine("embed", port=99999)])
    world.write_text(text)
    result = world("validate", "sage.yaml").failed()
    lines = result.out.splitlines()
    assert any(line.startswith("sage.yaml:4:") and "replicas?" in line for line in lines), result.out
    assert any(line.startswith("sage.yaml:5:") and "port" in line for line in lines), result.out
    for command in ("plan", "apply"):
        assert "sage.yaml:4:" in world(command).failed().err


def test_schema_and_fmt(world: World) -> None:
    assert world("schema").ok().json()["type"] == "object"
    world.write_text("engines:\n      - {name: chat,   model: m}\nversion: 1\n# the end\n")
    assert "would be formatted" in world("fmt", "--check").failed().out
    world("fmt").ok()
    world("fmt", "--check").ok()
    assert "# the end" in (world.folder / "sage.yaml").read_text()


def test_a_reader_that_leaves_is_no_trouble(world: World) -> None:
    """`sage schema | head -1`: more output than a pipe holds, and nobody to read it."""
    process = subprocess.Popen(
        [*SAGE, "schema"], env=world.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read().decode()
    process.stderr.close()
    process.wait()
    assert err == ""
    status = f"{sys.executable} -m sage_reconcile.cli.main status | head -c 1"
    done = subprocess.run(["bash", "-c", status], env=world.environ, capture_output=True, text=True)
    assert done.stderr == ""
    assert is_tidy(done.stdout)


def test_logs_follow_until_interrupted(world: World) -> None:
    world.write(engine("chat"))
    world.apply()
    follower = world.start("logs", "chat", "--follow")
    follower.says("fake engine: pid")
    follower.says("POST /v1/chat/completions")
    follower.signal(signal.SIGINT)
    assert follower.end().rc == 130
    assert is_alive(world.pids()["chat#0"].engine)


def test_status_against_the_file_shows_drift(world: World) -> None:
    port = free_port()
    world.write(engine("chat", port=port))
    world.apply()
    world.write(engine("chat", "--answer", "no", port=port))
    assert "replace: " in world("status").ok().out


def test_numbers_that_make_no_sense_are_refused(world: World) -> None:
    world.write()
    for words in ("apply --timeout -1", "watch --interval 0", "logs a -n -1", "events -n -1"):
        assert f"see `sage {words.split()[0]} --help`" in world(*words.split()).failed().err
    world("watch", "--once").ok()
    assert world("events").ok().out
    assert world("events", "-n", "0").ok().out == ""


def test_a_terminal_that_knows_ascii_only_shows_what_it_can(world: World) -> None:
    """And what sage gives to supervisors and engines does not depend on it."""
    strict = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    world.write(engine("a") | {"model": "modèle-ü"})
    assert "mod?le-?" in world("plan", **strict).ok().out
    assert "mod?le-?" in world("apply", "--yes", **strict).ok().out
    assert "mod?le-?" in world("status", **strict).ok().out
    assert "modèle-ü" in world("status").ok().out
    world.is_settled()
