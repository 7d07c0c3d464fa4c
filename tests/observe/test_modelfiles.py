"""Models' files as they lie on a disk: found, read, refused, read again when they change."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from sage_reconcile.engines.estimate import estimate
from sage_reconcile.home import Home
from sage_reconcile.model import codec
from sage_reconcile.model.desired import Device, Kind, LaunchSpec
from sage_reconcile.model.modelfiles import ModelFiles, Source
from sage_reconcile.observe.modelfiles import ModelReader, find_model
from tests.engines.checkpoints import gguf_bytes, llama_tensors, write_model, write_safetensors

NAME = "org/tiny"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 256,
    "torch_dtype": "bfloat16",
}
TENSORS = dict(llama_tensors(CONFIG))
GGUF = {
    "general.architecture": "llama",
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 128,
    "llama.block_count": 2,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.context_length": 256,
    "tokenizer.ggml.tokens": ["a", "b"],
}
SPEC = LaunchSpec(Kind.LLM, "vllm", NAME, Device.GPU)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def read(home: Home, spec: LaunchSpec = SPEC, **environ: str) -> ModelFiles:
    (found,) = ModelReader(home, {"HOME": str(home.root), **environ}).read([spec])
    return found


def test_shards_are_read_by_their_index(home: Home) -> None:
    names = list(TENSORS)
    parts = [{name: TENSORS[name] for name in names[:7]}, {name: TENSORS[name] for name in names[7:]}]
    folder = write_model(home.models / NAME, CONFIG, parts)
    write_safetensors(folder / "consolidated.safetensors", TENSORS)
    found = read(home)
    assert (found.source, found.unknown, found.path) == (Source.SAFETENSORS, "", str(folder))
    assert sum(w.size for w in found.stored) == 2 * sum(w.elements for w in found.stored)
    single = write_model(home.models / "org/single", CONFIG, [TENSORS])
    assert read(home, replace(SPEC, model="org/single")).stored == found.stored
    assert read(home, replace(SPEC, model=str(single))).stored == found.stored
    assert codec.decode(codec.encode(found), ModelFiles) == found


def test_a_config_alone_is_enough(home: Home) -> None:
    write_model(home.models / NAME, CONFIG)
    counted = read(home)
    assert counted.source is Source.CONFIG
    write_model(home.models / "org/whole", CONFIG, [TENSORS])
    stored = read(home, replace(SPEC, model="org/whole"))
    one, other = estimate(SPEC, counted, 24576), estimate(SPEC, stored, 24576)
    assert one is not None
    assert other is not None
    assert one.parts == other.parts


def test_a_download_that_goes_on_is_counted_from_the_config(home: Home) -> None:
    half = {name: TENSORS[name] for name in list(TENSORS)[:7]}
    rest = {name: TENSORS[name] for name in list(TENSORS)[7:]}
    folder = write_model(home.models / NAME, CONFIG, [half, rest])
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert read(home).source is Source.CONFIG


def test_what_is_not_there_is_unknown(home: Home) -> None:
    assert read(home).unknown == "its files are not on this host"
    assert read(home, replace(SPEC, model="/nowhere/at/all")).unknown == "its files are not on this host"
    assert read(home, replace(SPEC, model="../../etc")).unknown == "its files are not on this host"


def test_only_runtimes_that_read_directories_are_looked_up(home: Home) -> None:
    command = replace(SPEC, runtime="command")
    external = replace(SPEC, runtime="external", url="http://127.0.0.1:1")
    assert ModelReader(home, {}).read([command, external]) == ()


def test_the_hubs_cache_has_one_snapshot_for_its_main_branch(home: Home, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    folder = hub / "models--org--tiny"
    write_model(folder / "snapshots" / "abc", CONFIG)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc\n")
    assert read(home, HF_HUB_CACHE=str(hub)).path == str(folder / "snapshots" / "abc")
    assert find_model(NAME, home, {"HF_HOME": str(tmp_path)}) == folder / "snapshots" / "abc"
    by_file = replace(SPEC, env=(("HF_HUB_CACHE", str(hub)),))
    assert read(home, by_file).path == str(folder / "snapshots" / "abc")
    (folder / "refs" / "main").write_text("../../..")
    assert read(home, HF_HUB_CACHE=str(hub)).unknown == "its files are not on this host"


def test_gguf(home: Home) -> None:
    folder = home.models / NAME
    folder.mkdir(parents=True)
    tensors = {
        "token_embd.weight": ((64, 1000), 12),
        "blk.0.attn_q.weight": ((64, 256), 12),
        "blk.0.attn_norm.weight": ((64,), 0),
        "output.weight": ((64, 1000), 14),
    }
    (folder / "tiny.Q4_K_M.gguf").write_bytes(gguf_bytes(GGUF, tensors))
    found = read(home)
    assert (found.source, found.unknown) == (Source.GGUF, "")
    q4, q6 = 144 / 256, 210 / 256
    sizes = 64000 * q4 + 64 * 256 * q4 + 64 * 4 + 64000 * q6
    assert sum(w.size for w in found.stored) == sizes
    said = estimate(SPEC, found, 24576)
    assert said is not None
    assert said.bytes_per_token == 2 * 2 * 2 * 16 * 2
    assert said.stages == (1,)
    direct = replace(SPEC, model=str(folder / "tiny.Q4_K_M.gguf"))
    assert read(home, direct).stored == found.stored


HUGE = (2**62).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no safetensors header"),
        (b"\x01", "no safetensors header"),
        (HUGE + b"{}", "no safetensors header"),
        ((100).to_bytes(8, "little") + b"{}", "no safetensors header"),
        ((2).to_bytes(8, "little") + b"[]", "no JSON object"),
        ((4).to_bytes(8, "little") + b"}}{{", "not JSON"),
    ],
)
def test_a_broken_header_is_refused(home: Home, content: bytes, reason: str) -> None:
    folder = write_model(home.models / NAME, CONFIG)
    (folder / "model.safetensors").write_bytes(content)
    assert reason in read(home).unknown


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"dtype": "BF16", "shape": [2**39, 2**39]}, "larger than the file"),
        ({"dtype": "BF16", "shape": [10**6]}, "larger than the file"),
        ({"dtype": "BF16", "shape": [-1]}, "impossible shape"),
        ({"dtype": "BF16", "shape": [True]}, "impossible shape"),
        ({"dtype": "BF16", "shape": [2] * 100}, "impossible shape"),
        ({"dtype": "NEW", "shape": [2]}, "unknown dtype"),
        ({"shape": [2]}, "no dtype and shape"),
        ("text", "no dtype and shape"),
    ],
)
def test_a_hostile_tensor_is_refused(home: Home, entry: object, reason: str) -> None:
    folder = write_model(home.models / NAME, CONFIG)
    data = json.dumps({"model.norm.weight": entry}).encode()
    (folder / "model.safetensors").write_bytes(len(data).to_bytes(8, "little") + data)
    assert reason in read(home).unknown


def test_an_index_names_files_of_its_folder_only(home: Home) -> None:
    folder = write_model(home.models / NAME, CONFIG)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../x"}}))
    assert "none of this folder" in read(home).unknown


@pytest.mark.parametrize("content", [b"GGUF", b"GGUF" + b"\xff" * 40, b"nope", gguf_bytes(GGUF, {})[:60]])
def test_a_broken_gguf_is_refused(home: Home, content: bytes) -> None:
    folder = home.models / NAME
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(content)
    assert read(home).unknown.startswith("its files cannot be used: ")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"hidden_size": 1e999}', "[" * 100_000, '"\ud800'])
def test_a_broken_config_is_refused(home: Home, content: str) -> None:
    folder = home.models / NAME
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert read(home).shape is None
    assert read(home).unknown


def test_what_changed_is_read_again_and_nothing_else(home: Home) -> None:
    folder = write_model(home.models / NAME, CONFIG)
    reader = ModelReader(home, {})
    (first,) = reader.read([SPEC])
    (again,) = reader.read([SPEC])
    assert again is first
    write_model(folder, {**CONFIG, "num_hidden_layers": 30})
    os.utime(folder / "config.json", ns=(1, 1))
    (changed,) = reader.read([SPEC])
    assert changed.shape is not None
    assert len(changed.shape.layers) == 30
