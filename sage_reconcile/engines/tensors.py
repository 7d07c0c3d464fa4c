"""Stored tensors by what they are: from their names, as checkpoints of safetensors and GGUF have them."""

import re
from collections.abc import Iterable

from sage_reconcile.engines.quantisation import CONVERTED, DTYPE_BITS, KEPT
from sage_reconcile.model.modelfiles import Part, Split, Weights

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks|blk)\.(\d{1,4})\.")
_VISION = re.compile(r"vision|visual|(?:^|\.)vit\.|image_|multi_modal|mm_projector|^v\.|^mm\.")
_EMBEDDING = re.compile(
    r"embed_tokens|word_embeddings|\bwte\b|embed_in|token_embd|tok_embeddings|\.embeddings?\.w"
)
_HEAD = re.compile(r"lm_head|embed_out|^output\.")
_EXPERTS = re.compile(r"\.experts?\.|_exps\b")
_KEYS = re.compile(r"\b(?:k_proj|v_proj|attn_k|attn_v|key|value)\b")
_WHOLE = re.compile(
    r"norm|ln_|_a_proj|kv_a_|\bgate\.(?:weight|bias|e_score)|router|gate_inp\b|shared_expert_gate"
)
_KEPT = re.compile(r"scale|zeros|absmax|quant_map|nested|g_idx|_blocks$|_packed|quant_state|weight_shape")

Stored = tuple[str, str, int, int]
"""A tensor: its name, its dtype, how many numbers it has, how many bytes."""


def sum_up(tensors: Iterable[Stored]) -> tuple[Weights, ...]:
    """Tensors added up by layer and kind: what is left of tens of thousands of names."""
    sums: dict[tuple[Part, Split, int, str, bool, bool], list[int]] = {}
    for name, dtype, elements, size in tensors:
        key = _kind(name, dtype)
        total = sums.setdefault(key, [0, 0])
        total[0] += elements
        total[1] += size
    return tuple(
        Weights(part, elements, split, None if layer < 0 else layer, dtype, size, is_linear, is_expert)
        for (part, split, layer, dtype, is_linear, is_expert), (elements, size) in sorted(sums.items())
    )


def _kind(name: str, dtype: str) -> tuple[Part, Split, int, str, bool, bool]:
    kept = dtype if dtype in CONVERTED and not _KEPT.search(name) else KEPT
    if _VISION.search(name):
        return Part.VISION, Split.EVEN, -1, kept, False, False
    found = _LAYER.search(name)
    if found is None:
        if _HEAD.search(name):
            return Part.HEAD, Split.EVEN, -1, kept, False, False
        is_embedding = bool(_EMBEDDING.search(name))
        part, split = (Part.EMBEDDING, Split.EVEN) if is_embedding else (Part.OTHER, Split.WHOLE)
        return part, split, -1, kept, False, False
    is_expert = bool(_EXPERTS.search(name))
    split = Split.EVEN
    if _WHOLE.search(name) and not is_expert:
        split = Split.WHOLE
    elif _KEYS.search(name):
        split = Split.KV_HEADS
    is_linear = name.endswith(".weight") and not re.search(r"norm|router|\bgate\.weight|gate_inp", name)
    return Part.LAYER, split, int(found[1]), kept, is_linear, is_expert


def size_of(dtype: str, elements: int) -> int | None:
    """Bytes that so many numbers take in safetensors; None for a dtype that is not known."""
    bits = DTYPE_BITS.get(dtype)
    return None if bits is None else -(-elements * bits // 8)
