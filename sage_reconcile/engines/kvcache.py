"""The KV cache in bytes on one GPU: of a token, and of one request as vLLM reserves it."""

from collections import Counter
from dataclasses import dataclass

from sage_reconcile.engines.quantisation import DTYPES, KV_DTYPES
from sage_reconcile.model.modelfiles import Layer, Mixer, Shape


@dataclass(frozen=True, slots=True)
class Cache:
    """How one pipeline stage keeps what it has seen. `block` and `batched` in tokens, sizes in bytes.

    `kinds` are its layers, equal ones together with their number: a model has few kinds of many layers.
    `batched` is max-num-batched-tokens: a window keeps what it saw, and what one step adds. `states` are kept
    for each request: two where prefixes are cached (the running one and one at the end of a block), else one.
    """

    kinds: tuple[tuple[Layer, int], ...]
    tensor: int
    kv_bytes: int
    dtype_bytes: int
    state_bytes: int
    block: int
    batched: int
    states: int = 2

    def token(self, layer: Layer) -> int:
        """Bytes a token in this layer: kv_heads / TP (one at least) x (key + value) x dtype; MLA's vector is
        the same on every rank."""
        if layer.mixer in (Mixer.STATE, Mixer.NONE):
            return 0
        heads = 1 if layer.mixer is Mixer.MLA else max(1, layer.kv_heads // self.tensor)
        return heads * layer.per_head * self.kv_bytes

    @property
    def bytes_per_token(self) -> int:
        return sum(count * self.token(layer) for layer, count in self.kinds)

    def state(self, layer: Layer) -> int:
        """Bytes of one sequence's state in this layer."""
        return (layer.state * self.state_bytes + layer.conv * self.dtype_bytes) // self.tensor

    @property
    def span(self) -> int:
        """Tokens of a block. Where some layers keep states and others tokens, vLLM makes blocks so long that
        the tokens of one take as much as a state: all layers share one pool of equal pages."""
        token = max((self.token(layer) for layer, _ in self.kinds), default=0)
        state = max((self.state(layer) for layer, _ in self.kinds), default=0)
        return max(1, -(-state // (token * self.block))) * self.block if token else self.block

    def request(self, length: int) -> int:
        """Bytes that one request of so many tokens needs, in whole blocks.

        vLLM's kv_cache_interface: all tokens where attention is full; window - 1 + batched tokens and one
        more block for a window; chunk + batched for chunks; states in pages as large as a block.
        """
        total, span = 0, self.span
        page = span * max((self.token(layer) for layer, _ in self.kinds), default=0)
        for layer, count in self.kinds:
            if layer.mixer is Mixer.STATE:
                total += count * self.states * max(page, self.state(layer))
                continue
            tokens, more = length, 0
            if layer.mixer is Mixer.SLIDING:
                tokens, more = min(layer.window - 1 + self.batched, length), 1
            elif layer.mixer is Mixer.CHUNKED:
                tokens = min(layer.window + self.batched, length)
            blocks = -(-tokens // span) + more
            total += count * blocks * span * self.token(layer)
        return total

    def longest(self, room: int, limit: int) -> int:
        """The longest request, in whole blocks up to `limit` tokens, that fits into `room` bytes."""
        if self.request(limit) <= room:
            return limit
        span = self.span
        low, high = 0, limit // span
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.request(middle * span) <= room else (low, middle - 1)
        return low * span


def kv_bytes_of(name: str, dtype_bytes: int) -> int:
    """Bytes of one number of the cache, by --kv-cache-dtype."""
    return KV_DTYPES.get(name) or DTYPES.get(name) or dtype_bytes


def cache_of(
    shape: Shape, layers: tuple[Layer, ...], tensor: int, sizes: tuple[int, int], steps: tuple[int, int, int]
) -> Cache:
    """`sizes`: bytes of a cached number and of the model's dtype; `steps`: tokens of a block and a batch,
    and states that a request keeps."""
    state_bytes = 4 if shape.state_dtype == "float32" else sizes[1]
    kinds = tuple(Counter(layers).items())
    return Cache(kinds, tensor, sizes[0], sizes[1], state_bytes, *steps)
