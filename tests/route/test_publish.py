import stat
import threading
from pathlib import Path

import pytest

from sage_reconcile.model.routing import Backend, Route, RoutingTable
from sage_reconcile.route.publish import digest, publish, read

TABLE = RoutingTable(
    (Route("m", "llm", ("demo/chat#0@f:l",), metadata=(("owner", "team"),), stack="demo"),),
    (Backend("demo/chat#0@f:l", "demo", "chat", 0, "http://127.0.0.1:8901", "m", "llm"),),
)


def test_what_is_published_is_read(tmp_path: Path) -> None:
    path = tmp_path / "routing" / "routing.json"
    assert publish(path, TABLE) is True
    assert read(path) == TABLE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["routing.json"]


def test_the_same_table_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "routing.json"
    publish(path, TABLE)
    inode = path.stat().st_ino
    assert publish(path, TABLE) is False
    assert path.stat().st_ino == inode
    assert publish(path, RoutingTable()) is True
    assert path.stat().st_ino != inode


def test_the_digest_tells_tables_apart(tmp_path: Path) -> None:
    path = tmp_path / "routing.json"
    assert digest(path) == ""
    publish(path, TABLE)
    first = digest(path)
    assert len(first) == 12
    publish(path, RoutingTable())
    assert digest(path) != first
    publish(path, TABLE)
    assert digest(path) == first


@pytest.mark.parametrize("text", ["", "{", '{"version": 2}', '{"routes": 5}'])
def test_a_broken_table_is_none_and_is_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / "routing.json"
    assert read(path) is None
    path.write_text(text)
    assert read(path) is None
    assert publish(path, TABLE) is True
    assert read(path) == TABLE


def test_what_cannot_be_replaced_stays_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "routing.json"
    path.mkdir()
    (path / "occupied").touch()
    with pytest.raises(OSError, match="directory"):
        publish(path, TABLE)
    assert [entry.name for entry in tmp_path.iterdir()] == ["routing.json"]


def test_a_reader_never_sees_half_a_table(tmp_path: Path) -> None:
    path = tmp_path / "routing.json"
    tables = [TABLE, RoutingTable()]
    publish(path, tables[0])
    done = threading.Event()
    seen: list[RoutingTable | None] = []

    def watch() -> None:
        while not done.is_set():
            seen.append(read(path))

    reader = threading.Thread(target=watch)
    reader.start()
    for number in range(100):
        publish(path, tables[number % 2])
    done.set()
    reader.join()
    assert seen
    assert all(table in tables for table in seen)
