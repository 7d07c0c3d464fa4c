"""The embedding server as a real process around the fake model: its options and two of its own.

`--gate FILE` holds the model while FILE exists; `--load-gate FILE` holds the loading.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from sage_reconcile.embedding.batching import Tokens
from sage_reconcile.embedding.factory import Embedder, ModelSettings
from sage_reconcile.embedding.server import main
from tests.embedding.fakes import FakeEmbedder


def take_option(argv: list[str], name: str) -> Path | None:
    if name not in argv:
        return None
    index = argv.index(name)
    value = argv[index + 1]
    del argv[index : index + 2]
    return Path(value)


def wait_while(gate: Path | None) -> None:
    while gate is not None and gate.exists():
        time.sleep(0.01)


class GatedEmbedder(FakeEmbedder):
    gate_file: Path | None = None

    def encode(self, inputs: list[Tokens]) -> list[bytes]:
        print("encoding", flush=True)
        wait_while(self.gate_file)
        return super().encode(inputs)


if __name__ == "__main__":
    argv = sys.argv[1:]
    gate, load_gate = take_option(argv, "--gate"), take_option(argv, "--load-gate")

    def load(settings: ModelSettings) -> Embedder:
        print("loading", flush=True)
        wait_while(load_gate)
        embedder = GatedEmbedder()
        embedder.gate_file = gate
        return embedder

    sys.exit(main(argv, load))
