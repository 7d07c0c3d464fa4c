"""Resolving: devices, sleep, names; and the fingerprint, which only what a process is made of may change."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_reconcile.model.desired import DesiredEngine, Device, LaunchSpec, RouteSpec
from sage_reconcile.model.gateway import GatewaySpec, KeySpec, SessionsSpec
from sage_reconcile.stack.load import from_document, load
from sage_reconcile.stack.resolve import resolve

BASE: dict[str, Any] = {"name": "a", "model": "org/model"}
COMMAND: dict[str, Any] = {"runtime": "command", "command": ["run", "{port}"]}


def engine_of(**given: Any) -> DesiredEngine:
    (engine,) = resolve(from_document({"engines": [{**BASE, **given}]}, Path("/"), "s", {"T": "x"})).engines
    return engine


DEVICES = [
    ({}, Device.GPU),
    ({"use_gpu": False}, Device.CPU),
    ({"gpus": 0}, Device.CPU),
    ({"gpus": 1}, Device.GPU),
    ({"gpus": [3]}, Device.GPU),
    ({"kind": "embedding"}, Device.CPU),
    ({"kind": "embedding", "use_gpu": True}, Device.GPU),
    ({"kind": "embedding", "gpus": 1}, Device.GPU),
    ({"runtime": "transformers"}, Device.GPU),
    (COMMAND, Device.PREFER_GPU),
    ({**COMMAND, "gpus": "auto"}, Device.PREFER_GPU),
    ({**COMMAND, "gpus": 0}, Device.CPU),
    ({**COMMAND, "use_gpu": True}, Device.GPU),
    ({**COMMAND, "gpu_memory": "1GiB"}, Device.GPU),
    ({**COMMAND, "tensor_parallel": 2}, Device.GPU),
    ({**COMMAND, "kind": "embedding"}, Device.CPU),
    ({"runtime": "external", "url": "http://h:1"}, Device.CPU),
]


@pytest.mark.parametrize(("given", "device"), DEVICES)
def test_device(given: dict[str, Any], device: Device) -> None:
    assert engine_of(**given).launch.device is device


def test_how_requests_are_shared_and_wait() -> None:
    route = engine_of(
        routing={
            "policy": "session_affinity",
            "queue": {"policy": "slo_aware", "size": 0, "timeout": "2m"},
            "first_byte_timeout": "90s",
            "idle_timeout": 15,
        }
    ).route
    assert (route.policy, route.queue_policy, route.queue_size) == ("session_affinity", "slo_aware", 0)
    assert (route.queue_timeout, route.first_byte_timeout, route.idle_timeout) == (120.0, 90.0, 15.0)


def test_a_route_is_what_the_gateway_takes_where_nothing_is_said() -> None:
    assert replace(engine_of().route, names=()) == RouteSpec(())


MEMORY = [
    ("auto", "auto"),
    ("20GiB", 20480),
    ("8GB", 7629),
    ("500MiB", 500),
    (0.5, 0.5),
    (1, 1.0),
    ("1.5GiB", 1536),
]


@pytest.mark.parametrize(("given", "expected"), MEMORY)
def test_gpu_memory(given: Any, expected: Any) -> None:
    value = engine_of(gpu_memory=given).launch.gpu_memory
    assert (value, type(value)) == (expected, type(expected))


def test_gpu_memory_of_a_cpu_engine_changes_nothing() -> None:
    assert engine_of(gpus=0, gpu_memory="1GiB") == engine_of(gpus=0)


def test_sleep_mode() -> None:
    assert not engine_of().launch.can_sleep
    assert engine_of(args={"enable-sleep-mode": True}).launch.can_sleep
    asleep = engine_of(state="asleep").launch
    assert asleep.can_sleep
    assert asleep == engine_of(args={"enable_sleep_mode": True}).launch


def test_names_of_a_model_directory(tmp_path: Path) -> None:
    directory = tmp_path / "tiny"
    directory.mkdir()
    engine = engine_of(model=str(directory), label="l", aliases=["z", "b"])
    assert engine.route.names == tuple(sorted({"a", "l", "z", "b", str(directory), "tiny"}))


def test_values_of_args_are_kept() -> None:
    args = {"--a_b": True, "c": None, "d": [1, "x"], "e": 0.5}
    assert engine_of(args=args).launch.args == (("a-b", True), ("c", None), ("d", (1, "x")), ("e", 0.5))


LAUNCH_CHANGES: list[dict[str, Any]] = [
    {"model": "org/other"},
    {"runtime": "transformers"},
    {"args": {"p": 1}},
    {"extra_args": ["--x"]},
    {"env": {"A": "b"}},
    {"cwd": "/"},
    {"tensor_parallel": 2},
    {"pipeline_parallel": 2},
    {"gpu_memory": "1GiB"},
    {"use_gpu": False},
]


@pytest.mark.parametrize("change", LAUNCH_CHANGES, ids=[next(iter(change)) for change in LAUNCH_CHANGES])
def test_what_a_process_is_made_of_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert engine_of(**change).fingerprint != engine_of().fingerprint


def test_every_field_of_a_launch_is_set_by_some_pass() -> None:
    """A field added to LaunchSpec but forgotten here would never change a fingerprint."""
    reached = {
        field.name
        for given in [*LAUNCH_CHANGES, {**COMMAND}, {"state": "asleep"}, {"kind": "embedding"}]
        for field in fields(LaunchSpec)
        if getattr(engine_of(**given).launch, field.name) != getattr(engine_of().launch, field.name)
    }
    assert {field.name for field in fields(LaunchSpec)} - reached == {"python", "program", "url", "api_key"}


LABELS = st.text("abcdefgh", min_size=1, max_size=5)
SECONDS = st.floats(0.1, 1000)
NOT_LAUNCH = st.fixed_dictionaries(
    {},
    optional={
        "label": LABELS,
        "aliases": st.lists(LABELS, max_size=3),
        "metadata": st.dictionaries(LABELS, st.one_of(LABELS, st.integers(), st.booleans()), max_size=3),
        "max_concurrent": st.integers(1, 999),
        "port": st.integers(1024, 60000),
        "replicas": st.integers(1, 9),
        "routing": st.fixed_dictionaries(
            {
                "weight": st.integers(1, 9),
                "policy": st.sampled_from(["round_robin", "prefix_affinity"]),
                "queue": st.fixed_dictionaries({"policy": st.just("priority"), "size": st.integers(0, 9)}),
                "first_byte_timeout": SECONDS,
                "idle_timeout": SECONDS,
            }
        ),
        "health": st.fixed_dictionaries(
            {"interval": SECONDS, "probe": st.sampled_from(["generate", "http"])}
        ),
        "restart": st.fixed_dictionaries({"policy": st.sampled_from(["always", "never"]), "window": SECONDS}),
        "rollout": st.fixed_dictionaries({"drain": SECONDS, "hold": SECONDS, "strategy": st.just("surge")}),
    },
)


@given(NOT_LAUNCH, st.randoms())
def test_nothing_but_the_launch_changes_the_fingerprint(given: dict[str, Any], random: Any) -> None:
    launch = {"args": {"p": 1, "q": 2}, "env": {"A": "b", "C": "d"}}
    shuffled = list({**given, **launch}.items())
    random.shuffle(shuffled)
    shuffled_launch = {key: dict(reversed(value.items())) for key, value in shuffled if key in launch}
    assert engine_of(**{**dict(shuffled), **shuffled_launch}).fingerprint == engine_of(**launch).fingerprint


@given(st.permutations(["c", "a", "b"]), st.text(max_size=20))
def test_order_and_description_change_nothing(order: list[str], description: str) -> None:
    engines = [{"name": name, "model": f"org/{name}"} for name in order]
    document = {"engines": engines, "description": description}
    plain = {"engines": sorted(engines, key=lambda engine: engine["name"])}
    assert resolve(from_document(document, Path("/"), "s", {})) == resolve(
        from_document(plain, Path("/"), "s", {})
    )


def test_the_gateway(tmp_path: Path) -> None:
    """Every field of its section and of its keys, each with a value of its own."""
    text = f"""\
gateway:
  host: 127.0.0.2
  port: 8002
  workers: 2
  api_keys: ["${{env:KEY}}"]
  keys:
    - name: a
      key: "${{env:KEY}}"
      models: [chat]
      requests_per_minute: 1
      tokens_per_minute: 2
      max_concurrent: 3
      admin: true
    - {{name: b, sha256: "{"AB" * 32}"}}
  cors_origins: [https://ui.example]
  sessions: {{url: "postgresql://u:${{env:KEY}}@h/d", max_turns: 4}}
engines: []
"""
    (tmp_path / "s.yaml").write_text(text)
    assert resolve(load([tmp_path / "s.yaml"], {"KEY": "k"})).gateway == GatewaySpec(
        "127.0.0.2",
        8002,
        2,
        ("${env:KEY}",),
        (KeySpec("a", "${env:KEY}", "", ("chat",), 1, 2, 3, True), KeySpec("b", sha256="ab" * 32)),
        ("https://ui.example",),
        SessionsSpec(True, "postgresql://u:${env:KEY}@h/d", 4),
    )
