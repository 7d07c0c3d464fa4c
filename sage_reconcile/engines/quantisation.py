"""Quantised weights: how many bits each takes, scales and zero points included, from the model's config."""

from sage_reconcile.engines.config import Config
from sage_reconcile.model.modelfiles import Quantisation

KEPT = "KEPT"
"""The dtype of numbers that stay as they are stored: scales, zero points, packed weights."""

DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits of safetensors' dtypes, from its format description."""

CONVERTED = frozenset({"F64", "F32", "F16", "BF16"})
"""Stored in any of these, weights are loaded in the dtype that the engine runs with."""

DTYPES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2, "float64": 8}
"""Bytes of the dtypes that --dtype and config.json name."""

KV_DTYPES = {"fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "fp8_inc": 1, "fp8_ds_mla": 1, "int8": 1}
"""Bytes of what --kv-cache-dtype names besides those."""

BY_FLAG = {
    "fp8": 8.0,
    "bitsandbytes": 4.0 + 32 / 64,
    "experts_int8": 8.0,
    "int8": 8.0,
    "mxfp4": 4.0 + 8 / 32,
    "nvfp4": 4.0 + 8 / 16,
}
"""Bits of a weight that --quantization makes of a model that is not quantised. bitsandbytes keeps one float32
for each 64 weights of NF4 (its blocksize)."""


def read_quantisation(config: Config) -> Quantisation | None:
    """What `quantization_config` says; None without one, or for one that is not known."""
    stated = config.inner("quantization_config")
    if not stated.plain:
        stated = config.inner("compression_config")
    method = stated.text("quant_method", stated.text("quant_algo")).lower().replace("_", "-")
    if method in ("fp8", "fbgemm-fp8", "float-quantized"):
        block = [n for n in stated.items("weight_block_size") if isinstance(n, int) and n > 0]
        return Quantisation("fp8", 8 + (32 / (block[0] * block[1]) if len(block) == 2 else 0))
    if method in ("awq", "gptq", "gptq-marlin", "awq-marlin", "auto-round"):
        return Quantisation(method, _grouped(stated.number("bits", "w_bit", default=4), stated))
    if method == "bitsandbytes":
        four = stated.flag("load_in_4bit") or stated.flag("_load_in_4bit")
        return Quantisation("bitsandbytes", BY_FLAG["bitsandbytes"] if four else 8.0)
    if method == "mxfp4":
        return Quantisation("mxfp4", BY_FLAG["mxfp4"], experts_only=True)
    if method == "compressed-tensors":
        return _compressed(stated)
    if method.startswith("modelopt") or method in ("nvfp4", "fp8-pb-wo"):
        algorithm = (stated.text("quant_algo") or stated.inner("quantization").text("quant_algo")).upper()
        is_four = "FP4" in algorithm or "fp4" in method
        return Quantisation("nvfp4" if is_four else "fp8", BY_FLAG["nvfp4"] if is_four else 8.0)
    return None


def _grouped(bits: int, stated: Config, zeros: bool = True) -> float:
    """AWQ and GPTQ: packed weights, and for each group a float16 scale and a packed zero point."""
    group = stated.plain.get("group_size", stated.plain.get("q_group_size", 128))
    if not isinstance(group, int) or group <= 0:
        return float(bits)  # one scale a column: nothing, beside the column
    return bits + (16 + (bits if zeros else 0)) / group


def _compressed(stated: Config) -> Quantisation | None:
    """compressed-tensors: the first group of `config_groups` with weights says how all of them are stored."""
    for group in stated.inner("config_groups").plain:
        weights = stated.inner("config_groups").inner(group).inner("weights")
        if not weights.plain:
            continue
        bits = weights.number("num_bits", default=8)
        size = weights.plain.get("group_size")
        form = stated.inner("config_groups").inner(group).text("format", stated.text("format"))
        if "nvfp4" in form:
            return Quantisation("nvfp4", BY_FLAG["nvfp4"])
        if "mxfp4" in form:
            return Quantisation("mxfp4", BY_FLAG["mxfp4"])
        if isinstance(size, int) and size > 0:
            return Quantisation(
                "compressed-tensors", _grouped(bits, weights, not weights.flag("symmetric", True))
            )
        return Quantisation("compressed-tensors", float(bits))
    return None
