"""GPU memory of an engine, computed from its model's files and its flags: pure, and in MiB per GPU."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from sage_reconcile.engines import activations as work
from sage_reconcile.engines.flags import Flags
from sage_reconcile.engines.kvcache import Cache, cache_of, kv_bytes_of
from sage_reconcile.engines.quantisation import BY_FLAG, DTYPES
from sage_reconcile.engines.vllm import share_mib
from sage_reconcile.engines.weighing import by_stage, stage_of
from sage_reconcile.model.desired import Kind, LaunchSpec
from sage_reconcile.model.estimate import Breakdown, Estimate
from sage_reconcile.model.modelfiles import Layer, ModelFiles, Shape, Source

MIB = 1024 * 1024
DEFAULT_LENGTH = 4096
"""Tokens of a request where neither the file nor the model says how long one may be."""

ONE_REQUEST = 8192
"""Tokens of the one request at a time that transformers serve is counted with, where the model takes more."""

EMBEDDING_BATCH = 16384
"""Tokens of a batch of the embedding server on a GPU, unless --max-batch-tokens says otherwise."""

_UNCERTAIN = (
    "cpu-offload-gb",
    "kv-offloading-size",
    "kv-cache-memory-bytes",
    "speculative-config",
    "hf-overrides",
    "data-parallel-size",
    "decode-context-parallel-size",
    "model-impl",
)
"""Flags that change what is in memory in ways that are not computed here: nothing is blocked beside them."""


def mib(size: int) -> int:
    """Whole MiB, rounded up: what is short of one still takes it."""
    return -(-size // MIB)


def estimate(spec: LaunchSpec, files: ModelFiles | None, gpu_total_mib: int) -> Estimate | None:
    """What one GPU of this size will hold; None where the model's files are not known, or the runtime is none
    that is computed."""
    if files is None or files.shape is None or spec.is_external:
        return None
    makers: dict[str, Callable[[LaunchSpec, ModelFiles, Shape, int], Estimate]] = {
        "vllm": _vllm,
        "transformers": _transformers,
        "sentence-transformers": _sentence_transformers,
    }
    make = makers.get(spec.runtime)
    return make(spec, files, files.shape, gpu_total_mib) if make else None


def _dtype(flags: Flags, shape: Shape, is_vllm: bool = False) -> str:
    """--dtype, else the model's own; vLLM's auto makes 16 bits of a float32 model."""
    stated = flags.text("dtype", "auto")
    if stated in DTYPES:
        return stated
    own = shape.dtype if shape.dtype in DTYPES else "bfloat16"
    return "bfloat16" if is_vllm and DTYPES[own] > 2 else own


def _source(files: ModelFiles) -> str:
    names = {
        Source.SAFETENSORS: "safetensors headers and config.json",
        Source.GGUF: "GGUF tensors and metadata",
        Source.CONFIG: "config.json (weights counted)",
    }
    return names[files.source]


def _vllm(spec: LaunchSpec, files: ModelFiles, shape: Shape, gpu_total_mib: int) -> Estimate:
    flags = Flags(spec)
    assumed = _assumptions(files, shape, flags)
    dtype = _dtype(flags, shape, is_vllm=True)
    max_len = flags.number("max-model-len", shape.max_len or DEFAULT_LENGTH)
    is_pooling = shape.is_encoder or spec.kind is Kind.EMBEDDING
    tokens, sequences = work.BIG_BATCH if gpu_total_mib >= work.BIG_GPU_MIB else work.SMALL_BATCH
    tokens = flags.number("max-num-batched-tokens", max(tokens, max_len) if is_pooling else tokens)
    sequences = flags.number("max-num-seqs", sequences)
    if not flags.has("max-num-batched-tokens"):
        assumed.append(f"max-num-batched-tokens {tokens:,}, max-num-seqs {sequences:,}: vLLM's for this GPU")
    ranks = (spec.tensor_parallel, spec.pipeline_parallel)
    weights = by_stage(files, shape, ranks, DTYPES[dtype], flags.text("quantization"))
    batch = work.Batch(tokens, sequences, spec.tensor_parallel)
    rooms = [
        _room(flags, shape, batch, DTYPES[dtype], Stage(size, layers, is_pooling, is_last))
        for size, layers, is_last in _stages(shape, weights)
    ]
    share = share_mib(spec, gpu_total_mib)
    if flags.text("max-model-len") in ("auto", "-1") or dict(spec.args).get("max-model-len") == -1:
        # vLLM takes the longest that fits.
        max_len = min(cache.longest(max(0, share - own.fixed) * MIB, max_len) for own, cache in rooms)
    kv_dtype = flags.text("kv-cache-dtype", "auto")
    return _filled(
        Estimate(
            source=_source(files),
            parts=Breakdown(),
            stages=tuple(mib(each) for each in weights),
            dtype=dtype,
            kv_dtype=kv_dtype if kv_dtype != "auto" else dtype,
            share_mib=share,
            max_len=max_len,
            is_sure=not shape.is_guess and not any(flags.has(name) for name in _UNCERTAIN),
            assumed=tuple(assumed),
        ),
        rooms,
    )


@dataclass(frozen=True, slots=True)
class Stage:
    """One pipeline stage: bytes of weights on each of its GPUs, and its layers."""

    weights: int
    layers: tuple[Layer, ...]
    is_pooling: bool
    is_last: bool


def _stages(shape: Shape, weights: tuple[int, ...]) -> Iterator[tuple[int, tuple[Layer, ...], bool]]:
    where = stage_of(shape, len(weights))
    for stage, size in enumerate(weights):
        own = tuple(layer for layer, at in zip(shape.layers, where, strict=True) if at == stage)
        yield size, own, stage == len(weights) - 1


def _room(flags: Flags, shape: Shape, batch: work.Batch, size: int, stage: Stage) -> tuple[Breakdown, Cache]:
    """What a GPU of the stage holds beside its KV cache, and how it caches. `size`: bytes of the dtype."""
    samples = stage.is_last and not stage.is_pooling
    is_eager = stage.is_pooling or flags.flag("enforce-eager") or flags.number("optimization-level", 2) == 0
    graphs = 0 if is_eager else work.graph_bytes(len(stage.layers), batch.sequences)
    adapters = 0
    if flags.flag("enable-lora"):  # room for max-loras of max-lora-rank is made at the start
        rank, slots = flags.number("max-lora-rank", 16), flags.number("max-loras", 1)
        part = replace(shape, layers=stage.layers, vocab=shape.vocab if stage.is_last else 0)
        adapters = work.lora_bytes(part, rank, slots, batch.tensor, size)
    fixed = Breakdown(
        weights=mib(stage.weights),
        activations=mib(work.peak_bytes(shape, batch, size, samples)),
        graphs=mib(graphs),
        lora=mib(adapters),
        context=work.VLLM_CONTEXT_MIB,
    )
    sizes = (kv_bytes_of(flags.text("kv-cache-dtype", "auto"), size), size)
    steps = (flags.number("block-size", 16), batch.tokens, 1 if flags.off("enable-prefix-caching") else 2)
    return fixed, cache_of(shape, stage.layers, batch.tensor, sizes, steps)


def _filled(about: Estimate, rooms: list[tuple[Breakdown, Cache]]) -> Estimate:
    """The estimate of the stage that has least room: vLLM gives every stage the same number of blocks. An
    encoder keeps nothing, so nothing is filled."""
    share = about.share_mib or 0

    def lack(room: tuple[Breakdown, Cache]) -> int:
        return room[0].fixed + mib(room[1].request(about.max_len)) - share

    fixed, cache = max(rooms, key=lack)
    left = max(0, share - fixed.fixed)
    request = cache.request(about.max_len)
    holds = left * MIB * about.max_len // request if request else 0
    return replace(
        about,
        parts=replace(fixed, kv_cache=left if request else 0),
        bytes_per_token=cache.bytes_per_token,
        request_mib=mib(request),
        tokens=holds,
        longest=cache.longest(left * MIB, about.max_len),
        enough_mib=fixed.fixed + mib(request),
    )


def _assumptions(files: ModelFiles, shape: Shape, flags: Flags) -> list[str]:
    """What the numbers take for granted, in words."""
    found = []
    if files.source is Source.CONFIG and flags.text("load-format") != "dummy":
        found.append("no weights here: counted from config.json")
    if shape.is_guess:
        found.append(f"architecture {shape.architecture} is counted like Llama's layers")
    if not shape.max_len and not flags.has("max-model-len"):
        found.append(f"config.json says no length: {DEFAULT_LENGTH} tokens")
    given = flags.text("quantization")
    if given and shape.quantisation is None and given not in BY_FLAG:
        found.append(f"--quantization {given} is not computed: weights as stored")
    found += [f"--{name} is not computed" for name in _UNCERTAIN if flags.has(name)]
    return found


def _transformers(spec: LaunchSpec, files: ModelFiles, shape: Shape, gpu_total_mib: int) -> Estimate:
    """One request at a time; its cache grows with it."""
    flags = Flags(spec)
    dtype = _dtype(flags, shape)
    length = min(shape.max_len or DEFAULT_LENGTH, ONE_REQUEST)
    cache = cache_of(shape, shape.layers, 1, (DTYPES[dtype], DTYPES[dtype]), (1, length, 1))
    assumed = [*_assumptions(files, shape, flags), f"one request of {length:,} tokens at a time"]
    return _plain(files, shape, (dtype, length), cache.request(length), assumed)


def _sentence_transformers(spec: LaunchSpec, files: ModelFiles, shape: Shape, gpu_total_mib: int) -> Estimate:
    """Batches of so many tokens; nothing is kept between them."""
    flags = Flags(spec)
    tokens = flags.number("max-batch-tokens", EMBEDDING_BATCH)
    assumed = [*_assumptions(files, shape, flags), f"batches of {tokens:,} tokens"]
    return _plain(files, shape, (_dtype(flags, shape), tokens), 0, assumed)


def _plain(files: ModelFiles, shape: Shape, step: tuple[str, int], kept: int, assumed: list[str]) -> Estimate:
    """A torch process that takes what it needs. `step` is its dtype and the tokens of a batch."""
    dtype, tokens = step
    (weights,) = by_stage(files, shape, (1, 1), DTYPES[dtype])
    batch = work.Batch(tokens, 1, 1)
    parts = Breakdown(
        weights=mib(weights),
        kv_cache=mib(kept),
        activations=mib(work.peak_bytes(shape, batch, DTYPES[dtype], samples=False)),
        context=work.TORCH_CONTEXT_MIB,
    )
    return Estimate(
        source=_source(files),
        parts=parts,
        stages=(parts.weights,),
        dtype=dtype,
        max_len=tokens,
        enough_mib=parts.total,
        is_sure=not shape.is_guess,
        assumed=tuple(assumed),
    )
