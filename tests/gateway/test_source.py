"""Reading the routing file, and keeping the last good table."""

from pathlib import Path
from typing import get_args

import pytest

from gateway import line, pick
from gateway.references import resolve
from gateway.source import TableSource
from sage_reconcile.model import codec
from sage_reconcile.model.routing import RoutingTable
from sage_reconcile.stack.sections import Queue, Routing
from tests.gateway.world import backend, digest_of, table

GOOD = codec.encode(table({"m": [backend("http://x")]}))


def publish(path: Path, data: bytes) -> None:
    partial = path.with_suffix(".new")
    partial.write_bytes(data)
    partial.replace(path)


def test_a_new_table_is_read_once(tmp_path: Path) -> None:
    source = TableSource(tmp_path / "routing.json")
    assert not source.refresh()
    assert "apply a stack" in source.fault
    publish(source.path, GOOD)
    assert source.refresh()
    assert not source.refresh()
    assert (source.digest, source.fault) == (digest_of(GOOD), "")
    assert source.table.routes[0].name == "m"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"", "truncated"),
        (b'{"routes": [{"name": 3}]}', r"routes\[0\]"),
        (b'{"version": 2}', "version 2"),
        (b'{"routes":[{"name":"m","kind":"llm","backends":[],"policy":"magic"}]}', "policy 'magic'"),
        (b'{"routes":[{"name":"m","kind":"llm","backends":[],"queue_policy":"luck"}]}', "policy 'luck'"),
        (b'{"routes":[{"name":"m","kind":"llm","backends":["gone"]}],"backends":[]}', "gone"),
    ],
)
def test_the_last_good_table_stays(tmp_path: Path, bad: bytes, words: str) -> None:
    source = TableSource(tmp_path / "routing.json")
    publish(source.path, GOOD)
    source.refresh()
    publish(source.path, bad)
    assert not source.refresh()
    assert words.replace("\\", "") in source.fault
    assert source.digest == digest_of(GOOD)
    assert source.table.routes[0].name == "m"
    source.path.unlink()
    assert not source.refresh()
    assert source.table.routes[0].name == "m"
    publish(source.path, GOOD)
    source.refresh()
    assert source.fault == ""


def test_the_gateway_knows_every_policy_of_a_stack_file() -> None:
    assert frozenset(get_args(Routing.model_fields["policy"].annotation)) == pick.POLICIES
    assert frozenset(get_args(Queue.model_fields["policy"].annotation)) == line.POLICIES


def test_an_empty_table_is_a_table(tmp_path: Path) -> None:
    source = TableSource(tmp_path / "routing.json")
    publish(source.path, GOOD)
    source.refresh()
    publish(source.path, codec.encode(RoutingTable()))
    assert source.refresh()
    assert source.table == RoutingTable()


def test_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_KEY", "k1")
    (tmp_path / "key").write_text("k2\n", encoding="utf-8")
    assert resolve("${env:FAR_KEY}") == "k1"
    assert resolve(f"${{file:{tmp_path}/key}}") == "k2"


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("sk-literal", "not a reference"),
        ("${env:NOT_SET_ANYWHERE}", "NOT_SET_ANYWHERE is not set"),
        ("${file:/nowhere/key}", "cannot read /nowhere/key"),
    ],
)
def test_unresolvable_references(reference: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        resolve(reference)
    assert "sk-literal" not in str(caught.value)
