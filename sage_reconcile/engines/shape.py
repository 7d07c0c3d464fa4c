"""config.json to what memory depends on: layers, what each keeps of a token, how wide they are.

Names and their meaning are those of the transformers library's configurations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sage_reconcile.engines.config import MAX_LAYERS, Config, Unreadable
from sage_reconcile.engines.quantisation import read_quantisation
from sage_reconcile.model.modelfiles import Layer, Mixer, Shape

ENCODERS = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "mpnet", "distilbert", "modernbert"})
ENCODERS |= {"nomic_bert", "new", "gte", "deberta-v2", "electra"}

DECODERS = frozenset({"llama", "mistral", "mixtral", "phi", "phi3", "phimoe", "gpt_oss", "gpt2", "gpt_neox"})
DECODERS |= {"qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "gemma", "gemma2", "gemma3"}
DECODERS |= {"gemma3_text", "deepseek_v2", "deepseek_v3", "kimi_k2", "starcoder2", "olmo", "olmo2", "granite"}
DECODERS |= {"mistral3", "qwen2_vl", "qwen2_5_vl", "llava", "smollm3", "nemotron_h", "mamba", "mamba2", "opt"}
DECODERS |= {"bamba", "granitemoehybrid", "falcon", "stablelm", "internlm2", "cohere", "cohere2"}
"""What is counted as its own code builds it; anything else is counted like Llama's layers, and said to be."""

TIED_BY_DEFAULT = frozenset({"gemma", "gemma2", "gemma3", "gemma3_text", "gpt2", "opt", "cohere", "cohere2"})
TIED_BY_DEFAULT |= {"starcoder2", "mamba", "mamba2", "falcon"} | ENCODERS

_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
_STATES = frozenset({"linear_attention", "mamba", "mamba2", "recurrent", "conv"})


@dataclass(frozen=True, slots=True)
class Facts:
    """The dimensions that both the layers and the weights are made of."""

    config: Config
    family: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    count: int
    experts: int


def text_part(plain: Mapping[str, Any]) -> Config:
    """The language model's part of a config.json: nested in models that also see or hear."""
    for name in _NESTED:
        inner = plain.get(name)
        if isinstance(inner, Mapping):
            return text_part({**_shared(plain), **inner})
    return Config(plain)


def _shared(plain: Mapping[str, Any]) -> dict[str, Any]:
    """What an outer config may say for the nested one."""
    names = ("torch_dtype", "dtype", "tie_word_embeddings", "quantization_config", "model_type")
    return {name: plain[name] for name in names if name in plain}


def facts(config: Config) -> Facts:
    """Raises Unreadable where a dimension is missing or impossible."""
    family = config.text("model_type", "unknown")
    hidden = config.number("hidden_size", "n_embd", "d_model")
    heads = config.number("num_attention_heads", "n_head", default=0)
    count = config.number("num_hidden_layers", "n_layer", "n_layers")
    if not 0 < count <= MAX_LAYERS or hidden == 0:
        raise Unreadable(f"{count} layers of width {hidden}")
    default = config.number("head_dim", default=hidden // heads if heads else 0)
    inner = config.number("intermediate_size", "n_inner", "ffn_dim", "d_inner", default=4 * hidden)
    return Facts(
        config=config,
        family=family,
        hidden=hidden,
        heads=heads,
        kv_heads=config.number("num_key_value_heads", "num_kv_heads", default=heads),
        head_dim=default,
        inner=inner,
        count=count,
        experts=config.number("num_local_experts", "n_routed_experts", "num_experts", default=0),
    )


def read_shape(plain: Mapping[str, Any]) -> Shape:
    """The shape of the (language) model that a config.json describes. Raises Unreadable."""
    config = text_part(plain)
    seen = facts(config)
    outer = Config(plain)
    per_token = config.number("num_experts_per_tok", "experts_per_token", "moe_topk", default=0)
    expert = config.number("moe_intermediate_size", default=seen.inner)
    is_encoder = seen.family in ENCODERS and not config.flag("is_decoder")
    dtype = config.text("dtype", config.text("torch_dtype", "bfloat16" if not is_encoder else "float32"))
    is_tied = outer.flag(
        "tie_word_embeddings", config.flag("tie_word_embeddings", seen.family in TIED_BY_DEFAULT)
    )
    return Shape(
        architecture=seen.family,
        dtype=dtype,
        hidden=seen.hidden,
        vocab=config.number("vocab_size", default=0),
        inner=max(seen.inner if not seen.experts else 0, expert * per_token),
        heads=seen.heads,
        layers=tuple(Layer(Mixer.NONE) if is_encoder else layer(seen, n) for n in range(seen.count)),
        max_len=_max_len(config),
        experts_per_token=per_token if seen.experts else 0,
        is_tied=is_tied,
        is_encoder=is_encoder,
        state_dtype=config.text("mamba_ssm_dtype"),
        quantisation=read_quantisation(config),
        is_guess=seen.family not in DECODERS | ENCODERS,
    )


def _max_len(config: Config) -> int:
    """Positions, times the factor of a rope scaling that starts from fewer of them (YaRN, linear): vLLM
    takes the same. Some models already state the scaled number and the original beside it."""
    length = config.number("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", default=0)
    scaling = config.inner("rope_scaling").plain or config.inner("rope_parameters").plain
    factor = scaling.get("factor")
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in ("yarn", "linear", "dynamic") and isinstance(factor, int | float) and 1 < factor < 1024:
        original = scaling.get("original_max_position_embeddings")
        if kind == "yarn" and isinstance(original, int) and original > 0:
            return int(original * factor)
        return int(length * factor)
    return length


def layer(seen: Facts, number: int) -> Layer:
    """What layer `number` keeps."""
    config, kind = seen.config, kind_of(seen, number)
    if kind in _STATES:
        return _state(seen)
    if kind in ("mlp", "moe"):
        return Layer(Mixer.NONE)
    if config.number("kv_lora_rank", default=0):
        latent = config.number("kv_lora_rank") + config.number("qk_rope_head_dim", default=0)
        return Layer(Mixer.MLA, 1, latent)
    per_head = seen.head_dim + config.number("v_head_dim", default=seen.head_dim)
    window = config.number("sliding_window", "attention_chunk_size", default=0)
    if kind == "sliding_attention" and window:
        return Layer(Mixer.SLIDING, seen.kv_heads, per_head, window)
    if kind == "chunked_attention" and window:
        return Layer(Mixer.CHUNKED, seen.kv_heads, per_head, window)
    return Layer(Mixer.FULL, seen.kv_heads, per_head)


def kind_of(seen: Facts, number: int) -> str:
    """The word of `layer_types` for this layer, worked out for models that say it in another way."""
    config = seen.config
    listed = config.items("layer_types") or config.items("layers_block_type")
    if number < len(listed) and isinstance(listed[number], str):
        return str(listed[number])
    if seen.family in ("mamba", "mamba2"):
        return "mamba"
    if pattern := config.text("hybrid_override_pattern"):  # Nemotron-H: M Mamba-2, * attention, - MLP, E MoE
        sign = pattern[number] if number < len(pattern) else "*"
        return {"M": "mamba2", "*": "full_attention", "E": "moe"}.get(sign, "mlp")
    if config.has("attn_layer_indices"):
        return "full_attention" if number in config.numbers("attn_layer_indices") else "mamba2"
    if interval := config.number("full_attention_interval", default=0):
        return "full_attention" if (number + 1) % interval == 0 else "linear_attention"
    if seen.family == "qwen3_next":
        return "full_attention" if (number + 1) % 4 == 0 else "linear_attention"
    if seen.family in ("gemma3", "gemma3_text"):
        pattern_of = config.number("sliding_window_pattern", "_sliding_window_pattern", default=6)
        return "full_attention" if pattern_of and (number + 1) % pattern_of == 0 else "sliding_attention"
    if seen.family in ("gemma2", "gpt_oss"):
        return "sliding_attention" if number % 2 == 0 else "full_attention"
    if config.has("sliding_window") and config.flag("use_sliding_window", True):
        return "sliding_attention"
    return "full_attention"


def _state(seen: Facts) -> Layer:
    """A state of one size: gated delta net (Qwen3-Next), Mamba-2, Mamba-1; numbers as vLLM shapes them."""
    config = seen.config
    if config.has("linear_num_value_heads"):
        key, value = config.number("linear_key_head_dim"), config.number("linear_value_head_dim")
        values = config.number("linear_num_value_heads")
        wide = 2 * key * config.number("linear_num_key_heads") + value * values
        kernel = config.number("linear_conv_kernel_dim", default=4)
        return Layer(Mixer.STATE, state=values * key * value, conv=wide * max(kernel - 1, 0))
    size = config.number("mamba_d_state", "ssm_state_size", "state_size", default=128)
    kernel = config.number("mamba_d_conv", "conv_kernel", "conv_L_cache", default=4)
    heads = config.number("mamba_n_heads", "mamba_num_heads", "num_heads", default=0)
    wide = seen.hidden * config.number("mamba_expand", "expand", default=2)
    if seen.family == "mamba" or not heads:
        wide = seen.inner if seen.family == "mamba" else wide
        return Layer(Mixer.STATE, state=wide * size, conv=wide * max(kernel - 1, 0))
    dim = config.number("mamba_d_head", "mamba_head_dim", "head_dim", default=64)
    groups = config.number("mamba_n_groups", "n_groups", default=1)
    conv = (heads * dim + 2 * groups * size) * max(kernel - 1, 0)
    return Layer(Mixer.STATE, state=heads * dim * size, conv=conv)
