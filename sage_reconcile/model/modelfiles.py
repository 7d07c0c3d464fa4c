"""What a model's own files say, as values: its layers, its weights, its quantisation."""

from dataclasses import dataclass
from enum import StrEnum


class Mixer(StrEnum):
    """How a layer looks at earlier tokens, which decides what it keeps of them: keys and values of all
    tokens, of a window or a chunk, one compressed vector a token (MLA), or a state of one size."""

    FULL = "full"
    SLIDING = "sliding"
    CHUNKED = "chunked"
    MLA = "mla"
    STATE = "state"
    NONE = "none"


class Part(StrEnum):
    """What weights are for: the first and the last pipeline stage hold the embedding and the head."""

    EMBEDDING = "embedding"
    HEAD = "head"
    LAYER = "layer"
    VISION = "vision"
    OTHER = "other"


class Split(StrEnum):
    """How tensor parallelism divides weights: evenly; by key-value heads, of which each rank has one at
    least; or not at all."""

    EVEN = "even"
    KV_HEADS = "kv-heads"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of one kind in one layer, or outside of layers (`layer` is None).

    `dtype` is safetensors' word for how they are stored, "" where they were counted from config.json.
    `elements` are parameters, for packed weights stored numbers; `size` is in bytes as stored, 0 if counted.
    `is_linear` weights are those that quantisation changes; `is_expert` those of a mixture of experts.
    """

    part: Part
    elements: int
    split: Split = Split.EVEN
    layer: int | None = None
    dtype: str = ""
    size: int = 0
    is_linear: bool = False
    is_expert: bool = False


@dataclass(frozen=True, slots=True)
class Layer:
    """What a layer keeps per token and per sequence, in numbers (not bytes), before tensor parallelism.

    `kv_heads` heads of `per_head` numbers a token (keys and values together); for MLA one vector of
    `per_head`. `window` in tokens. A state has `state` numbers and `conv` numbers a sequence.
    """

    mixer: Mixer
    kv_heads: int = 0
    per_head: int = 0
    window: int = 0
    state: int = 0
    conv: int = 0


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How linear weights are stored: `bits` of a weight with its share of scales and zero points.

    `experts_only`: nothing but the experts is quantised (MXFP4 of gpt-oss).
    """

    method: str
    bits: float
    experts_only: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """config.json, as far as memory needs it. `max_len` in tokens, 0 where it is not said.

    `inner` is the widest MLP of a layer, `experts_per_token` times one expert's for a mixture.
    `is_encoder`: it keeps nothing between requests.
    """

    architecture: str
    dtype: str
    hidden: int
    vocab: int
    inner: int
    heads: int
    layers: tuple[Layer, ...]
    max_len: int = 0
    experts_per_token: int = 0
    is_tied: bool = False
    is_encoder: bool = False
    state_dtype: str = ""
    quantisation: Quantisation | None = None
    is_guess: bool = False


class Source(StrEnum):
    """Where weights were read from."""

    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    CONFIG = "config"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """One model as its files describe it. `model` is its name in the stack file, `path` where it lies.

    Without `shape` nothing is known, and `unknown` says why. `counted` are the weights as config.json gives
    them, `stored` those that the files hold; `source` says which of the two is the better one.
    """

    model: str
    path: str = ""
    unknown: str = ""
    shape: Shape | None = None
    source: Source = Source.CONFIG
    stored: tuple[Weights, ...] = ()
    counted: tuple[Weights, ...] = ()
