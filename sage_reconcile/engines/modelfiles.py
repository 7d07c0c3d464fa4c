"""From what was read of a model's files to ModelFiles. Pure: reading is observe's."""

from collections.abc import Iterable, Mapping
from typing import Any

from sage_reconcile.engines.config import Unreadable
from sage_reconcile.engines.counting import count_weights
from sage_reconcile.engines.shape import read_shape
from sage_reconcile.engines.tensors import Stored, sum_up
from sage_reconcile.model.modelfiles import ModelFiles, Source


def model_files(
    model: str,
    config: Mapping[str, Any],
    tensors: Iterable[Stored] = (),
    path: str = "",
    is_gguf: bool = False,
) -> ModelFiles:
    """The value for a model with this config.json and these stored tensors; none: counted from the config."""
    try:
        shape = read_shape(config)
        stored = sum_up(tensors)
        counted = () if stored else count_weights(config)
    except Unreadable as error:
        return ModelFiles(model, path, f"config.json cannot be used: {error}")
    source = Source.GGUF if is_gguf else Source.SAFETENSORS
    return ModelFiles(
        model, path, "", shape, source if stored else Source.CONFIG, stored=stored, counted=counted
    )
