"""The OpenAI embedding engine: `python -m sage_reconcile.embedding.server --model DIR_OR_HUB_ID --port N`.

Runs in the Python environment that has torch and sentence-transformers; torch is imported when it runs.
"""

import argparse
import logging
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from sage_reconcile.embedding.batching import Batcher
from sage_reconcile.embedding.factory import Embedder, LoadError, ModelSettings, load_embedder
from sage_reconcile.embedding.metrics import Metrics
from sage_reconcile.embedding.service import EmbeddingService

NORMALIZE = {"auto": None, "true": True, "false": False}
DTYPES = ("auto", "float32", "float16", "bfloat16")
BACKLOG = 2048
# A CPU gains little from bigger batches, and whoever comes next waits for the running one.
CPU_BATCH_TOKENS = 2048
GPU_BATCH_TOKENS = 16384

_log = logging.getLogger("sage_reconcile.embedding")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _fraction(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0 and at most 1")
    return number


def parse(argv: list[str]) -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="sage-embedding-server", description="Serves OpenAI /v1/embeddings from one model."
    )
    p.add_argument("--model", required=True, help="directory of a model, or its name on the hub")
    p.add_argument(
        "--served-model-name", nargs="+", help="names that requests use (default: --model as given)"
    )
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default=8090)
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="auto: float32 on a CPU, else the model's own"
    )
    p.add_argument(
        "--gpu-memory-fraction", type=_fraction, help="of the GPU's memory, what torch may allocate at most"
    )
    p.add_argument("--max-length", type=_positive, help="tokens of an input (default: what the model says)")
    p.add_argument(
        "--truncate", action="store_true", help="cut inputs that are too long instead of refusing them"
    )
    p.add_argument(
        "--max-batch-tokens",
        type=_positive,
        help=f"tokens of a batch (default: {CPU_BATCH_TOKENS} on a CPU, else {GPU_BATCH_TOKENS})",
    )
    p.add_argument("--max-wait-ms", type=float, default=2.0, help="wait for company in a batch")
    p.add_argument("--max-queue-tokens", type=_positive, default=262_144, help="beyond it requests get 429")
    p.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    p.add_argument("--prompt-name", help="put this prompt of the model before every text")
    p.add_argument("--normalize", choices=tuple(NORMALIZE), default="auto", help="vectors of length 1")
    return p.parse_args(argv)


def settings_of(args: argparse.Namespace) -> ModelSettings:
    return ModelSettings(
        model=args.model,
        device=args.device,
        dtype=args.dtype,
        max_length=args.max_length,
        trust_remote_code=args.trust_remote_code,
        prompt_name=args.prompt_name,
        normalize=NORMALIZE[args.normalize],
        gpu_memory_fraction=args.gpu_memory_fraction,
    )


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen: a busy port is told before minutes of loading, and clients are
    refused until the model is there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise LoadError(
            f"cannot listen on {host}:{port}: {error.strerror}; stop what holds it, or pass another --port"
        ) from error
    return sock


def serve(args: argparse.Namespace, embedder: Embedder, sock: socket.socket) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what is in flight."""
    import uvicorn

    from sage_reconcile.embedding.app import create_app

    metrics = Metrics()
    device_batch_tokens = CPU_BATCH_TOKENS if embedder.device == "cpu" else GPU_BATCH_TOKENS
    batch_tokens = args.max_batch_tokens or device_batch_tokens
    batcher: Batcher[bytes] = Batcher(
        embedder.encode,
        batch_tokens,
        args.max_wait_ms / 1000,
        args.max_queue_tokens,
        metrics.batch_done,
    )
    names = tuple(args.served_model_name or (args.model,))
    app = create_app(EmbeddingService(embedder, batcher, metrics, names, args.truncate))
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", backlog=BACKLOG)
    _log.info(
        "serving %s on http://%s:%d (dim %d, max length %d tokens, %s)",
        ", ".join(names),
        *sock.getsockname()[:2],
        embedder.dim,
        embedder.max_length,
        embedder.device,
    )
    uvicorn.Server(config).run(sockets=[sock])


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    """Exit code 0: while loading at once, and after serving, when uvicorn raises the signal again."""
    raise SystemExit(0)


def main(argv: list[str], load: Callable[[ModelSettings], Embedder] = load_embedder) -> int:
    """Serves until a signal (exit code 0); 1 with one line on stderr where it cannot."""
    args = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    _log.setLevel(logging.INFO)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _leave)
    try:
        with bind(args.host, args.port) as sock:
            serve(args, load(settings_of(args)), sock)
    except LoadError as error:
        sys.stderr.write(f"sage embedding: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
