"""Tensors of a checkpoint: headers of safetensors files, metadata of GGUF files; no weights are read.

Files come from anywhere, so every length in them is checked before it is believed.
"""

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sage_reconcile.engines.tensors import Stored, size_of

MAX_HEADER = 100_000_000
"""Bytes of a safetensors header, the limit of the format's own reader."""

MAX_INDEX = 64 * 1024 * 1024
MAX_FILES = 4096
MAX_TENSORS = 2_000_000
MAX_METADATA = 256 * 1024 * 1024
"""Bytes of a GGUF file before its tensors: vocabularies are there, weights are not."""


class BadFile(ValueError):
    """The file is not what its name says, or says what cannot be."""


def json_object(path: Path, limit: int) -> dict[str, Any]:
    """A JSON object of a file of at most `limit` bytes. Raises BadFile, OSError."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise BadFile(f"{path.name} is larger than {limit:,} bytes")
    return _object(data, path.name)


def _object(data: bytes, name: str) -> dict[str, Any]:
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError):
        raise BadFile(f"{name} is not JSON") from None
    if not isinstance(plain, dict):
        raise BadFile(f"{name} is no JSON object")
    return plain


def safetensors_files(folder: Path) -> tuple[Path, ...]:
    """The shards that the index names, else every safetensors file of the folder but consolidated copies.

    Raises BadFile for an index that names files elsewhere, OSError for one that cannot be read.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = json_object(index, MAX_INDEX).get("weight_map")
        if not isinstance(names, dict):
            raise BadFile(f"{index.name} has no weight_map")
        shards = sorted({name for name in names.values() if isinstance(name, str)})
        if any("/" in name or name in ("", ".", "..") for name in shards) or len(shards) > MAX_FILES:
            raise BadFile(f"{index.name} names files that are none of this folder")
        return tuple(folder / name for name in shards)
    found = sorted(folder.glob("*.safetensors"))
    own = [path for path in found if not path.name.startswith(("consolidated", "adapter_"))]
    return tuple(own or found)[:MAX_FILES]


def safetensors_header(path: Path) -> Iterator[Stored]:
    """The tensors of one file: 8 bytes with the length of a JSON object, then the object.

    Raises BadFile, OSError.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(MAX_HEADER, size - 8):
            raise BadFile(f"{path.name} has no safetensors header")
        header = _object(file.read(length), path.name)
    for name, entry in header.items():
        if name != "__metadata__":
            yield _tensor(path.name, name, entry, size)


def _tensor(file: str, name: str, entry: Any, size: int) -> Stored:
    dtype = entry.get("dtype") if isinstance(entry, dict) else None
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise BadFile(f"{file}: tensor {name[:80]!r} has no dtype and shape")
    if not all(type(n) is int and 0 <= n <= 2**40 for n in shape) or len(shape) > 16:
        raise BadFile(f"{file}: tensor {name[:80]!r} has an impossible shape")
    elements = math.prod(shape)
    taken = size_of(dtype, elements)
    if taken is None or taken > size:
        raise BadFile(f"{file}: tensor {name[:80]!r} is larger than the file, or of an unknown dtype")
    return name, dtype, elements, taken


# Numbers of a block and its bytes, by the type's number in a GGUF file (ggml's type table).
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110),
    22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8),
    29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9


class _Reader:
    """Reads numbers and strings in order, and no further than the metadata may reach."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._left = MAX_METADATA

    def take(self, count: int) -> bytes:
        self._left -= count
        data = self._file.read(count) if self._left >= 0 else b""
        if len(data) < count:
            raise BadFile(f"{self._name} ends within its metadata, or has too much of it")
        return data

    def scalar(self, kind: int) -> Any:
        form = _SCALARS.get(kind)
        if form is None:
            raise BadFile(f"{self._name} has a value of the unknown type {kind}")
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self) -> str:
        return self.take(self.scalar(10)).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """A value; of an array the largest number, or nothing for strings: more is not asked."""
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(kind)
        inner, count = self.scalar(4), self.scalar(10)
        if depth > 2 or count > MAX_METADATA:
            raise BadFile(f"{self._name} has an array of {count:,} values")
        if inner in _SCALARS:
            values = struct.unpack(
                f"<{count}{_SCALARS[inner][1]}", self.take(count * struct.calcsize(_SCALARS[inner]))
            )
            return max(values, default=None)
        for _ in range(count):
            self.value(inner, depth + 1)
        return None


def gguf(path: Path) -> tuple[dict[str, Any], list[Stored]]:
    """Metadata and tensors of a GGUF file. Raises BadFile, OSError."""
    with path.open("rb") as file:
        reader = _Reader(file, path.name)
        if reader.take(4) != b"GGUF" or reader.scalar(4) not in (2, 3):
            raise BadFile(f"{path.name} is no GGUF file of version 2 or 3")
        tensors, values = reader.scalar(10), reader.scalar(10)
        if tensors > MAX_TENSORS or values > MAX_TENSORS:
            raise BadFile(f"{path.name} says that it has {tensors:,} tensors and {values:,} values")
        metadata = {}
        for _ in range(values):
            key = reader.string()
            metadata[key] = reader.value(reader.scalar(4))
        return metadata, [_gguf_tensor(reader, path.name) for _ in range(tensors)]


def _gguf_tensor(reader: _Reader, file: str) -> Stored:
    name, count = reader.string(), reader.scalar(4)
    if count > 8:
        raise BadFile(f"{file}: tensor {name[:80]!r} has {count} dimensions")
    shape = [reader.scalar(10) for _ in range(count)]
    kind = reader.scalar(4)
    reader.scalar(10)  # its offset
    if kind not in _BLOCKS or any(n > 2**40 for n in shape):
        raise BadFile(f"{file}: tensor {name[:80]!r} has the unknown type {kind}, or an impossible shape")
    per_block, size = _BLOCKS[kind]
    elements = math.prod(shape)
    return name, "GGUF", elements, -(-elements // per_block) * size


def gguf_config(metadata: dict[str, Any], tensors: list[Stored]) -> dict[str, Any]:
    """The metadata in the words of a config.json."""
    family = metadata.get("general.architecture")

    def of(name: str) -> Any:
        return metadata.get(f"{family}.{name}")

    plain = {
        "model_type": {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss"}.get(
            str(family), family
        ),
        "hidden_size": of("embedding_length"),
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": of("attention.head_count"),
        "num_key_value_heads": of("attention.head_count_kv"),
        "head_dim": of("attention.key_length"),
        "max_position_embeddings": of("context_length"),
        "sliding_window": of("attention.sliding_window"),
        "num_experts": of("expert_count"),
        "num_experts_per_tok": of("expert_used_count"),
        "moe_intermediate_size": of("expert_feed_forward_length"),
        "kv_lora_rank": of("attention.kv_lora_rank"),
        "qk_rope_head_dim": of("rope.dimension_count") if of("attention.kv_lora_rank") else None,
        "vocab_size": of("vocab_size"),
        "torch_dtype": "float16",
        "tie_word_embeddings": not any(name == "output.weight" for name, *_ in tensors),
    }
    found = {key: value for key, value in plain.items() if value is not None}
    table = next((elements for name, _, elements, _ in tensors if name == "token_embd.weight"), 0)
    hidden = found.get("hidden_size")
    if "vocab_size" not in found and isinstance(hidden, int) and hidden:
        found["vocab_size"] = table // hidden
    return found
