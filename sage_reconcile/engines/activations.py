"""What computing takes beside weights and cache: activations, CUDA graphs, adapters, the process itself."""

from dataclasses import dataclass

from sage_reconcile.model.modelfiles import Mixer, Shape

BIG_GPU_MIB = 70 * 1024
"""From this size on vLLM's server batches more (vLLM's get_batch_defaults); an A100 of 80 GB does not, which
its size does not tell: the larger batch is assumed."""

BIG_BATCH, SMALL_BATCH = (8192, 1024), (2048, 256)
"""Tokens and sequences of a step, by that."""

SAMPLING_BYTES = 14
"""Bytes a logit takes while vLLM profiles its sampler (vocabulary x sequences): itself (2), its float32
copy, its probability, and the random number that it is compared by (4 each). Versions that sort logits for
top-p, instead of searching with a kernel, take about twice that."""

CAPTURED = 512
"""The largest batch that vLLM captures as a CUDA graph: min(2 x max-num-seqs, this)."""

GRAPH_KIB = 180
"""KiB that a captured graph takes in each layer."""

VLLM_CONTEXT_MIB = 1230
"""What a vLLM process holds beyond its share: CUDA context, libraries' workspaces. Measured on an H100 with
vLLM 0.24: 42,010 MiB at half of 81,559; 1,269 to 1,352 MiB while asleep."""

TORCH_CONTEXT_MIB = 600
"""CUDA context and cuBLAS workspaces of a process that runs torch."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A step at its largest: tokens, sequences, and TP ranks that share the work."""

    tokens: int
    sequences: int
    tensor: int


def peak_bytes(shape: Shape, batch: Batch, dtype_bytes: int, samples: bool) -> int:
    """The largest moment of a step: the widest layer over all tokens of the batch, or the sampler.

    Of a layer: the residual, its copy and the normed input (3 x hidden), then attention's (queries, keys,
    values and output) or the MLP's (gate and up, and their product: 3 x inner), whichever is wider.
    """
    layer = max((layer.kv_heads * layer.per_head for layer in shape.layers), default=0)
    heads = max((one.per_head // 2 for one in shape.layers if one.mixer is not Mixer.MLA), default=128)
    attention = 2 * shape.heads * heads + layer
    widest = max(attention, 3 * shape.inner) // batch.tensor
    widest += shape.hidden * shape.experts_per_token  # each expert's own output, before they are added up
    hidden = batch.tokens * (3 * shape.hidden + widest) * dtype_bytes
    logits = min(batch.sequences, batch.tokens) * shape.vocab * SAMPLING_BYTES if samples else 0
    return max(hidden, logits)


def graph_bytes(layers: int, sequences: int) -> int:
    """CUDA graphs of all sizes that vLLM captures: piecewise up to the largest, whole for those of decoding.

    Sizes are 1, 2, 4, each eighth to 256, each sixteenth beyond (vLLM's cudagraph_capture_sizes).
    """
    largest = min(2 * sequences, CAPTURED)
    sizes = sum(1 for size in (1, 2, 4) if size <= largest)
    sizes += min(largest, 248) // 8 + max(0, (largest - 240) // 16)
    decoding = min(sequences, CAPTURED) * sizes // max(largest, 1)
    return (sizes + decoding) * layers * GRAPH_KIB * 1024


def lora_bytes(shape: Shape, rank: int, slots: int, tensor: int, dtype_bytes: int) -> int:
    """Room for `slots` adapters: for each linear layer A (rank x inputs, whole on each rank) and B (outputs x
    rank, divided), in the model's dtype, for every layer and for the head (vLLM's LoRA layers)."""
    hidden, inner = shape.hidden, shape.inner // max(shape.experts_per_token, 1)
    total = hidden + shape.vocab
    for layer in shape.layers:
        if layer.mixer in (Mixer.STATE, Mixer.NONE):
            continue
        queries = shape.heads * (layer.per_head // 2)
        attention = 4 * hidden + (2 * queries + layer.kv_heads * layer.per_head) // tensor
        total += attention + 3 * hidden + 3 * inner // tensor
    return total * rank * slots * dtype_bytes
