"""Checkpoints as they lie on a disk, but for their weights: names and shapes of real models' tensors."""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]


def llama_tensors(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of a Llama checkpoint, by the names that transformers writes."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    yield "lm_head.weight", (config["vocab_size"], hidden)
    yield "model.norm.weight", (hidden,)
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}"
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }.items():
            yield f"{layer}.{name}.weight", shape


def deepseek_tensors(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of a DeepSeek V2 Lite checkpoint: latent attention, experts, shared experts."""
    hidden, heads, latent = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    rope, nope, value = config["qk_rope_head_dim"], config["qk_nope_head_dim"], config["v_head_dim"]
    expert, experts = config["moe_intermediate_size"], config["n_routed_experts"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    yield "lm_head.weight", (config["vocab_size"], hidden)
    yield "model.norm.weight", (hidden,)
    for n in range(config["num_hidden_layers"]):
        layer = f"model.layers.{n}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        yield f"{layer}.self_attn.q_proj.weight", (heads * (nope + rope), hidden)
        yield f"{layer}.self_attn.kv_a_proj_with_mqa.weight", (latent + rope, hidden)
        yield f"{layer}.self_attn.kv_a_layernorm.weight", (latent,)
        yield f"{layer}.self_attn.kv_b_proj.weight", (heads * (nope + value), latent)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, heads * value)
        if n < config["first_k_dense_replace"]:
            yield from _mlp(f"{layer}.mlp", hidden, config["intermediate_size"])
            continue
        yield f"{layer}.mlp.gate.weight", (experts, hidden)
        yield from _mlp(f"{layer}.mlp.shared_experts", hidden, config["n_shared_experts"] * expert)
        for e in range(experts):
            yield from _mlp(f"{layer}.mlp.experts.{e}", hidden, expert)


def _mlp(name: str, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.gate_proj.weight", (inner, hidden)
    yield f"{name}.up_proj.weight", (inner, hidden)
    yield f"{name}.down_proj.weight", (hidden, inner)


def write_safetensors(path: Path, tensors: Shapes, dtype: str = "BF16") -> None:
    """A file with a true header, as long as its weights would make it, without them (a sparse file)."""
    size, header = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "U8": 1, "F8_E4M3": 1}[dtype], {}
    offset = 0
    for name, shape in tensors.items():
        count = size
        for n in shape:
            count *= n
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + count]}
        offset += count
    data = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    with path.open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        file.truncate(8 + len(data) + offset)


def write_model(folder: Path, config: Mapping[str, Any], shards: Iterable[Shapes] = ()) -> Path:
    """A model directory: config.json, and the shards with their index where there are several."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    parts = list(shards)
    for number, part in enumerate(parts, 1):
        name = "model.safetensors" if len(parts) == 1 else f"model-{number:05}-of-{len(parts):05}.safetensors"
        write_safetensors(folder / name, part)
    if len(parts) > 1:
        index = {
            tensor: f"model-{number:05}-of-{len(parts):05}.safetensors"
            for number, part in enumerate(parts, 1)
            for tensor in part
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def gguf_bytes(values: Mapping[str, Any], tensors: Mapping[str, tuple[tuple[int, ...], int]]) -> bytes:
    """The metadata of a GGUF file: strings, numbers and lists of strings; tensors with their type."""

    def text(word: str) -> bytes:
        return struct.pack("<Q", len(word)) + word.encode()

    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    for key, value in values.items():
        out += text(key)
        if isinstance(value, str):
            out += struct.pack("<I", 8) + text(value)
        elif isinstance(value, list):
            out += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
        else:
            out += struct.pack("<II", 4, value)
    for name, (shape, kind) in tensors.items():
        out += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        out += struct.pack("<IQ", kind, 0)
    return out
