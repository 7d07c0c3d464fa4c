"""config.json of well-known models, written by hand from what their makers publish, and how many parameters
they have. Used by the tests of estimates, and on a GPU by tests/gpu/estimates.py."""

from dataclasses import dataclass, field
from typing import Any

Plain = dict[str, Any]


@dataclass(frozen=True)
class Known:
    """`parameters` as published (sums of the checkpoint's safetensors headers); `kv_bytes` a token, both of
    the whole model in its own dtype. `token_layers` where not every layer keeps tokens."""

    config: Plain
    parameters: int
    kv_bytes: int
    size: int = 0
    flags: Plain = field(default_factory=dict)


def _config(architecture: str, family: str, dims: tuple[int, ...], **more: Any) -> Plain:
    """`dims`: hidden, MLP, layers, heads, key-value heads, vocabulary, positions."""
    hidden, inner, layers, heads, kv_heads, vocab, positions = dims
    return {
        "architectures": [architecture],
        "model_type": family,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}
MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}
YARN_OSS = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
QWEN7 = _config(
    "Qwen2ForCausalLM", "qwen2", (3584, 18944, 28, 28, 4, 152064, 32768), use_sliding_window=False
)
MLA = {
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "norm_topk_prob": False,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
}
GDN = {
    "linear_num_value_heads": 32,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "partial_rotary_factor": 0.25,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}

KNOWN: dict[str, Known] = {
    "llama-3-8b": Known(
        _config("LlamaForCausalLM", "llama", (4096, 14336, 32, 32, 8, 128256, 8192)), 8_030_261_248, 131_072
    ),
    "llama-3-70b": Known(
        _config("LlamaForCausalLM", "llama", (8192, 28672, 80, 64, 8, 128256, 8192)), 70_553_706_496, 327_680
    ),
    "qwen2.5-0.5b": Known(
        _config("Qwen2ForCausalLM", "qwen2", (896, 4864, 24, 14, 2, 151936, 32768), tie_word_embeddings=True),
        494_032_768,
        12_288,
    ),
    "qwen3-30b-a3b": Known(
        _config(
            "Qwen3MoeForCausalLM",
            "qwen3_moe",
            (2048, 6144, 48, 32, 4, 151936, 40960),
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            moe_intermediate_size=768,
            decoder_sparse_step=1,
            mlp_only_layers=[],
            norm_topk_prob=True,
        ),
        30_532_122_624,
        98_304,
    ),
    "mixtral-8x7b": Known(
        _config(
            "MixtralForCausalLM",
            "mixtral",
            (4096, 14336, 32, 32, 8, 32000, 32768),
            num_local_experts=8,
            num_experts_per_tok=2,
            sliding_window=None,
        ),
        46_702_792_704,
        131_072,
    ),
    "gemma-3-27b": Known(
        _config(
            "Gemma3ForCausalLM",
            "gemma3_text",
            (5376, 21504, 62, 32, 16, 262208, 131072),
            head_dim=128,
            sliding_window=1024,
            sliding_window_pattern=6,
            hidden_activation="gelu_pytorch_tanh",
            query_pre_attn_scalar=168,
            rope_local_base_freq=10000.0,
            tie_word_embeddings=True,
        ),
        27_009_346_304,
        507_904,
    ),
    "deepseek-v3": Known(
        _config(
            "DeepseekV3ForCausalLM",
            "deepseek_v3",
            (7168, 18432, 61, 128, 128, 129280, 163840),
            **{**MLA, "first_k_dense_replace": 3},
            q_lora_rank=1536,
            n_routed_experts=256,
            n_shared_experts=1,
            num_experts_per_tok=8,
            moe_intermediate_size=2048,
            quantization_config=FP8,
        ),
        671_026_419_200,
        70_272,
    ),
    "deepseek-v2-lite": Known(
        _config(
            "DeepseekV2ForCausalLM",
            "deepseek_v2",
            (2048, 10944, 27, 16, 16, 102400, 32768),
            **MLA,
            q_lora_rank=None,
            n_routed_experts=64,
            n_shared_experts=2,
            num_experts_per_tok=6,
            moe_intermediate_size=1408,
        ),
        15_706_484_224,
        31_104,
    ),
    "phi-4": Known(
        _config("Phi3ForCausalLM", "phi3", (5120, 17920, 40, 40, 10, 100352, 16384), sliding_window=None),
        14_659_507_200,
        204_800,
    ),
    "gpt-oss-20b": Known(
        _config(
            "GptOssForCausalLM",
            "gpt_oss",
            (2880, 2880, 24, 64, 8, 201088, 131072),
            head_dim=64,
            num_local_experts=32,
            num_experts_per_tok=4,
            experts_per_token=4,
            sliding_window=128,
            attention_bias=True,
            layer_types=["sliding_attention", "full_attention"] * 12,
            swiglu_limit=7.0,
            rope_scaling=YARN_OSS,
            quantization_config=MXFP4,
        ),
        20_914_757_184,
        49_152,
        size=13_761_264_768,
    ),
    "qwen3-next-80b-a3b": Known(
        _config(
            "Qwen3NextForCausalLM",
            "qwen3_next",
            (2048, 5120, 48, 16, 2, 151936, 262144),
            head_dim=256,
            num_experts=512,
            num_experts_per_tok=10,
            moe_intermediate_size=512,
            shared_expert_intermediate_size=512,
            **GDN,
        ),
        79_674_391_296,
        24_576,
    ),
    "bge-m3": Known(
        _config(
            "XLMRobertaModel",
            "xlm-roberta",
            (1024, 4096, 24, 16, 16, 250002, 8194),
            hidden_act="gelu",
            layer_norm_eps=1e-5,
            pad_token_id=1,
            type_vocab_size=1,
            position_embedding_type="absolute",
            torch_dtype="float32",
            tie_word_embeddings=True,
        ),
        567_754_752,
        0,
    ),
    "qwen2.5-7b": Known(QWEN7, 7_615_616_512, 57_344),
    "qwen2.5-7b-awq": Known(
        {**QWEN7, "torch_dtype": "float16", "quantization_config": AWQ},
        7_615_616_512,
        57_344,
        size=5_570_951_168,
    ),
}
