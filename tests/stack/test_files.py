"""The files that come with sage: presets load, schemas and the reference page are what the code says."""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from sage_reconcile import resources
from sage_reconcile.errors import PermanentError, StackError
from sage_reconcile.model import codec
from sage_reconcile.model.routing import Backend, Route, RoutingTable
from sage_reconcile.stack.formatting import formatted
from sage_reconcile.stack.jsonschema import routing_schema, schema_files, stack_schema
from sage_reconcile.stack.load import load
from sage_reconcile.stack.reference import reference
from sage_reconcile.stack.resolve import resolve
from sage_reconcile.stack.schema import Engine, Stack
from tests.stack.test_load import PRESET, PRODUCTION, SHAPES

ROOT = Path(__file__).parents[2]


def accepts(schema: dict[str, Any], document: Any) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(document)


@pytest.mark.parametrize("name", resources.presets())
def test_a_preset_loads_and_is_formatted(name: str) -> None:
    path = resources.preset(name)
    text = path.read_text("utf-8")
    stack = load([path], {})
    assert stack.name == name
    assert resolve(stack).engines
    assert formatted(text, name) == text
    assert text.startswith("# yaml-language-server: $schema=../schemas/stack.schema.json\n")
    assert accepts(stack_schema(), YAML(typ="safe", pure=True).load(text))


def test_the_promised_presets_are_there() -> None:
    assert {"quickstart", "qwen-lite", "qwen-mini-with-embeddings"} <= set(resources.presets())
    lite = load([resources.preset("qwen-lite")], {}).model.engines
    assert [(e.model, e.label) for e in lite] == [("Qwen/Qwen2.5-0.5B-Instruct", "chat-qwen05b")]
    mini = load([resources.preset("qwen-mini-with-embeddings")], {}).model.engines
    assert [e.model for e in mini] == ["Qwen/Qwen2.5-1.5B-Instruct", "BAAI/bge-small-zh-v1.5"]


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(PermanentError, match=r'no preset "\.\./x".*quickstart'):
        resources.preset("../x")


@pytest.mark.parametrize(("name", "text"), schema_files().items(), ids=list(schema_files()))
def test_a_schema_file_is_fresh(name: str, text: str) -> None:
    assert (resources.schemas_dir() / name).read_text("utf-8") == text, "run: sage schema --output schemas"
    jsonschema.Draft202012Validator.check_schema(json.loads(text))


def test_the_reference_page_is_fresh() -> None:
    page = (ROOT / "docs" / "stack-reference.md").read_text("utf-8")
    assert page == reference(), "run: python -m sage_reconcile.stack.reference"
    assert all(f"| `{name}` |" in page for name in [*Stack.model_fields, *Engine.model_fields])


@pytest.mark.parametrize("text", [PRESET, PRODUCTION, SHAPES])
def test_the_schema_accepts_the_published_files(text: str) -> None:
    assert accepts(stack_schema(), YAML(typ="safe", pure=True).load(text))


REFUSED = [
    {},
    {"engines": [{"name": "a"}]},
    {"engines": [{"name": "A", "model": "m"}]},
    {"engines": [{"name": "a", "model": "m", "prt": 1}]},
    {"engines": [{"name": "a", "model": "m", "port": 0}]},
    {"engines": [{"name": "a", "model": "m", "port": "x"}]},
    {"engines": [{"name": "a", "model": "m", "kind": "x"}]},
    {"engines": [{"name": "a", "model": "m", "gpu_memory": 20}]},
    {"engines": [{"name": "a", "model": "m", "health": {"interval": "5x"}}]},
    {"engines": [], "gateway": {"api_keys": ["abc"]}},
    {"engines": [], "gateway": {"keys": [{"name": "a"}]}},
    {"engines": [], "gateway": {"keys": [{"name": "a", "key": "abc"}]}},
    {"engines": [], "gateway": {"keys": [{"name": "a", "sha256": "abc"}]}},
    {"engines": [], "gateway": {"keys": [{"name": "a", "key": "${env:A}", "sha256": "ab" * 32}]}},
]


@pytest.mark.parametrize("document", REFUSED, ids=json.dumps)
def test_the_schema_refuses_what_loading_refuses(document: dict[str, Any]) -> None:
    assert not accepts(stack_schema(), document)


ACCEPTED = [
    {"port": "${env:PORT}"},
    {"label": None},
    {"max_concurrent_requests": 3},
    {"gpus": [0, 1]},
    {"gpu_memory": "20GiB"},
    {"health": {"interval": 5, "timeout": "500ms"}},
]


@pytest.mark.parametrize("fields", ACCEPTED, ids=json.dumps)
def test_the_schema_accepts_what_loading_accepts(fields: dict[str, Any]) -> None:
    assert accepts(stack_schema(), {"engines": [{"name": "a", "model": "m", **fields}]})


@pytest.mark.parametrize(
    "key", [{"key": "${env:A}"}, {"key": "${file:a}"}, {"sha256": "ab" * 32, "models": ["a"]}]
)
def test_the_schema_accepts_keys(key: dict[str, Any]) -> None:
    gateway = {"keys": [{"name": "a", **key}], "cors_origins": ["https://ui.example"]}
    assert accepts(stack_schema(), {"engines": [], "gateway": gateway})


@pytest.mark.parametrize("url", ["${env:A}", "postgresql://u:${env:A}@h/d", "postgres://h/d", "sqlite:////a"])
def test_the_schema_accepts_where_sessions_are_kept(url: str) -> None:
    assert accepts(stack_schema(), {"engines": [], "gateway": {"sessions": {"url": url}}})


def test_the_routing_schema_accepts_a_routing_table() -> None:
    backend = Backend("s/a#0@f:l", "s", "a", 0, "http://127.0.0.1:1", "m", "llm")
    table = RoutingTable(routes=(Route("m", "llm", (backend.id,)),), backends=(backend,))
    assert accepts(routing_schema(), json.loads(codec.encode(table)))
    assert not accepts(routing_schema(), {"routes": [{"name": 1}]})


def test_a_pipe_that_nobody_writes_into_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watcher that hung on one could not be ended by a good file any more."""
    monkeypatch.setattr("sage_reconcile.stack.layers.PIPE_SECONDS", 0.2)
    path = tmp_path / "fifo.yaml"
    os.mkfifo(path)
    with pytest.raises(StackError, match=r"fifo\.yaml: error: (cannot be read|.*empty)"):
        load([path], {})
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    try:
        with pytest.raises(StackError, match=r"nothing came from it within"):
            load([path], {})
    finally:
        os.close(writer)
        os.close(reader)


def test_a_device_is_no_stack_file() -> None:
    with pytest.raises(StackError, match="neither a file nor a pipe"):
        load([Path("/dev/zero")], {})
