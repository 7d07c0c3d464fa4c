"""Weights in bytes on each GPU of an engine, by pipeline stage and tensor-parallel rank."""

from sage_reconcile.engines.quantisation import BY_FLAG, KEPT
from sage_reconcile.model.modelfiles import ModelFiles, Part, Quantisation, Shape, Source, Split, Weights


def stage_sizes(count: int, stages: int) -> tuple[int, ...]:
    """Layers of each pipeline stage: equal, and what is left over goes one each to the last but one and those
    before it (vLLM's get_pp_indices)."""
    sizes = [count // stages] * stages
    for number in range(2, count % stages + 2):
        sizes[-number] += 1
    return tuple(sizes)


def stage_of(shape: Shape, stages: int) -> tuple[int, ...]:
    """The stage of each layer."""
    sizes = stage_sizes(len(shape.layers), stages)
    return tuple(stage for stage, size in enumerate(sizes) for _ in range(size))


def by_stage(
    files: ModelFiles, shape: Shape, ranks: tuple[int, int], dtype_bytes: int, online: str = ""
) -> tuple[int, ...]:
    """Bytes of weights on one GPU of each stage. `ranks` are (tensor, pipeline); `online` is the
    quantisation that --quantization makes of a model that is not quantised.

    Layers beyond those of config.json (multi-token prediction of DeepSeek V3) are not loaded.
    """
    tensor, stages = ranks
    found = [0] * stages
    where = stage_of(shape, stages)
    quantisation = shape.quantisation
    if quantisation is None and online in BY_FLAG:
        quantisation = Quantisation(online, BY_FLAG[online])
    online_bits = quantisation.bits if quantisation and shape.quantisation is None else None
    heads = max((layer.kv_heads for layer in shape.layers), default=0) or tensor
    for weights in files.counted if files.source is Source.CONFIG else files.stored:
        if weights.layer is not None and weights.layer >= len(where):
            continue
        if weights.dtype:
            size = _stored(weights, dtype_bytes, online_bits)
        else:
            size = _counted(weights, dtype_bytes, quantisation)
        size = _share(size, weights.split, tensor, heads)
        for stage in _stages(weights, where, stages, shape.is_tied):
            found[stage] += size
    return tuple(found)


def _stages(weights: Weights, where: tuple[int, ...], stages: int, is_tied: bool) -> tuple[int, ...]:
    if weights.layer is not None:
        return (where[weights.layer],)
    if weights.part is Part.HEAD:
        return () if is_tied else (stages - 1,)
    if weights.part is Part.EMBEDDING and is_tied and stages > 1:
        return (0, stages - 1)
    return tuple(range(stages)) if weights.part is Part.OTHER else (0,)


def _stored(weights: Weights, dtype_bytes: int, online_bits: float | None) -> int:
    if weights.dtype == KEPT:
        return weights.size
    if online_bits is not None and weights.is_linear:
        return int(weights.elements * online_bits / 8)
    return weights.elements * dtype_bytes


def _counted(weights: Weights, dtype_bytes: int, quantisation: Quantisation | None) -> int:
    if quantisation and weights.is_linear and (weights.is_expert or not quantisation.experts_only):
        return int(weights.elements * quantisation.bits / 8)
    return weights.elements * dtype_bytes


def _share(size: int, split: Split, tensor: int, heads: int) -> int:
    if split is Split.WHOLE:
        return size
    return -(-size // (min(tensor, heads) if split is Split.KV_HEADS else tensor))
