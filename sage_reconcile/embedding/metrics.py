"""Counters of the embedding server and their Prometheus text."""

import threading
from collections import Counter

from sage_reconcile.embedding.batching import BatchReport

BATCH_SIZE_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Thread-safe: the worker reports batches, the server reports requests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[int] = Counter()
        self._running = 0
        self._inputs = 0
        self._tokens = 0
        self._padded_tokens = 0
        self._batches = 0
        self._batch_sizes = [0] * len(BATCH_SIZE_BOUNDS)
        self._seconds = 0.0

    def request_started(self) -> None:
        with self._lock:
            self._running += 1

    def request_ended(self, status: int) -> None:
        with self._lock:
            self._running -= 1
            self._requests[status] += 1

    def batch_done(self, report: BatchReport) -> None:
        with self._lock:
            self._batches += 1
            self._inputs += report.inputs
            self._tokens += report.tokens
            self._padded_tokens += report.padded_tokens
            self._seconds += report.seconds
            for index, bound in enumerate(BATCH_SIZE_BOUNDS):
                self._batch_sizes[index] += report.inputs <= bound

    def render(self, queued_inputs: int) -> str:
        """The Prometheus text exposition format."""
        with self._lock:
            lines = _family("requests_total", "counter", "Embedding requests by HTTP status.")
            lines += [
                f'sage_embedding_requests_total{{status="{status}"}} {count}'
                for status, count in sorted(self._requests.items())
            ]
            lines += _one("requests_running", "gauge", "Requests not yet answered.", self._running)
            lines += _one("queue_inputs", "gauge", "Inputs that wait for the model.", queued_inputs)
            lines += _one("inputs_total", "counter", "Inputs embedded.", self._inputs)
            lines += _one("tokens_total", "counter", "Tokens embedded.", self._tokens)
            lines += _one("padded_tokens_total", "counter", "Tokens with padding.", self._padded_tokens)
            lines += _one(
                "encode_seconds_total", "counter", "Seconds inside the model.", round(self._seconds, 6)
            )
            lines += _family("batch_size", "histogram", "Inputs of a batch.")
            lines += [
                f'sage_embedding_batch_size_bucket{{le="{bound}"}} {count}'
                for bound, count in zip(BATCH_SIZE_BOUNDS, self._batch_sizes, strict=True)
            ]
            lines.append(f'sage_embedding_batch_size_bucket{{le="+Inf"}} {self._batches}')
            lines.append(f"sage_embedding_batch_size_sum {self._inputs}")
            lines.append(f"sage_embedding_batch_size_count {self._batches}")
        return "\n".join(lines) + "\n"


def _family(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP sage_embedding_{name} {text}", f"# TYPE sage_embedding_{name} {kind}"]


def _one(name: str, kind: str, text: str, value: float) -> list[str]:
    return [*_family(name, kind, text), f"sage_embedding_{name} {value}"]
