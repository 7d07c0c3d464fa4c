"""Estimates against truth: loads each configuration into a real vLLM with made-up weights, and compares.

For a GPU host, one command:

    python tests/gpu/estimates.py --seconds 900 --table estimates.md [--only NAME ...] [--python PATH]

PATH is the interpreter that has vLLM (this one by default). Each model takes one to two minutes; none is
begun that would not end within the seconds. The table is written anew after each model. Exit status 1 when an
engine's total was predicted more than 10% too low, or none was measured.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from sage_reconcile.engines.estimate import estimate  # noqa: E402
from sage_reconcile.engines.modelfiles import model_files  # noqa: E402
from sage_reconcile.model.desired import ArgValue, Device, Kind, LaunchSpec  # noqa: E402
from sage_reconcile.model.estimate import Estimate  # noqa: E402
from tests.engines.configs import KNOWN  # noqa: E402

EACH_SECONDS = 240.0
SHARE = 0.9

CHILD = """
import json, sys
from vllm import LLM
engine = LLM(**json.loads(sys.argv[1]))
print("IT IS READY", flush=True)
sys.stdin.readline()
"""


@dataclass(frozen=True)
class Case:
    """A configuration of configs.py with `changes` to it, and the engine's flags."""

    known: str
    changes: dict[str, Any] = field(default_factory=dict)
    args: dict[str, ArgValue] = field(default_factory=dict)
    kind: Kind = Kind.LLM


CASES = {
    "qwen2.5-0.5b": Case("qwen2.5-0.5b"),
    "llama-3-8b": Case("llama-3-8b"),
    "qwen2.5-7b-awq": Case("qwen2.5-7b-awq"),
    "gpt-oss-20b": Case("gpt-oss-20b"),
    "deepseek-v2-lite": Case("deepseek-v2-lite"),
    "qwen3-30b-a3b, eager": Case("qwen3-30b-a3b", args={"enforce-eager": True}),
    "gemma-3-27b, eager": Case("gemma-3-27b", args={"enforce-eager": True, "max-model-len": 32768}),
    "bge-m3": Case("bge-m3", args={"max-model-len": 8192}, kind=Kind.EMBEDDING),
    "llama-3-8b, fp8, fp8 cache, eager": Case(
        "llama-3-8b", args={"quantization": "fp8", "kv-cache-dtype": "fp8", "enforce-eager": True}
    ),
    "qwen3-next, 12 of 48 layers, eager": Case(
        "qwen3-next-80b-a3b",
        {"num_hidden_layers": 12},
        {"enforce-eager": True, "max-model-len": 32768, "max-num-seqs": 64},
    ),
    "phi-4": Case("phi-4"),
    "llama-3-8b, LoRA, 1024 sequences": Case(
        "llama-3-8b", args={"enable-lora": True, "max-lora-rank": 64, "max-loras": 4, "max-num-seqs": 1024}
    ),
    "mixtral, 16 of 32 layers, eager": Case(
        "mixtral-8x7b", {"num_hidden_layers": 16}, {"enforce-eager": True}
    ),
}


@dataclass(frozen=True)
class Measured:
    """MiB and tokens as vLLM logs them and NVML counts them; None where the log does not tell."""

    weights: float | None
    cache: float | None
    tokens: int | None
    graphs: float | None
    total: int
    seconds: float


def used_mib() -> tuple[int, int]:
    """(used, total) MiB of the first GPU."""
    query = ["nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits", "--id=0"]
    used, total = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split(",")
    return int(used), int(total)


def arguments(case: Case) -> dict[str, ArgValue]:
    return {"max-num-batched-tokens": 8192, "max-num-seqs": 256, **case.args}


def predict(name: str, case: Case, total_mib: int) -> Estimate:
    args = {**arguments(case), "load-format": "dummy", "gpu-memory-utilization": SHARE}
    spec = LaunchSpec(case.kind, "vllm", name, Device.GPU, args=tuple(sorted(args.items())))
    found = estimate(spec, model_files(name, {**KNOWN[case.known].config, **case.changes}), total_mib)
    assert found is not None
    return found


def measure(case: Case, python: str, log: Path) -> Measured:
    """Starts the engine, waits until it is ready, reads what it holds, ends it. RuntimeError with its log."""
    before, _ = used_mib()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        plain = {**KNOWN[case.known].config, **case.changes}
        Path(folder, "config.json").write_text(json.dumps(plain), encoding="utf-8")
        settings: dict[str, Any] = {"model": folder, "load_format": "dummy", "skip_tokenizer_init": True}
        settings |= {"gpu_memory_utilization": SHARE} | ({"runner": "pooling"} if "bge" in case.known else {})
        settings |= {key.replace("-", "_"): value for key, value in arguments(case).items()}
        environ = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        command = [python, "-c", CHILD, json.dumps(settings)]
        with (
            log.open("w", encoding="utf-8") as out,
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environ,
                start_new_session=True,
            ) as child,
        ):
            try:
                used = _when_ready(child, log)
                time_taken = time.monotonic() - begin
            finally:
                # All of it: the process that holds the memory outlives the one that was started.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait(30)
    _until(lambda: used_mib()[0] < before + 600, "its memory is back")
    return _read(log.read_text(encoding="utf-8", errors="replace"), used - before, time_taken)


def _until(is_so: Any, what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds:g} s in vain: {what}")
        time.sleep(0.5)


def _when_ready(child: "subprocess.Popen[bytes]", log: Path) -> int:
    def is_over() -> bool:
        if child.poll() is not None:
            raise RuntimeError("\n".join(log.read_text(errors="replace").splitlines()[-40:]))
        return "IT IS READY" in log.read_text(errors="replace")

    _until(is_over, "the engine is ready", EACH_SECONDS)
    return used_mib()[0]


def _read(text: str, total: int, seconds: float) -> Measured:
    def number(pattern: str, factor: float = 1024.0) -> float | None:
        found = re.search(pattern, text)
        return float(found[1].replace(",", "")) * factor if found else None

    tokens = number(r"GPU KV cache size: ([\d,]+) tokens", 1)
    return Measured(
        weights=number(r"Model loading took ([\d.]+) GiB"),
        cache=number(r"Available KV cache memory: ([\d.]+) GiB"),
        tokens=int(tokens) if tokens else None,
        graphs=number(r"Graph capturing finished in .*took ([\d.]+) GiB"),
        total=total,
        seconds=seconds,
    )


HEADER = (
    "| model | weights MiB | KV cache MiB | KV tokens | graphs MiB | total MiB | start s |\n"
    "|---|---:|---:|---:|---:|---:|---:|\n"
)


def row(name: str, said: Estimate, seen: Measured) -> str:
    """Predicted / measured, and how much more was predicted than measured, in percent."""

    def pair(predicted: float, measured: float | None) -> str:
        if not measured:
            return f"{predicted:,.0f} / -"
        return f"{predicted:,.0f} / {measured:,.0f} ({100 * (predicted / measured - 1):+.1f}%)"

    cells = [
        pair(said.parts.weights, seen.weights),
        pair(said.parts.kv_cache, seen.cache),
        pair(said.tokens, seen.tokens),
        pair(said.parts.graphs, seen.graphs),
        pair(said.parts.total, seen.total),
        f"{seen.seconds:.0f}",
    ]
    return f"| {name} | {' | '.join(cells)} |\n"


def summary(found: list[tuple[str, Estimate, Measured]]) -> str:
    """Median errors, and the engines whose total was predicted more than 10% too low."""
    columns: dict[str, list[float]] = {"weights": [], "KV cache": [], "total": []}
    for _, said, seen in found:
        pairs = ((said.parts.weights, seen.weights), (said.parts.kv_cache, seen.cache))
        for name, (predicted, measured) in zip(
            columns, (*pairs, (said.parts.total, seen.total)), strict=True
        ):
            if measured and predicted:
                columns[name].append(abs(predicted / measured - 1))
    medians = [f"{name} {100 * median(each):.1f}%" for name, each in columns.items() if each]
    low = too_low(found)
    return f"\nMedian error: {', '.join(medians)}. Too low by more than 10%: {', '.join(low) or 'none'}.\n"


def too_low(found: list[tuple[str, Estimate, Measured]]) -> list[str]:
    return [name for name, said, seen in found if said.parts.total < 0.9 * seen.total]


def main() -> int:
    parser = argparse.ArgumentParser(description="Estimates against truth, see the head of this file.")
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[], choices=[[], *CASES])
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--logs", type=Path, default=None, help="a folder for the engines' logs")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    _, total = used_mib()
    head, slowest = f"Predicted / measured on a GPU of {total:,} MiB.\n\n" + HEADER, 60.0
    notes, found = "", list[tuple[str, Estimate, Measured]]()
    logs = options.logs or Path(tempfile.mkdtemp())
    logs.mkdir(parents=True, exist_ok=True)
    for number, (name, case) in enumerate(CASES.items()):
        if options.only and name not in options.only:
            continue
        if time.monotonic() + slowest > end:
            notes += f"- {name}: not run, no time left\n"
            continue
        said = predict(name, case, total)
        try:
            seen = measure(case, options.python, logs / f"{number}.log")
        except RuntimeError as error:
            notes += f"- {name}: {str(error).strip().splitlines()[-1][:200]}\n"
        else:
            slowest = max(slowest, seen.seconds)
            found.append((name, said, seen))
            print(row(name, said, seen), end="", flush=True)
        rows = "".join(row(*each) for each in found)
        options.table.write_text(
            head + rows + summary(found) + ("\n" + notes if notes else ""), encoding="utf-8"
        )
    print(summary(found) + notes)
    return 1 if too_low(found) or not found else 0


if __name__ == "__main__":
    sys.exit(main())
