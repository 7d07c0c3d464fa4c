"""Dynamic batching: many requests, one model, one worker thread.

The batcher knows nothing of models: `encode` turns token lists into one vector each, whatever a vector is.
Requests take turns input by input, so a small request never waits behind the whole of a big one; within such
a window inputs are sorted by length, so that little of a batch is padding.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from sage_reconcile.errors import PermanentError, TransientError

Tokens = list[int]
V = TypeVar("V")

# A window of this many batches is sorted by length at once.
WINDOW_BATCHES = 4
# Up to this length (tokens) padding costs less than another pass through the model.
PADDING_IS_CHEAP = 32
# So many inputs in a row failed, each on its own: it is the model that is broken, not the inputs.
BROKEN_AFTER = 8

_log = logging.getLogger(__name__)


class QueueFullError(TransientError):
    """Too much is waiting already; `delay` seconds until the queue should have room."""


class EncodingError(PermanentError):
    """The model failed on an input of this request."""


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One pass through the model: its inputs, their tokens without and with padding, seconds."""

    inputs: int
    tokens: int
    padded_tokens: int
    seconds: float


class _Job(Generic[V]):
    """One request: its inputs, of which `waiting` (positions, longest last) are not yet taken."""

    def __init__(self, inputs: Sequence[Tokens]) -> None:
        self.inputs = inputs
        self.waiting = sorted(range(len(inputs)), key=lambda position: len(inputs[position]))
        self.vectors: dict[int, V] = {}
        self.future: Future[list[V]] = Future()
        self.arrived = time.monotonic()

    @property
    def waiting_tokens(self) -> int:
        return sum(len(self.inputs[position]) for position in self.waiting)

    def put(self, position: int, vector: V) -> None:
        self.vectors[position] = vector
        if len(self.vectors) == len(self.inputs) and self.future.set_running_or_notify_cancel():
            self.future.set_result([self.vectors[index] for index in range(len(self.inputs))])

    def fail(self, error: Exception) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class _Item(Generic[V]):
    job: _Job[V]
    position: int

    @property
    def tokens(self) -> Tokens:
        return self.job.inputs[self.position]


def cut_batches(items: Sequence[_Item[V]], max_batch_tokens: int) -> list[list[_Item[V]]]:
    """Batches, longest inputs first, of at most `max_batch_tokens` with padding (or one input that is longer
    by itself), in which no input is less than half as long as the longest unless all are short."""
    batches: list[list[_Item[V]]] = []
    for item in sorted(items, key=lambda item: -len(item.tokens)):
        if batches:
            longest = len(batches[-1][0].tokens)
            fits = (len(batches[-1]) + 1) * longest <= max_batch_tokens
            is_alike = longest <= PADDING_IS_CHEAP or 2 * len(item.tokens) >= longest
            if fits and is_alike:
                batches[-1].append(item)
                continue
        batches.append([item])
    return batches


class Batcher(Generic[V]):
    """Runs `encode` over whatever is waiting. Thread-safe; `max_wait` in seconds, queue bound in tokens."""

    def __init__(
        self,
        encode: Callable[[list[Tokens]], Sequence[V]],
        max_batch_tokens: int = 8192,
        max_wait: float = 0.002,
        max_queue_tokens: int = 262_144,
        observe: Callable[[BatchReport], None] = lambda report: None,
    ) -> None:
        self._encode_inputs = encode
        self._max_batch_tokens = max_batch_tokens
        self._max_wait = max_wait
        self._max_queue_tokens = max_queue_tokens
        self._observe = observe
        self._wake = threading.Condition()
        self._jobs: deque[_Job[V]] = deque()
        self._window: list[_Item[V]] = []
        self._queued_tokens = 0
        self._queued_inputs = 0
        self._tokens_per_second = 0.0
        self._failures = 0
        self._closing = False
        self._worker = threading.Thread(target=self._run, name="embedding-worker", daemon=True)

    def start(self) -> None:
        self._worker.start()

    def close(self) -> None:
        """Takes nothing new, finishes what is queued, ends the worker."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._worker.is_alive():
            self._worker.join()

    @property
    def queued_inputs(self) -> int:
        return self._queued_inputs

    @property
    def trouble(self) -> str:
        """Why no request can be answered any more, or ""."""
        if not self._worker.is_alive():
            return "the worker thread has ended"
        if self._failures >= BROKEN_AFTER:
            return f"the model failed {self._failures} times in a row"
        return ""

    def check_room(self, tokens: int = 0) -> None:
        """Raises QueueFullError where `tokens` more do not fit. An empty queue takes any request."""
        waiting = self._queued_tokens
        if waiting and waiting + tokens > self._max_queue_tokens:
            seconds = waiting / self._tokens_per_second if self._tokens_per_second else 1.0
            delay = min(max(seconds, 1.0), 60.0)
            raise QueueFullError(
                f"{self._queued_inputs} inputs ({waiting} tokens) are waiting already", delay
            )

    def submit(self, inputs: Sequence[Tokens]) -> "Future[list[V]]":
        """A future of one vector per input, in order; cancelling it takes its inputs off the queue.

        Raises QueueFullError. The future raises EncodingError.
        """
        job: _Job[V] = _Job(inputs)
        with self._wake:
            if self._closing or not self._worker.is_alive():
                raise EncodingError("the embedding worker is not running")
            self.check_room(job.waiting_tokens)
            self._queued_tokens += job.waiting_tokens
            self._queued_inputs += len(inputs)
            self._jobs.append(job)
            self._wake.notify()
        job.future.add_done_callback(lambda future: self._forget(job))
        return job.future

    def _forget(self, job: _Job[V]) -> None:
        """Takes what is left of a cancelled or failed request off the queue."""
        with self._wake:
            self._queued_tokens -= job.waiting_tokens
            self._queued_inputs -= len(job.waiting)
            job.waiting.clear()

    def _run(self) -> None:
        try:
            while window := self._next_window():
                for batch in cut_batches(window, self._max_batch_tokens):
                    self._encode(batch)
        finally:
            # Only a defect of this module gets here with anything left; nobody may wait for ever for it.
            with self._wake:
                self._closing = True
                left = [*self._jobs, *(item.job for item in self._window)]
            for job in left:
                job.fail(EncodingError("the embedding worker has ended"))

    def _next_window(self) -> list[_Item[V]]:
        """Waits for inputs; empty only when closing and nothing is left."""
        with self._wake:
            while True:
                while not self._jobs and not self._closing:
                    self._wake.wait()
                if not self._jobs:
                    return []
                self._wait_for_company()
                # Requests that were cancelled meanwhile leave an empty window.
                if window := self._take():
                    self._window = window
                    return window

    def _wait_for_company(self) -> None:
        while self._jobs and not self._closing and self._queued_tokens < self._max_batch_tokens:
            remaining = self._jobs[0].arrived + self._max_wait - time.monotonic()
            if remaining <= 0:
                break
            self._wake.wait(remaining)

    def _take(self) -> list[_Item[V]]:
        window: list[_Item[V]] = []
        tokens = 0
        while self._jobs and tokens < WINDOW_BATCHES * self._max_batch_tokens:
            job = self._jobs.popleft()
            if not job.waiting:
                continue
            item = _Item(job, job.waiting.pop())
            window.append(item)
            tokens += len(item.tokens)
            self._queued_tokens -= len(item.tokens)
            self._queued_inputs -= 1
            if job.waiting:
                self._jobs.append(job)
        return window

    def _encode(self, items: list[_Item[V]]) -> None:
        """Encodes a batch; where it fails, its halves, so that only the input at fault fails."""
        batch = [item for item in items if not item.job.future.done()]
        if not batch:
            return
        started = time.monotonic()
        try:
            vectors = self._encode_inputs([item.tokens for item in batch])
            pairs = list(zip(batch, vectors, strict=True))
        except Exception as error:  # noqa: BLE001 - a model may raise anything, and its worker must live on
            if len(batch) == 1:
                self._failures += 1
                _log.error("the model failed on an input of %d tokens: %s", len(batch[0].tokens), error)
                reason = str(error).strip().splitlines() or [type(error).__name__]
                batch[0].job.fail(
                    EncodingError(f"the model failed on input[{batch[0].position}]: {reason[0]}")
                )
                return
            self._encode(batch[: len(batch) // 2])
            self._encode(batch[len(batch) // 2 :])
            return
        self._failures = 0
        self._report(batch, time.monotonic() - started)
        for item, vector in pairs:
            item.job.put(item.position, vector)

    def _report(self, batch: list[_Item[V]], seconds: float) -> None:
        tokens = sum(len(item.tokens) for item in batch)
        rate = tokens / max(seconds, 1e-6)
        self._tokens_per_second = (
            0.8 * self._tokens_per_second + 0.2 * rate if self._tokens_per_second else rate
        )
        padded = len(batch) * max(len(item.tokens) for item in batch)
        self._observe(BatchReport(len(batch), tokens, padded, seconds))
