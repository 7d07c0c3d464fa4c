"""A fake model for the embedding server, and small helpers to wait and to speak HTTP."""

import hashlib
import struct
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from sage_reconcile.embedding.batching import Tokens

T = TypeVar("T")
DEADLINE = 30.0
POISON = 666


def until(what: str, check: Callable[[], T], deadline: float = DEADLINE) -> T:
    """The first true value of `check`, polled; fails naming `what` when there is none in time."""
    end = time.monotonic() + deadline
    while not (value := check()):
        assert time.monotonic() < end, f"not within {deadline} s: {what}"
        time.sleep(0.01)
    return value


class FakeEmbedder:
    """Words are tokens, between special ones; a vector is a hash of its tokens. `gate` holds the model."""

    dim = 8
    max_length = 16
    vocab_size = 1000
    device = "cpu"
    normalizes = True

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[Tokens]] = []

    def tokenize(self, texts: list[str], truncate: bool) -> list[Tokens]:
        found = [[1, *(2 + len(word) for word in text.split()), 0] for text in texts]
        return [tokens[: self.max_length] for tokens in found] if truncate else found

    def encode(self, inputs: list[Tokens]) -> list[bytes]:
        self.batches.append(inputs)
        self.entered.set()
        assert self.gate.wait(DEADLINE), "the test never opened the gate"
        if any(POISON in tokens for tokens in inputs):
            raise ValueError("poison")
        return [self.vector(tokens) for tokens in inputs]

    def vector(self, tokens: Tokens) -> bytes:
        digest = hashlib.sha256(repr(tokens).encode()).digest()
        values = [1.0 + byte for byte in digest[: self.dim]]
        norm = sum(value * value for value in values) ** 0.5
        return struct.pack(f"<{self.dim}f", *(value / norm for value in values))
