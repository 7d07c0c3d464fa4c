"""LoRA adapters: what their directories say, and what cannot be with them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from sage_reconcile.model.adapters import LORA_RANK
from sage_reconcile.stack.problems import Path, Problem

if TYPE_CHECKING:
    from sage_reconcile.stack.check import Checked

CONFIG = "adapter_config.json"
RANKS = (16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as max-lora-rank, from its default on."""

MAX_CONFIG_BYTES = 2**20


def rank_that_holds(rank: int) -> int:
    """The smallest max-lora-rank for adapters of this rank."""
    return next((size for size in RANKS if size >= rank), RANKS[-1])


def read_rank(folder: str) -> int:
    """The rank of the adapter in a directory, the largest where modules differ. Raises ValueError, in words,
    where there is no adapter that can be loaded."""
    path = FilePath(folder) / CONFIG
    try:
        if not FilePath(folder).is_dir():
            raise ValueError(f"the directory {folder} does not exist")
        with path.open("rb") as file:
            config = json.loads(file.read(MAX_CONFIG_BYTES))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise ValueError(f"{path} is not JSON") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not a map")
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise ValueError(f"{path} describes an adapter of type {kind}; only LORA can be loaded")
    pattern = config.get("rank_pattern")
    ranks = [config.get("r", 8), *(pattern.values() if isinstance(pattern, dict) else ())]
    sizes = [rank for rank in ranks if isinstance(rank, int) and rank > 0]
    if len(sizes) < len(ranks):
        raise ValueError(f"{path} has no usable rank r")
    return max(sizes)


def anchored(entries: Any, absolute: Callable[[str], str]) -> Any:
    """The entries of `lora` with paths made absolute; what is of a wrong type is left to validation."""
    if not isinstance(entries, list):
        return entries
    return [_anchored(entry, absolute) for entry in entries]


def _anchored(entry: Any, absolute: Callable[[str], str]) -> Any:
    folder = entry.get("path") if isinstance(entry, dict) else None
    if not isinstance(folder, str) or not folder or folder.startswith("${"):
        return entry
    return {**entry, "path": absolute(folder)}


def with_ranks(entries: Any, path: Path, problems: list[Problem]) -> Any:
    """The entries of `lora` with the ranks that their directories tell; what cannot be read is a problem."""
    if not isinstance(entries, list):
        return entries
    return [_with_rank(entry, (*path, number), problems) for number, entry in enumerate(entries)]


def _with_rank(entry: Any, path: Path, problems: list[Problem]) -> Any:
    folder = entry.get("path") if isinstance(entry, dict) else None
    if not isinstance(folder, str) or not folder.startswith("/"):
        return entry
    try:
        rank = read_rank(folder)
    except ValueError as error:
        hint = "check the path, or validate with --portable"
        problems.append(Problem((*path, "path"), str(error), hint))
        return entry
    return {**entry, "rank": rank} if entry.get("rank") is None else entry


def check_lora(it: "Checked") -> Iterator[Problem]:
    """Adapters where none can be loaded, twice the same name, and flags that contradict them."""
    adapters = it.engine.lora
    if adapters is None or not it.kind:
        return
    if it.kind != "vllm":
        message = f"an engine of runtime {it.kind} cannot load LoRA adapters"
        yield Problem(it.at("lora"), message, "lora needs vllm", "lora" in it.own)
        return
    if it.args.get("enable-lora") is False:
        yield Problem(it.at("lora"), "lora contradicts args.enable-lora: false", "remove the flag")
    names = [adapter.name for adapter in adapters]
    most = it.args.get(LORA_RANK)
    for number, adapter in enumerate(adapters):
        if adapter.name in names[:number]:
            yield Problem(it.at("lora", number, "name"), f'the adapter "{adapter.name}" is given twice')
        rank = adapter.rank or 0
        if rank > RANKS[-1]:
            message = f"its rank {rank} is more than any engine takes, {RANKS[-1]}"
            yield Problem(it.at("lora", number), message)
        elif isinstance(most, int) and not isinstance(most, bool) and rank > most:
            message = f"its rank {rank} is more than args.{LORA_RANK}: {most}"
            hint = f"raise it to {rank_that_holds(rank)}, or leave it to sage"
            yield Problem(it.at("lora", number), message, hint)
    if "lora-modules" in it.args:
        hint = "list its adapters in lora"
        yield Problem(it.at("args"), "the flag lora-modules is what lora does", hint)
