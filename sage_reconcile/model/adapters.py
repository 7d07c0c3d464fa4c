"""LoRA adapters, as values."""

from dataclasses import dataclass

LORA_RANK, LORA_SLOTS = "max-lora-rank", "max-loras"
"""Flags of vLLM: the largest rank that it takes, and how many adapters serve at once."""


@dataclass(frozen=True, slots=True, order=True)
class Adapter:
    """A LoRA adapter: the model name that clients and the engine know it by, and its directory."""

    name: str
    path: str
