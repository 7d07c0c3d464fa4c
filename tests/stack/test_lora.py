"""Adapters of the stack file: what their directories say, and what cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest

from sage_reconcile.errors import StackError
from sage_reconcile.model.adapters import Adapter
from sage_reconcile.model.desired import DesiredEngine
from sage_reconcile.stack.load import load
from sage_reconcile.stack.resolve import resolve


def adapter(folder: Path, name: str = "sql", **config: Any) -> Path:
    """A directory with an adapter_config.json as PEFT writes it."""
    path = folder / name
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, **config}))
    return path


def write(folder: Path, *engines: str) -> Path:
    path = folder / "sage.yaml"
    path.write_text("engines:\n" + "".join(f"  - {{{engine}}}\n" for engine in engines))
    return path


def chat(path: Path, portable: bool = False) -> DesiredEngine:
    return resolve(load([path], {}, portable=portable)).engines[0]


def fault(path: Path) -> str:
    with pytest.raises(StackError) as caught:
        load([path], {})
    (one,) = caught.value.faults
    return f"{one.line}: {one.field}: {one.message}"


def test_sizes_come_from_the_adapters(tmp_path: Path) -> None:
    adapter(tmp_path, r=8, rank_pattern={"q_proj": 48})
    engine = chat(write(tmp_path, "name: chat, model: m, lora: [{name: sql, path: ./sql}]"))
    assert engine.lora == (Adapter("sql", str(tmp_path / "sql")),)
    assert engine.launch.args == (("enable-lora", True), ("max-lora-rank", 64), ("max-loras", 4))
    assert set(engine.sized) == {"max-lora-rank", "max-loras"}


def test_an_empty_list_is_ready_for_adapters_and_none_is_not(tmp_path: Path) -> None:
    assert chat(write(tmp_path, "name: chat, model: m, lora: []")).launch.takes_adapters
    assert not chat(write(tmp_path, "name: chat, model: m")).launch.takes_adapters


def test_a_described_host_needs_no_directories(tmp_path: Path) -> None:
    path = write(tmp_path, "name: chat, model: m, lora: [{name: sql, path: /far/sql, rank: 32}]")
    assert dict(chat(path, portable=True).launch.args)["max-lora-rank"] == 32


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "of type PREFIX_TUNING; only LORA can be loaded"),
        ({"r": "many"}, "has no usable rank r"),
        ({"r": 1024}, "its rank 1024 is more than any engine takes"),
    ],
)
def test_adapters_that_no_engine_loads(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    adapter(tmp_path, **config)
    assert message in fault(write(tmp_path, "name: chat, model: m, lora: [{name: sql, path: sql}]"))


def test_a_directory_without_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "sql").mkdir()
    told = fault(write(tmp_path, "name: chat, model: m, lora: [{name: sql, path: sql}]"))
    assert told.startswith("2: engines[0].lora[0].path: ")
    assert "adapter_config.json cannot be read: No such file or directory" in told


def test_a_rank_beyond_what_the_file_gives(tmp_path: Path) -> None:
    adapter(tmp_path, r=64)
    path = write(tmp_path, "name: chat, model: m, args: {max-lora-rank: 32}, lora: [{name: sql, path: sql}]")
    assert "its rank 64 is more than args.max-lora-rank: 32" in fault(path)


def test_a_name_that_means_something_else(tmp_path: Path) -> None:
    adapter(tmp_path), adapter(tmp_path, "other")
    chat, lora = "name: chat, model: m, label: talk", "lora: [{name: sql, path: sql}]"
    taken = write(tmp_path, f"{chat}, lora: [{{name: talk, path: sql}}]")
    assert '"talk" is a model name of the engine "chat"' in fault(taken)
    pool = write(tmp_path, f"{chat}, {lora}", f"name: again, model: m, {lora}")
    assert len(resolve(load([pool], {})).engines) == 2
    elsewhere = write(tmp_path, f"{chat}, {lora}", f"name: again, model: n, {lora}")
    assert 'another adapter is called "sql", too' in fault(elsewhere)
