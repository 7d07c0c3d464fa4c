"""GPU memory from a model's files: parameters and bytes per token that makers publish, and what must hold."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_reconcile.engines.estimate import MIB, estimate
from sage_reconcile.engines.kvcache import cache_of
from sage_reconcile.engines.modelfiles import model_files
from sage_reconcile.engines.quantisation import read_quantisation
from sage_reconcile.engines.shape import read_shape, text_part
from sage_reconcile.engines.weighing import by_stage, stage_sizes
from sage_reconcile.model import codec
from sage_reconcile.model.desired import ArgValue, Device, Kind, LaunchSpec
from sage_reconcile.model.estimate import Estimate
from sage_reconcile.model.modelfiles import Mixer, ModelFiles, Part, Source
from tests.engines.checkpoints import deepseek_tensors, llama_tensors
from tests.engines.configs import AWQ, KNOWN

H100 = 81559
DECODERS = sorted(name for name, known in KNOWN.items() if known.kv_bytes)
PLAIN = sorted(name for name, known in KNOWN.items() if "quantization_config" not in known.config)


def files(name: str, **changes: Any) -> ModelFiles:
    return model_files(name, {**KNOWN[name].config, **changes})


def spec(name: str = "m", tp: int = 1, pp: int = 1, runtime: str = "vllm", **args: ArgValue) -> LaunchSpec:
    flags = tuple(sorted((key.replace("_", "-"), value) for key, value in args.items()))
    return LaunchSpec(
        Kind.LLM, runtime, name, Device.GPU, args=flags, tensor_parallel=tp, pipeline_parallel=pp
    )


def said(name: str, total: int = H100, tp: int = 1, pp: int = 1, **args: ArgValue) -> Estimate:
    found = estimate(spec(name, tp, pp, **args), files(name), total)
    assert found is not None
    return found


def parameters(of: ModelFiles) -> int:
    assert of.shape is not None
    return sum(w.elements for w in of.counted if not (w.part is Part.HEAD and of.shape.is_tied))


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_parameters_are_those_that_are_published(name: str) -> None:
    assert math.isclose(parameters(files(name)), KNOWN[name].parameters, rel_tol=0.001)


@pytest.mark.parametrize("name", PLAIN)
def test_weights_are_parameters_times_the_dtype(name: str) -> None:
    assert math.isclose(said(name).stages[0] * MIB, 2 * KNOWN[name].parameters, rel_tol=0.01)


@pytest.mark.parametrize("name", sorted(name for name, known in KNOWN.items() if known.size))
def test_quantised_weights_are_as_large_as_the_published_files(name: str) -> None:
    assert math.isclose(said(name).stages[0] * MIB, KNOWN[name].size, rel_tol=0.01)


def test_deepseek_v3_is_as_large_as_its_fp8_checkpoint() -> None:
    """671 GB for the weights, and 1.8 GB more for embedding and head, which stay in bfloat16."""
    assert said("deepseek-v3").stages[0] * MIB == pytest.approx(671.03e9 + 2 * 0.927e9, rel=0.01)


@pytest.mark.parametrize("name", DECODERS)
def test_bytes_per_token_are_those_that_are_published(name: str) -> None:
    assert said(name).bytes_per_token == KNOWN[name].kv_bytes


def test_an_fp8_cache_takes_half() -> None:
    assert said("llama-3-8b", kv_cache_dtype="fp8").bytes_per_token == 131_072 // 2


def test_a_rank_has_its_share_of_the_cache_but_never_less_than_a_head() -> None:
    assert said("llama-3-70b", tp=4).bytes_per_token == 327_680 // 4
    assert said("qwen3-30b-a3b", tp=8).bytes_per_token == 98_304 // 4
    assert said("deepseek-v2-lite", tp=4).bytes_per_token == KNOWN["deepseek-v2-lite"].kv_bytes


def test_70b_on_four_gpus() -> None:
    """A quarter of 141.1 GB each, and all of the norms."""
    found = said("llama-3-70b", tp=4)
    assert found.parts.weights == pytest.approx(141.107e9 / 4 / MIB, rel=0.001)
    assert not found.lacks_mib
    assert said("llama-3-70b").cannot_start


def test_a_window_does_not_grow_with_the_length() -> None:
    """Gemma 3: 52 of 62 layers keep 1,024 tokens and what one step adds; 10 keep all."""
    shape = read_shape(KNOWN["gemma-3-27b"].config)
    assert sum(layer.mixer is Mixer.FULL for layer in shape.layers) == 10
    short, long = (said("gemma-3-27b", max_model_len=n, max_num_batched_tokens=2048) for n in (32768, 131072))
    per_layer = 2 * 16 * 128 * 2
    more = 10 * (131072 - 32768) * per_layer
    assert (long.request_mib - short.request_mib) * MIB == pytest.approx(more, abs=MIB)
    window = 52 * (math.ceil((1024 - 1 + 2048) / 16) + 1) * 16 * per_layer
    assert short.request_mib * MIB == pytest.approx(10 * 32768 * per_layer + window, abs=MIB)


def test_linear_attention_keeps_a_state_and_no_tokens() -> None:
    """Qwen3-Next: 12 of 48 layers keep tokens; a state is 32 x 128 x 128 and a convolution of 8192 x 3, and
    two of them are kept, each in a page as large as a block of tokens."""
    shape = files("qwen3-next-80b-a3b").shape
    assert shape is not None
    cache = cache_of(shape, shape.layers, 8, (2, 2), (16, 8192, 2))
    state = (32 * 128 * 128 + 8192 * 3) * 2 // 8
    assert cache.bytes_per_token == 12 * 2 * 256 * 2
    assert cache.span == math.ceil(state / 1024 / 16) * 16
    page = cache.span * 1024
    assert cache.request(1) == cache.request(cache.span) == (12 + 36 * 2) * page
    assert cache.request(cache.span + 1) == (12 * 2 + 36 * 2) * page


SMALL = {"vocab_size": 1000, "hidden_size": 256, "intermediate_size": 512}
NARROW = {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}


@pytest.mark.parametrize(
    ("name", "changes", "length", "requests"),
    [
        ("qwen2.5-0.5b", {"num_hidden_layers": 2}, 512, 1024.0),
        ("gemma-3-27b", {"num_hidden_layers": 12, **NARROW}, 16384, 16.43),
        ("deepseek-v2-lite", {"num_hidden_layers": 4, **SMALL, "n_routed_experts": 8}, 4096, 28.44),
        ("qwen3-next-80b-a3b", {"num_hidden_layers": 8, **SMALL, "num_experts": 8}, 4096, 17.14),
    ],
)
def test_a_real_vllm_has_room_for_as_many_requests(
    name: str, changes: dict[str, Any], length: int, requests: float
) -> None:
    """What vLLM 0.32 on a CPU said of 1 GiB of cache in float32, with batches of 2,048 tokens."""
    shape = files(name, **changes).shape
    assert shape is not None
    cache = cache_of(shape, shape.layers, 1, (4, 4), (16, 2048, 2))
    assert 2**30 / cache.request(length) == pytest.approx(requests, rel=0.01)


@pytest.mark.parametrize(
    ("name", "tensors"), [("llama-3-8b", llama_tensors), ("deepseek-v2-lite", deepseek_tensors)]
)
@pytest.mark.parametrize("ranks", [(1, 1), (2, 1), (8, 1), (16, 1), (1, 2), (4, 3)])
def test_stored_tensors_weigh_what_the_config_says(name: str, tensors: Any, ranks: tuple[int, int]) -> None:
    """The names of a checkpoint and the dimensions of its config agree on every rank and stage."""
    config = KNOWN[name].config
    held = [(tensor, "BF16", math.prod(s), 2 * math.prod(s)) for tensor, s in tensors(config)]
    stored = model_files(name, config, held)
    counted = files(name)
    assert stored.source is Source.SAFETENSORS
    assert stored.shape is not None
    assert counted.shape is not None
    one, other = by_stage(stored, stored.shape, ranks, 2), by_stage(counted, counted.shape, ranks, 2)
    assert one == pytest.approx(other, rel=1e-5)


def test_layers_that_are_not_loaded_do_not_weigh() -> None:
    """Multi-token prediction lies in the checkpoint as one layer more."""
    config = KNOWN["llama-3-8b"].config
    held = [(tensor, "BF16", math.prod(s), 2 * math.prod(s)) for tensor, s in llama_tensors(config)]
    extra = ("model.layers.32.eh_proj.weight", "BF16", 10**9, 2 * 10**9)
    with_it, without = model_files("m", config, [*held, extra]), model_files("m", config, held)
    assert estimate(spec(), with_it, H100) == estimate(spec(), without, H100)


def test_packed_weights_stay_as_they_are_stored_and_others_get_the_dtype() -> None:
    config = {**KNOWN["llama-3-8b"].config, "quantization_config": AWQ}
    packed = ("model.layers.0.mlp.up_proj.qweight", "I32", 1000, 4000)
    scales = ("model.layers.0.mlp.up_proj.scales", "F16", 100, 200)
    norm = ("model.norm.weight", "F32", 4096, 4 * 4096)
    found = model_files("m", config, [packed, scales, norm])
    assert found.shape is not None
    assert by_stage(found, found.shape, (1, 1), 2) == (4000 + 200 + 2 * 4096,)


def test_quantising_while_loading() -> None:
    """fp8 halves the linear layers; embedding and head (2 x 1.05 GB) stay."""
    full, half = said("llama-3-8b"), said("llama-3-8b", quantization="fp8")
    head = 2 * 128256 * 4096
    linear = 8_030_261_248 - head
    assert half.parts.weights * MIB == pytest.approx(2 * head + linear, rel=0.001)
    assert half.parts.weights < full.parts.weights


@pytest.mark.parametrize(
    ("stated", "method", "bits"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8", 8 + 32 / 16384),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "awq", 4 + 20 / 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "gptq", 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", 4.5),
        ({"quant_method": "mxfp4"}, "mxfp4", 4.25),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", 4.5),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {
                    "group_0": {"weights": {"num_bits": 4, "group_size": 32, "symmetric": True}}
                },
            },
            "compressed-tensors",
            4.5,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "nvfp4-pack-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 16}}},
            },
            "nvfp4",
            4.5,
        ),
    ],
)
def test_what_quantisation_configs_say(stated: dict[str, Any], method: str, bits: float) -> None:
    found = read_quantisation(text_part({"quantization_config": stated}))
    assert found is not None
    assert (found.method, found.bits) == (method, pytest.approx(bits))


def test_pipeline_stages_are_vllms() -> None:
    assert stage_sizes(32, 3) == (11, 11, 10)
    assert stage_sizes(9, 4) == (2, 2, 3, 2)
    found = said("llama-3-8b", pp=2)
    assert len(found.stages) == 2
    assert found.bytes_per_token == 131_072 // 2


def test_a_tied_embedding_is_on_both_ends() -> None:
    table = 151936 * 896 * 2
    one, two = said("qwen2.5-0.5b"), said("qwen2.5-0.5b", pp=2)
    assert sum(two.stages) * MIB == pytest.approx(one.stages[0] * MIB + table, rel=0.01)


def test_flags_are_found_in_both_places_and_notations() -> None:
    one = spec("llama-3-8b", max_model_len="4k")
    two = replace(spec("llama-3-8b"), extra_args=("--max_model_len=4000", "--enforce-eager"))
    three = replace(spec("llama-3-8b"), extra_args=("--max-model-len", "4K"))
    found = [estimate(each, files("llama-3-8b"), H100) for each in (one, two, three)]
    assert [each.max_len for each in found if each] == [4000, 4000, 4096]
    assert [each.parts.graphs > 0 for each in found if each] == [True, False, True]


def test_adapters_get_room() -> None:
    """One of rank 16 for Llama 3 8B's linear layers is 42 million numbers, and the head's 2.1 million."""
    found = said("llama-3-8b", enable_lora=True, max_lora_rank=16)
    assert found.parts.lora * MIB == pytest.approx(2 * (41.9e6 + 16 * 132352), rel=0.02)
    assert said("llama-3-8b", enable_lora=True, max_loras=4).parts.lora == pytest.approx(
        4 * found.parts.lora, abs=4
    )
    assert said("llama-3-8b").parts.lora == 0


def test_auto_takes_the_longest_that_fits() -> None:
    fixed, auto = (
        said("llama-3-8b", total=24 * 1024),
        said("llama-3-8b", total=24 * 1024, max_model_len="auto"),
    )
    assert not fixed.lacks_mib
    small = {"total": 18 * 1024, "max_num_seqs": 64}
    assert said("llama-3-8b", **small).lacks_mib
    found = said("llama-3-8b", max_model_len=-1, **small)
    assert not found.lacks_mib
    assert 0 < found.max_len < 8192
    assert auto.max_len == 8192


def test_the_remedies_are_enough() -> None:
    small = said("llama-3-8b", total=18 * 1024, max_num_seqs=64)
    assert small.lacks_mib
    assert not said("llama-3-8b", total=18 * 1024, max_num_seqs=64, max_model_len=small.longest).lacks_mib
    enough = replace(spec("llama-3-8b", max_num_seqs=64), gpu_memory=small.enough_mib + 1)
    found = estimate(enough, files("llama-3-8b"), 18 * 1024)
    assert found is not None
    assert not found.lacks_mib


def test_an_encoder_in_vllm_fills_nothing() -> None:
    found = said("bge-m3")
    assert found.parts.kv_cache == 0
    assert found.parts.total < 4096
    assert not found.lacks_mib


def test_engines_that_take_what_they_need() -> None:
    """float32 for the embedding server's bge-m3: 567,754,752 x 4 bytes."""
    one = estimate(spec("bge-m3", runtime="sentence-transformers"), files("bge-m3"), H100)
    assert one is not None
    assert one.parts.weights == math.ceil(567_754_752 * 4 / MIB)
    assert one.share_mib is None
    assert one.parts.kv_cache == 0
    chat = estimate(spec("qwen2.5-0.5b", runtime="transformers"), files("qwen2.5-0.5b"), H100)
    assert chat is not None
    assert chat.parts.kv_cache == 8192 * 12288 // MIB
    assert estimate(spec("m", runtime="command"), files("bge-m3"), H100) is None


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"hidden_size": 64},
        {"hidden_size": "64", "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 10},
        {"hidden_size": 64, "num_hidden_layers": 10**9, "num_attention_heads": 2, "vocab_size": 10},
        {"hidden_size": -1, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 10},
        {"hidden_size": True, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 10},
        {"hidden_size": 2**60, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 10},
    ],
)
def test_an_impossible_config_is_unknown(broken: dict[str, Any]) -> None:
    found = model_files("m", broken)
    assert found.shape is None
    assert found.unknown.startswith("config.json cannot be used: ")
    assert estimate(spec(), found, H100) is None


def test_an_unknown_architecture_is_a_guess_and_said_to_be() -> None:
    found = estimate(spec(), files("llama-3-8b", model_type="brand-new"), H100)
    assert found is not None
    assert "architecture brand-new is counted like Llama's layers" in found.assumed
    assert not found.is_sure


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_files_go_through_the_codec(name: str) -> None:
    found = files(name)
    assert codec.decode(codec.encode(found), ModelFiles) == found


MODELS = st.sampled_from(sorted(KNOWN))
TOTALS = st.sampled_from([24 * 1024, 48 * 1024, H100, 141 * 1024])


@given(MODELS, TOTALS, st.sampled_from([1, 2, 4, 8]))
def test_more_ranks_never_take_more_of_each_gpu(name: str, total: int, tp: int) -> None:
    one, more = said(name, total, tp), said(name, total, 2 * tp)
    assert more.parts.fixed <= one.parts.fixed
    assert more.request_mib <= one.request_mib
    assert more.enough_mib <= one.enough_mib


@given(MODELS, TOTALS, st.sampled_from([1, 2, 3, 4]))
def test_more_stages_never_weigh_more_in_all_but_a_tied_table(name: str, total: int, pp: int) -> None:
    one, more = said(name, total), said(name, total, pp=pp)
    whole = sum(w.elements for w in files(name).counted if w.part in (Part.EMBEDDING, Part.OTHER)) * 2 * pp
    assert sum(more.stages) * MIB <= one.stages[0] * MIB + whole + pp * MIB
    assert max(more.stages) <= one.stages[0]


@given(MODELS, TOTALS, st.integers(1, 100_000), st.integers(0, 100_000))
def test_a_longer_context_never_needs_less(name: str, total: int, length: int, more: int) -> None:
    short, long = (
        said(name, total, max_model_len=n, max_num_batched_tokens=2048) for n in (length, length + more)
    )
    assert long.request_mib >= short.request_mib
    assert long.enough_mib >= short.enough_mib
    assert long.longest >= short.longest


@given(MODELS, TOTALS, st.integers(1, 100_000))
def test_the_longest_fits_and_a_block_more_does_not(name: str, total: int, length: int) -> None:
    found = said(name, total, max_model_len=length, max_num_batched_tokens=2048)
    if 0 < found.longest < length:
        assert not said(name, total, max_model_len=found.longest, max_num_batched_tokens=2048).lacks_mib
        assert found.lacks_mib


@given(MODELS, TOTALS, st.integers(1, 4096), st.integers(1, 32768))
def test_parts_are_never_negative_and_fill_the_share(name: str, total: int, seqs: int, tokens: int) -> None:
    found = said(name, total, max_num_seqs=seqs, max_num_batched_tokens=tokens)
    parts = found.parts
    assert min(parts.weights, parts.kv_cache, parts.activations, parts.graphs, parts.context) >= 0
    assert found.share_mib is not None
    if parts.kv_cache:
        assert parts.total - parts.context == found.share_mib
