"""How much GPU memory an engine will take, as a value: parts, total, and whether it starts at all."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Breakdown:
    """MiB of one GPU by what they are for."""

    weights: int = 0
    kv_cache: int = 0
    activations: int = 0
    graphs: int = 0
    lora: int = 0
    context: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.activations + self.graphs + self.lora + self.context

    @property
    def fixed(self) -> int:
        """What must be there whatever is left for the KV cache, and counts against vLLM's share."""
        return self.weights + self.activations + self.graphs + self.lora


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one GPU of an engine holds: the fullest one of its pipeline stages.

    `stages` are MiB of weights per GPU of each stage. `share_mib` is what vLLM fills, None for programs that
    take what they need. `bytes_per_token` and `request_mib` (one request of `max_len` tokens) are of the KV
    cache of one GPU; `tokens` are what the whole cache holds. `longest` is the longest max-model-len that
    starts, `enough_mib` the gpu_memory with which `max_len` does. `assumed` says what was not told.
    """

    source: str
    parts: Breakdown
    stages: tuple[int, ...]
    dtype: str
    kv_dtype: str = ""
    share_mib: int | None = None
    bytes_per_token: int = 0
    request_mib: int = 0
    max_len: int = 0
    tokens: int = 0
    longest: int = 0
    enough_mib: int = 0
    is_sure: bool = True
    assumed: tuple[str, ...] = ()

    @property
    def keeps_nothing(self) -> bool:
        """Whether it keeps no KV cache, so that a share that it is given is not filled (vLLM's encoders)."""
        return self.share_mib is not None and not self.request_mib

    @property
    def lacks_mib(self) -> int:
        """MiB that the share lacks for the weights, what computing takes, and one request; 0 when it fits."""
        return 0 if self.share_mib is None else max(0, self.enough_mib - self.share_mib)

    @property
    def cannot_start(self) -> bool:
        """Whether not even weights and one request fit: whatever the estimate of the rest is worth."""
        least = self.parts.weights + self.parts.lora + self.request_mib
        return self.share_mib is not None and least > self.share_mib
