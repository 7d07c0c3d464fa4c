"""LoRA adapters in a real vLLM that runs: loaded, asked through the gateway, refused, unloaded."""

import json
import struct
from pathlib import Path

import httpx
import pytest

from tests.e2e.world import World
from tests.vllm.world import Places, Served, write_stack

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

RANK = 8


def adapter(places: Places, path: Path, weight: float) -> dict[str, str]:
    """An adapter of all query projections, whose second matrix is all `weight`: 0 changes nothing."""
    config = json.loads((places.model / "config.json").read_bytes())
    hidden = config["hidden_size"]
    header, data = {}, b""
    for layer in range(config["num_hidden_layers"]):
        for part, shape, value in (("A", (RANK, hidden), 1.0), ("B", (hidden, RANK), weight)):
            name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{part}.weight"
            raw = struct.pack("<f", value) * (shape[0] * shape[1])
            offsets = [len(data), len(data) + len(raw)]
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
            data += raw
    path.mkdir()
    head = json.dumps(header).encode()
    (path / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + data)
    told = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj"], "bias": "none"}
    (path / "adapter_config.json").write_text(json.dumps(told))
    return {"name": path.name, "path": str(path)}


def loaded(served: Served) -> set[str]:
    models = httpx.get(f"{served.engine}/v1/models", timeout=60.0).json()["data"]
    return {model["id"] for model in models if model["parent"]}


def test_adapters_come_and_go_in_a_real_vllm(
    world: World, places: Places, served: Served, tmp_path: Path
) -> None:
    before = world.pids()
    same, other = adapter(places, tmp_path / "same", 0.0), adapter(places, tmp_path / "other", 1.0)
    write_stack(world, places.python, lora=[same, other])
    world.apply()
    assert world.pids() == before
    assert loaded(served) == {"same", "other"}
    assert served.ask("same") == served.ask("france")
    assert "Paris" not in served.ask("other")
    world.is_settled()

    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK}))
    write_stack(world, places.python, lora=[same, {"name": "broken", "path": str(broken)}])
    told = world("apply", "--yes").failed().out
    assert f"did not load LoRA adapter broken from {broken}: it answered" in told
    assert loaded(served) == {"same"}
    assert world.pids() == before
    assert "Paris" in served.ask()
