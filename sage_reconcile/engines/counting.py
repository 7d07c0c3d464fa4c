"""Weights counted from config.json alone, as the modelling code of each family builds them.

For `--load-format dummy`, and for models of which only the configuration is here. Numbers of parameters are
those that the makers publish; see the tests for which.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sage_reconcile.engines.config import Config
from sage_reconcile.engines.shape import ENCODERS, Facts, facts, kind_of, text_part
from sage_reconcile.model.modelfiles import Part, Split, Weights

UNGATED = frozenset({"phi", "gpt2", "gpt_neox", "opt", "falcon", "starcoder2", "nemotron_h"})
"""Families whose MLP has two matrices (up, down) instead of three."""

BIASED = frozenset({"phi", "gpt2", "gpt_neox", "opt", "starcoder2"})
QKV_BIAS = frozenset({"qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl"})
QK_NORM = frozenset({"qwen3", "qwen3_moe", "qwen3_next", "gemma3", "gemma3_text"})
FOUR_NORMS = frozenset({"gemma2", "gemma3", "gemma3_text"})


def count_weights(plain: Mapping[str, Any]) -> tuple[Weights, ...]:
    """All weights of the model. Raises Unreadable where config.json lacks a dimension."""
    seen = facts(text_part(plain))
    if seen.family in ENCODERS:
        return tuple(_encoder(seen))
    return tuple(_decoder(seen, Config(plain)))


def _decoder(seen: Facts, outer: Config) -> Iterator[Weights]:
    vocab = seen.config.number("vocab_size")
    yield Weights(Part.EMBEDDING, vocab * seen.hidden)
    yield Weights(Part.HEAD, vocab * seen.hidden)
    if seen.family in ("gpt2", "opt"):
        yield Weights(Part.OTHER, seen.hidden * seen.config.number("max_position_embeddings", "n_positions"))
    for number in range(seen.count):
        yield from _layer(seen, number)
    yield Weights(Part.OTHER, seen.hidden, Split.WHOLE)
    if vision := _vision(outer.inner("vision_config"), seen.hidden):
        yield Weights(Part.VISION, vision)


def _layer(seen: Facts, number: int) -> Iterator[Weights]:
    kind = kind_of(seen, number)
    norms = (4 if seen.family in FOUR_NORMS else 2) * seen.hidden
    yield Weights(Part.LAYER, norms, Split.WHOLE, number)
    if kind in ("linear_attention", "mamba", "mamba2", "recurrent", "conv"):
        yield _linear(_state_mixer(seen), number)
    elif seen.config.number("kv_lora_rank", default=0):
        yield from _latent(seen, number)
    elif kind not in ("mlp", "moe"):
        yield from _attention(seen, number)
    if seen.family == "nemotron_h" and kind not in ("mlp", "moe"):
        return
    if seen.family in ("mamba", "mamba2"):
        return
    yield from _experts(seen, number) if is_sparse(seen, number) else _mlp(seen, number)


def _linear(elements: int, number: int, split: Split = Split.EVEN, is_expert: bool = False) -> Weights:
    return Weights(Part.LAYER, elements, split, number, is_linear=True, is_expert=is_expert)


def _plain(elements: int, number: int, split: Split = Split.WHOLE) -> Weights:
    return Weights(Part.LAYER, elements, split, number)


def _attention(seen: Facts, number: int) -> Iterator[Weights]:
    """Queries and output, keys and values; biases where the family has them; norms of queries and keys."""
    config = seen.config
    queries, keys = seen.heads * seen.head_dim, seen.kv_heads * seen.head_dim
    gate = 2 if seen.family == "qwen3_next" or config.flag("attn_output_gate") else 1
    yield _linear(seen.hidden * queries * (gate + 1), number)
    yield _linear(2 * seen.hidden * keys, number, Split.KV_HEADS)
    is_biased = config.flag("attention_bias", seen.family == "gpt_oss") or seen.family in BIASED
    if is_biased or seen.family in QKV_BIAS:
        out = seen.hidden if is_biased else 0
        yield _plain(queries + 2 * keys + out, number, Split.EVEN)
    if seen.family == "gpt_oss":
        yield _plain(seen.heads, number, Split.EVEN)  # a sink for each head
    if seen.family in QK_NORM:
        yield _plain(2 * seen.head_dim, number)


def _latent(seen: Facts, number: int) -> Iterator[Weights]:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): the down projections are on every rank."""
    config = seen.config
    latent, rope = config.number("kv_lora_rank"), config.number("qk_rope_head_dim")
    nope, value = config.number("qk_nope_head_dim"), config.number("v_head_dim")
    query = config.number("q_lora_rank", default=0)
    if query:
        yield _linear(seen.hidden * query, number, Split.WHOLE)
        yield _plain(query, number)
    yield _linear((query or seen.hidden) * seen.heads * (nope + rope), number)
    yield _linear(seen.hidden * (latent + rope), number, Split.WHOLE)
    yield _plain(latent, number)
    yield _linear(latent * seen.heads * (nope + value), number)
    yield _linear(seen.heads * value * seen.hidden, number)


def _mlp(seen: Facts, number: int) -> Iterator[Weights]:
    matrices = 2 if seen.family in UNGATED else 3
    yield _linear(matrices * seen.hidden * seen.inner, number)
    if seen.family in BIASED:
        yield _plain(seen.inner + seen.hidden, number, Split.EVEN)


def is_sparse(seen: Facts, number: int) -> bool:
    """Whether the layer's MLP is a mixture of experts."""
    config = seen.config
    if not seen.experts or number < config.number("first_k_dense_replace", default=0):
        return False
    if config.text("hybrid_override_pattern"):
        return kind_of(seen, number) == "moe"
    if number in config.numbers("mlp_only_layers"):
        return False
    step = config.number("decoder_sparse_step", "moe_layer_freq", default=1) or 1
    return (number + 1) % step == 0 if config.has("decoder_sparse_step") else number % step == 0


def _experts(seen: Facts, number: int) -> Iterator[Weights]:
    """Experts, those that every token goes through, and the router, which is whole on each rank."""
    config = seen.config
    inner = config.number("moe_intermediate_size", default=seen.inner)
    matrices = 2 if seen.family in UNGATED else 3
    yield _linear(seen.experts * matrices * seen.hidden * inner, number, is_expert=True)
    yield _plain(seen.experts * seen.hidden, number)
    if seen.family == "gpt_oss":
        yield _plain(seen.experts * (2 * inner + seen.hidden + 1), number, Split.EVEN)
    shared = config.number("shared_expert_intermediate_size", "shared_intermediate_size", default=0)
    shared = shared or config.number("n_shared_experts", default=0) * inner
    if shared:
        yield _linear(matrices * seen.hidden * shared, number)
    if config.has("shared_expert_intermediate_size"):
        yield _plain(seen.hidden, number)


def _state_mixer(seen: Facts) -> int:
    """Weights of a gated delta net, or of a Mamba layer: projections, convolution, decay."""
    config = seen.config
    if config.has("linear_num_value_heads"):
        heads = config.number("linear_num_value_heads")
        keys = config.number("linear_num_key_heads") * config.number("linear_key_head_dim")
        values = heads * config.number("linear_value_head_dim")
        kernel = config.number("linear_conv_kernel_dim", default=4)
        into = seen.hidden * (2 * keys + 2 * values + 2 * heads)
        return into + (2 * keys + values) * kernel + values * seen.hidden + 2 * heads
    size = config.number("mamba_d_state", "ssm_state_size", "state_size", default=128)
    kernel = config.number("mamba_d_conv", "conv_kernel", default=4)
    heads = config.number("mamba_n_heads", "mamba_num_heads", "num_heads", default=0)
    if seen.family == "mamba" or not heads:
        wide = seen.inner if seen.family == "mamba" else 2 * seen.hidden
        rank = config.number("time_step_rank", default=-(-seen.hidden // 16))
        return wide * (3 * seen.hidden + kernel + 1 + rank + 2 * size + rank + 1 + size + 1)
    wide = heads * config.number("mamba_d_head", "mamba_head_dim", "head_dim", default=64)
    groups = config.number("mamba_n_groups", "n_groups", default=1)
    conv = wide + 2 * groups * size
    return seen.hidden * (wide + conv + heads) + conv * (kernel + 1) + 3 * heads + wide * (1 + seen.hidden)


def _encoder(seen: Facts) -> Iterator[Weights]:
    """BERT and its kin: embeddings of words, positions and types; two biased blocks a layer; the pooler."""
    config, wide = seen.config, seen.hidden
    yield Weights(Part.EMBEDDING, config.number("vocab_size") * wide)
    places = config.number("max_position_embeddings", default=512) + config.number(
        "type_vocab_size", default=2
    )
    yield Weights(Part.OTHER, (places + 2) * wide, Split.WHOLE)
    for number in range(seen.count):
        yield _linear(4 * wide * wide + 2 * wide * seen.inner, number)
        yield _plain(9 * wide + seen.inner, number)
    yield Weights(Part.OTHER, wide * wide + wide, Split.WHOLE)


def _vision(config: Config, into: int) -> int:
    """A vision transformer and its projection; 0 without one."""
    wide = config.number("hidden_size", "embed_dim", default=0)
    count = config.number("num_hidden_layers", "depth", default=0)
    if not wide or not count or count > 1024:
        return 0
    inner = config.number("intermediate_size", default=4 * wide)
    patch = config.number("patch_size", default=14)
    places = (config.number("image_size", default=0) // max(patch, 1)) ** 2
    each = 4 * wide * wide + 2 * wide * inner + 9 * wide + inner
    return count * each + (3 * patch * patch + places + 1) * wide + wide * into
