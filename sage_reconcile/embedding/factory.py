"""Loads a model into an Embedder. torch is imported when a model is loaded, never before."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sage_reconcile.embedding.batching import Tokens
from sage_reconcile.errors import PermanentError

# Tokenizers without a limit say 10**30; inputs are cut to nothing longer than this anyway.
_NO_LIMIT = 1_000_000


class Embedder(Protocol):
    """What the server needs of a model. A vector is `dim` little-endian float32, as bytes."""

    dim: int
    max_length: int
    vocab_size: int
    device: str
    normalizes: bool

    def tokenize(self, texts: list[str], truncate: bool) -> list[Tokens]:
        """Token ids with special tokens; with `truncate`, at most `max_length` of them. Thread-safe."""
        ...

    def encode(self, inputs: list[Tokens]) -> list[bytes]:
        """One vector per input, the same whatever else is in the batch."""
        ...


class LoadError(PermanentError):
    """The model cannot be served."""


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How to load a model. `normalize` None: unless the model compares by something else than the cosine.

    `gpu_memory_fraction`: of the GPU's memory, what torch may allocate; None leaves it all.
    """

    model: str
    device: str = "auto"
    dtype: str = "auto"
    max_length: int | None = None
    trust_remote_code: bool = False
    prompt_name: str | None = None
    normalize: bool | None = None
    gpu_memory_fraction: float | None = None


def load_embedder(settings: ModelSettings) -> Embedder:
    """The model, loaded and tried once. Raises LoadError with one clear line."""
    if settings.model.startswith(("/", "./", "../")) and not Path(settings.model).is_dir():
        raise LoadError(f"cannot load {settings.model}: there is no such directory; check the model's path")
    try:
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging
    except ImportError as error:
        raise LoadError(
            f"cannot load {settings.model}: {error}; install sage-reconcile[local] in this Python environment"
        ) from error
    transformers_logging.disable_progress_bar()
    with _told_in_one_line(settings.model):
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if settings.gpu_memory_fraction is not None and device.startswith("cuda"):
            # Beyond it a request fails here, instead of taking what its neighbours on the GPU count on.
            torch.cuda.set_per_process_memory_fraction(settings.gpu_memory_fraction, torch.device(device))
        dtype = settings.dtype
        if dtype == "auto" and device == "cpu":
            # CPU kernels for half precision are slow, and on some processors wrong.
            dtype = "float32"
        model = SentenceTransformer(
            settings.model,
            device=device,
            trust_remote_code=settings.trust_remote_code,
            model_kwargs={"dtype": dtype},
        )
        model.eval()
        embedder = SentenceEmbedder(model, settings)
        embedder.try_out(settings.max_length)
        return embedder


@contextlib.contextmanager
def _told_in_one_line(model: str) -> Iterator[None]:
    try:
        yield
    except LoadError:
        raise
    except Exception as error:  # a library of models may raise anything
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2]) if lines else type(error).__name__
        raise LoadError(f"cannot load {model}: {reason}") from error


class SentenceEmbedder:
    """A SentenceTransformer that takes token ids and pads with a mask."""

    def __init__(self, model: Any, settings: ModelSettings) -> None:
        self._model = model
        self._is_static = _is_static(model[0])
        if not self._is_static and not hasattr(model[0], "auto_model"):
            kind = type(model[0]).__name__
            raise LoadError(
                f"cannot load {settings.model}: a model that begins with {kind} takes no token ids"
            )
        self._tokenizer = model[0].tokenizer
        # Setting a fast tokenizer's truncation from two threads at once is an error in its Rust half.
        self._tokenizer_lock = threading.Lock()
        self._prompt = _prompt(model, settings)
        self.dim = int(model.get_embedding_dimension())
        self.max_length = settings.max_length or _own_max_length(model)
        self.vocab_size = _vocab_size(model[0])
        self.device = str(model.device)
        cosine = model.similarity_fn_name in (None, "cosine")
        self.normalizes = cosine if settings.normalize is None else settings.normalize

    def try_out(self, length: int | None) -> None:
        """Encodes once, `length` tokens where the user chose that, so that a misfit shows at the start."""
        [tokens] = self.tokenize(["ready?"], truncate=True)
        if length is not None:
            tokens = (tokens * length)[:length]
        try:
            self.encode([tokens])
        except (IndexError, RuntimeError) as error:
            raise LoadError(
                f"cannot serve {len(tokens)} tokens at once ({error}); lower --max-length"
            ) from error

    def tokenize(self, texts: list[str], truncate: bool) -> list[Tokens]:
        prompted = [self._prompt + text for text in texts]
        with self._tokenizer_lock:
            if self._is_static:
                encodings = self._tokenizer.encode_batch(prompted, add_special_tokens=False)
                found: list[Tokens] = [encoding.ids for encoding in encodings]
                return [ids[: self.max_length] for ids in found] if truncate else found
            limits = (
                {"truncation": True, "max_length": self.max_length} if truncate else {"truncation": False}
            )
            encoded = self._tokenizer(prompted, padding=False, verbose=False, **limits)
        ids: list[Tokens] = encoded["input_ids"]
        return ids

    def encode(self, inputs: list[Tokens]) -> list[bytes]:
        import torch

        with torch.inference_mode():
            features = self._static_features(inputs) if self._is_static else self._padded_features(inputs)
            features = {name: tensor.to(self._model.device) for name, tensor in features.items()}
            vectors = self._model(features)["sentence_embedding"].float()
            if not bool(torch.isfinite(vectors).all()):
                raise PermanentError("its vector is not finite; start the engine with --dtype float32")
            if self.normalizes:
                vectors = torch.nn.functional.normalize(vectors, p=2, dim=1)
            rows = vectors.cpu().numpy().astype("<f4")
        return [row.tobytes() for row in rows]

    def _padded_features(self, inputs: list[Tokens]) -> dict[str, Any]:
        import torch

        width = max(len(tokens) for tokens in inputs)
        pad = self._tokenizer.pad_token_id or 0
        input_ids = torch.full((len(inputs), width), pad, dtype=torch.long)
        mask = torch.zeros((len(inputs), width), dtype=torch.long)
        pads_left = self._tokenizer.padding_side == "left"
        for row, tokens in enumerate(inputs):
            place = slice(width - len(tokens), width) if pads_left else slice(0, len(tokens))
            input_ids[row, place] = torch.tensor(tokens, dtype=torch.long)
            mask[row, place] = 1
        return {"input_ids": input_ids, "attention_mask": mask}

    def _static_features(self, inputs: list[Tokens]) -> dict[str, Any]:
        import torch

        starts = [0]
        for tokens in inputs[:-1]:
            starts.append(starts[-1] + len(tokens))
        flat = [token for tokens in inputs for token in tokens]
        return {
            "input_ids": torch.tensor(flat, dtype=torch.long),
            "offsets": torch.tensor(starts, dtype=torch.long),
        }


def _is_static(first_module: Any) -> bool:
    """Whether the model is a table of token vectors and a mean (no attention, so no padding)."""
    import torch

    return isinstance(getattr(first_module, "embedding", None), torch.nn.EmbeddingBag)


def _vocab_size(first_module: Any) -> int:
    """Rows of the token table: an id beyond it is a fault of the request, not a crash of the device."""
    if _is_static(first_module):
        return int(first_module.embedding.num_embeddings)
    return int(first_module.auto_model.get_input_embeddings().num_embeddings)


def _own_max_length(model: Any) -> int:
    """Tokens that the model says it takes; without a word from it, what its positions allow."""
    stated = model.max_seq_length
    if stated is not None and stated < _NO_LIMIT:
        return int(stated)
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    return int(getattr(config, "max_position_embeddings", None) or _NO_LIMIT)


def _prompt(model: Any, settings: ModelSettings) -> str:
    """The text put before every input text."""
    name = settings.prompt_name or model.default_prompt_name
    if not name:
        return ""
    if name not in model.prompts:
        known = ", ".join(sorted(model.prompts)) or "none"
        raise LoadError(f"cannot load {settings.model}: it has no prompt named {name}; it has: {known}")
    prompt = str(model.prompts[name])
    if prompt and not all(getattr(module, "include_prompt", True) for module in model):
        raise LoadError(
            f"cannot load {settings.model}: it leaves its prompt out of the mean, which is not supported"
        )
    return prompt
