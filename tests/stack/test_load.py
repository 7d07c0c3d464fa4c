"""What loading gives: published shapes, overlays, includes, settings, references, stored documents."""

import hashlib
import json
from pathlib import Path

import pytest

from sage_reconcile.errors import StackError
from sage_reconcile.model.desired import Device, EngineState, Kind, ProbeKind
from sage_reconcile.stack.file import StackFile
from sage_reconcile.stack.load import from_document, load
from sage_reconcile.stack.resolve import resolve
from sage_reconcile.stack.schema import Engine

PRESET = """\
version: 1
name: my-custom-preset
description: several engines
engines:
  - {name: chat, kind: llm, model: Qwen/Qwen2.5-7B-Instruct, tensor_parallel: 2, port: 8901, label: main-chat}
  - {name: embed, kind: embedding, model: BAAI/bge-m3, port: 8090, use_gpu: true}
"""
PRODUCTION = """\
version: 1
name: production-stack
engines:
  - {name: chat-main, kind: llm, model: Qwen/Qwen2.5-7B-Instruct, tensor_parallel: 2, port: 8901, max_concurrent: 256, label: main-chat}
  - {name: chat-backup, kind: llm, model: Qwen/Qwen2.5-7B-Instruct, tensor_parallel: 2, port: 8902, label: backup-chat}
  - {name: embed, kind: embedding, model: BAAI/bge-m3, port: 8090, use_gpu: true, label: main-embed}
"""  # noqa: E501
SHAPES = """\
engines:
  - name: local
    kind: llm
    model: my-model                     # what clients send as "model"; also aliases, label
    runtime: command
    command: ["python3", "server.py", "--port", "{port}", "--model", "{model}"]
    env: {KEY: value, HF_TOKEN: "${env:HF_TOKEN}"}
    args: {max-model-len: 4096, enforce-eager: true}
    replicas: 2
    gpus: auto
    gpu_memory: 20GiB
    state: running
    health: {probe: generate, path: /health, startup_timeout: 10m, interval: 10s, timeout: 5s, failures: 3}
    restart: {policy: always, max_attempts: 5, window: 10m, backoff: 1s, backoff_max: 60s}
    rollout: {strategy: auto, hold: 30s, drain: 30s}
    depends_on: [other]
  - {name: far, kind: llm, model: m, runtime: external, url: "http://127.0.0.1:9000", api_key: "${env:KEY}"}
  - {name: other, model: x, runtime: vllm-cpu, use_gpu: false}
runtimes:
  vllm-cpu: {kind: vllm, python: /opt/vllm/bin/python, env: {}, args: {}}
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def stack_of(folder: Path, text: str, environ: dict[str, str] | None = None, *sets: str) -> StackFile:
    return load([write(folder, "s.yaml", text)], environ or {}, sets)


def by_name(stack: StackFile) -> dict[str, Engine]:
    return {engine.name: engine for engine in stack.model.engines}


def test_the_first_published_file_loads(tmp_path: Path) -> None:
    stack = stack_of(tmp_path, PRESET)
    desired = resolve(stack)
    assert desired.stack == "my-custom-preset"
    chat, embed = desired.engines
    assert (chat.launch.runtime, chat.launch.device, chat.launch.gpu_count) == ("vllm", Device.GPU, 2)
    assert chat.placement.port == 8901
    assert chat.route.names == ("Qwen/Qwen2.5-7B-Instruct", "chat", "main-chat")
    assert (embed.launch.runtime, embed.launch.device) == ("sentence-transformers", Device.GPU)
    assert embed.live.health.probe is ProbeKind.EMBED


def test_the_second_published_file_loads_as_a_pool(tmp_path: Path) -> None:
    desired = resolve(stack_of(tmp_path, PRODUCTION))
    assert [engine.name for engine in desired.engines] == ["chat-backup", "chat-main", "embed"]
    pool = [engine for engine in desired.engines if "Qwen/Qwen2.5-7B-Instruct" in engine.route.names]
    assert len(pool) == 2


def test_the_published_shapes_load(tmp_path: Path) -> None:
    desired = resolve(stack_of(tmp_path, SHAPES, {"HF_TOKEN": "secret", "KEY": "k"}))
    far, local, other = desired.engines
    assert local.launch.command[1] == "server.py"
    assert local.launch.args == (("enforce-eager", True), ("max-model-len", 4096))
    assert dict(local.launch.env)["HF_TOKEN"] == "${env:HF_TOKEN}"
    assert (local.launch.gpu_memory, local.replicas, local.after) == (20480, 2, ("other",))
    assert local.launch.device is Device.GPU
    assert (local.live.health.startup_timeout, local.live.restart.window) == (600.0, 600.0)
    assert (far.launch.url, far.launch.api_key) == ("http://127.0.0.1:9000", "${env:KEY}")
    assert far.launch.is_external
    assert (other.launch.runtime, other.launch.python) == ("vllm", "/opt/vllm/bin/python")
    assert (other.state, other.launch.kind) == (EngineState.RUNNING, Kind.LLM)


def test_the_name_defaults_to_the_file(tmp_path: Path) -> None:
    assert load([write(tmp_path, "My Stack.yaml", "engines: []")], {}).name == "my-stack"


def test_sources_carry_digests(tmp_path: Path) -> None:
    stack = stack_of(tmp_path, "engines: []\n")
    assert stack.sources == ((f"{tmp_path}/s.yaml", hashlib.sha256(b"engines: []\n").hexdigest()),)
    assert stack.base == tmp_path


def test_overlays_merge_engines_by_name(tmp_path: Path) -> None:
    base = write(tmp_path, "base.yaml", """\
engines:
  - {name: a, model: m, label: x, args: {p: 1, q: 2}, aliases: [one, two], max_concurrent_requests: 5}
  - {name: b, model: n}
gateway: {port: 9000, workers: 2}
""")  # fmt: skip
    top = write(tmp_path, "top.yaml", """\
engines:
  - {name: c, model: o}
  - {name: a, label: null, args: {q: 3, p: null, r: 4}, aliases: [three], max_concurrent: 7}
gateway: {port: 9001}
""")  # fmt: skip
    stack = load([base, top], {})
    assert [engine.name for engine in stack.model.engines] == ["a", "b", "c"]
    a = by_name(stack)["a"]
    assert (a.model, a.label, a.args, a.aliases, a.max_concurrent) == (
        "m",
        None,
        {"q": 3, "r": 4},
        ("three",),
        7,
    )
    assert (stack.model.gateway.port, stack.model.gateway.workers) == (9001, 2)
    assert [path for path, _ in stack.sources] == [str(base), str(top)]


def test_includes_lie_below_the_file_and_their_paths_are_their_own(tmp_path: Path) -> None:
    (tmp_path / "shared" / "weights").mkdir(parents=True)
    write(tmp_path, "shared/base.yaml", "engines: [{name: a, model: ./weights, cwd: sub, replicas: 2}]\n")
    stack = stack_of(tmp_path, "include: [shared/base.yaml]\nengines: [{name: a, replicas: 3}]\n")
    a = by_name(stack)["a"]
    assert (a.model, a.cwd, a.replicas) == (f"{tmp_path}/shared/weights", f"{tmp_path}/shared/sub", 3)
    assert stack.document["include"] == [f"{tmp_path}/shared/base.yaml"]
    assert [Path(path).name for path, _ in stack.sources] == ["base.yaml", "s.yaml"]


def test_an_include_may_lie_in_any_folder(tmp_path: Path) -> None:
    """Its path counts from the folder of the file that names it, whoever includes that."""
    write(tmp_path, "base.yaml", "engines: [{name: a, model: m, replicas: 2}]\n")
    for folder in ("site", "site/blue"):
        (tmp_path / folder).mkdir()
    write(tmp_path, "site/all.yaml", "include: [../base.yaml]\n")
    write(tmp_path, "site/blue/s.yaml", "include: [../all.yaml]\nengines: [{name: a, label: blue}]\n")
    stack = load([tmp_path / "site" / "blue" / "s.yaml"], {})
    assert (by_name(stack)["a"].replicas, by_name(stack)["a"].label) == (2, "blue")


def test_defaults_lie_below_every_engine(tmp_path: Path) -> None:
    stack = stack_of(tmp_path, """\
defaults: {env: {A: x, B: y}, args: {p: 1}, replicas: 2, health: {interval: 5s}}
engines:
  - {name: a, model: m, env: {B: z}, args: {p: null}, health: {timeout: 1s}}
  - {name: b, model: n, replicas: 1}
""")  # fmt: skip
    a, b = stack.model.engines
    assert (a.env, a.args, a.replicas) == ({"A": "x", "B": "z"}, {}, 2)
    assert (a.health.interval, a.health.timeout, b.replicas) == (5.0, 1.0, 1)


def test_a_runtime_gives_what_the_engine_does_not(tmp_path: Path) -> None:
    desired = resolve(stack_of(tmp_path, """\
runtimes: {mine: {kind: command, command: [run, "{port}"], env: {A: x, B: y}, args: {p: 1, q: 2}}}
engines:
  - {name: a, model: m, runtime: mine, env: {B: z}, args: {q: 3}}
  - {name: b, model: m, runtime: mine, command: [other, "{port}"]}
"""))  # fmt: skip
    a, b = desired.engines
    assert a.launch.command == ("run", "{port}")
    assert a.launch.env == (("A", "x"), ("B", "z"))
    assert a.launch.args == (("p", 1), ("q", 3))
    assert b.launch.command == ("other", "{port}")


SETS = [
    ("engines.chat.replicas=3", lambda e: e.replicas, 3),
    ("engines.chat.args.max-model-len=4096", lambda e: e.args["max-model-len"], 4096),
    ("engines.chat.args.a.b=x", lambda e: e.args["a.b"], "x"),
    ("engines.chat.env.A=b=c", lambda e: e.env["A"], "b=c"),
    ("engines.chat.aliases=[x, y]", lambda e: e.aliases, ("x", "y")),
    ("engines.chat.label=", lambda e: e.label, None),
    ("defaults.replicas=4", lambda e: e.replicas, 4),
    ("engines.chat.health.interval=1s", lambda e: e.health.interval, 1.0),
]


@pytest.mark.parametrize(("setting", "read", "value"), SETS, ids=[case[0] for case in SETS])
def test_set(tmp_path: Path, setting: str, read: object, value: object) -> None:
    text = "engines: [{name: chat, model: m, label: l, env: {X: y}}]\n"
    (engine,) = stack_of(tmp_path, text, {}, setting).model.engines
    assert callable(read)
    assert read(engine) == value


def test_set_finds_engines_whose_names_hold_dots(tmp_path: Path) -> None:
    text = "engines: [{name: qwen2.5, model: m}, {name: qwen2, model: m}]\n"
    stack = stack_of(tmp_path, text, {}, "engines.qwen2.5.replicas=2")
    assert [engine.replicas for engine in stack.model.engines] == [2, 1]


def test_references_are_substituted_but_in_secrets(tmp_path: Path) -> None:
    text = """\
gateway: {api_keys: ["${env:KEY}"], keys: [{name: a, key: "${env:KEY}"}, {name: b, key: "${file:key.txt}"}]}
engines:
  - name: a
    model: "${env:ORG}/x"
    port: "${env:PORT}"
    use_gpu: "${env:FLAG}"
    label: "$${env:ORG}"
    env: {T: "${env:KEY}", F: "${file:key.txt}"}
"""
    write(tmp_path, "key.txt", "k")
    stack = stack_of(tmp_path, text, {"ORG": "org", "PORT": "8950", "FLAG": "false", "KEY": "k3y"})
    (a,) = stack.model.engines
    assert (a.model, a.port, a.use_gpu, a.label) == ("org/x", 8950, False, "${env:ORG}")
    assert a.env == {"T": "${env:KEY}", "F": f"${{file:{tmp_path}/key.txt}}"}
    assert stack.model.gateway.api_keys == ("${env:KEY}",)
    assert [key.key for key in stack.model.gateway.keys] == ["${env:KEY}", f"${{file:{tmp_path}/key.txt}}"]
    assert stack.document["engines"][0]["model"] == "${env:ORG}/x"
    assert "k3y" not in json.dumps(stack.document)


def test_a_stored_document_gives_the_same_stack(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    environ = {"HF_TOKEN": "x", "KEY": "y"}
    stack = stack_of(tmp_path, SHAPES + "defaults: {replicas: 1, model: ./weights}\n", environ)
    stored = json.loads(json.dumps(stack.document))
    again = from_document(stored, stack.base, stack.name, environ)
    assert resolve(again) == resolve(stack)


def test_a_stored_document_can_be_at_fault() -> None:
    with pytest.raises(StackError, match=r"^old: error: engines\[0\]\.replicas: must be at least 1"):
        from_document({"engines": [{"name": "a", "model": "m", "replicas": 0}]}, Path("/"), "old", {})


def test_small_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    text = """\
engines:
  - &a {name: a, model: m, args: &flags {p: 1}}
  - {<<: *a, name: b, args: {<<: *flags, q: 2}}
"""
    engines = by_name(stack_of(tmp_path, text))
    assert (engines["b"].model, engines["b"].args, engines["a"].args) == ("m", {"p": 1, "q": 2}, {"p": 1})


def test_scalars_follow_yaml_1_2(tmp_path: Path) -> None:
    text = "engines: [{name: a, model: m, env: {A: on, B: no, C: 1:30, D: 0o17, E: 017}, label: yes}]\n"
    (a,) = stack_of(tmp_path, text).model.engines
    assert a.env == {"A": "on", "B": "no", "C": "1:30", "D": "15", "E": "17"}
    assert a.label == "yes"


def test_a_command_beside_the_file_runs_there(tmp_path: Path) -> None:
    write(tmp_path, "server.py", "")
    text = 'engines: [{name: a, model: m, runtime: command, command: [python3, server.py, "{port}"]}]\n'
    assert stack_of(tmp_path, text).model.engines[0].cwd == str(tmp_path)
    (tmp_path / "server.py").unlink()
    assert stack_of(tmp_path, text).model.engines[0].cwd is None
