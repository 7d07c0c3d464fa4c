"""The batcher with fake models: fairness, limits, failures, cancellation."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_reconcile.embedding.batching import (
    BROKEN_AFTER,
    PADDING_IS_CHEAP,
    Batcher,
    BatchReport,
    EncodingError,
    QueueFullError,
    Tokens,
    _Item,
    _Job,
    cut_batches,
)
from tests.embedding.fakes import DEADLINE, POISON, FakeEmbedder, until


class WorkerEnd(BaseException):
    """Not an Exception: it ends the worker."""


@contextmanager
def running(batcher: Batcher[bytes], model: FakeEmbedder) -> Iterator[Batcher[bytes]]:
    batcher.start()
    try:
        yield batcher
    finally:
        model.gate.set()
        batcher.close()


def run(
    model: FakeEmbedder, max_batch_tokens: int = 8192, max_queue_tokens: int = 100_000
) -> AbstractContextManager[Batcher[bytes]]:
    return running(Batcher(model.encode, max_batch_tokens, 0.0, max_queue_tokens), model)


def items(lengths: list[int]) -> list[_Item[bytes]]:
    job: _Job[bytes] = _Job([[1] * length for length in lengths])
    return [_Item(job, position) for position in range(len(lengths))]


class TestCutBatches:
    @given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 2000))
    def test_every_input_is_in_one_batch_that_fits_and_is_mostly_not_padding(
        self, lengths: list[int], limit: int
    ) -> None:
        batches = cut_batches(items(lengths), limit)
        assert sorted(item.position for batch in batches for item in batch) == list(range(len(lengths)))
        for batch in batches:
            sizes = [len(item.tokens) for item in batch]
            assert len(batch) == 1 or len(batch) * max(sizes) <= limit
            assert max(sizes) <= PADDING_IS_CHEAP or 2 * min(sizes) >= max(sizes)

    def test_short_inputs_share_a_batch_and_a_long_one_stands_alone(self) -> None:
        batches = cut_batches(items([3, 200, 5, 1]), 1000)
        assert [[len(item.tokens) for item in batch] for batch in batches] == [[200], [5, 3, 1]]


@settings(deadline=None, max_examples=20)
@given(
    st.lists(
        st.lists(st.lists(st.integers(2, 99), min_size=1, max_size=9), min_size=1, max_size=9), max_size=9
    )
)
def test_every_request_gets_its_own_vectors_in_order(requests: list[list[Tokens]]) -> None:
    model = FakeEmbedder()
    with run(model, max_batch_tokens=16) as batcher:
        futures = [batcher.submit(inputs) for inputs in requests]
        answers = [future.result(DEADLINE) for future in futures]
    assert answers == [[model.vector(tokens) for tokens in inputs] for inputs in requests]


def test_requests_that_wait_together_are_encoded_together() -> None:
    model = FakeEmbedder()
    model.gate.clear()
    with run(model, max_batch_tokens=100) as batcher:
        first = batcher.submit([[9]])
        assert model.entered.wait(DEADLINE)
        later = [batcher.submit([[number]]) for number in range(5)]
        model.gate.set()
        for future in (first, *later):
            future.result(DEADLINE)
    assert len(model.batches) == 2
    assert sorted(model.batches[1]) == [[number] for number in range(5)]


def test_a_small_request_does_not_wait_behind_the_whole_of_a_big_one() -> None:
    model = FakeEmbedder()
    model.gate.clear()
    with run(model, max_batch_tokens=10) as batcher:
        big = batcher.submit([[7, 7]] * 500)
        assert model.entered.wait(DEADLINE)
        small = batcher.submit([[5]])
        small.add_done_callback(lambda future: done_before.append(not big.done()))
        done_before: list[bool] = []
        model.gate.set()
        small.result(DEADLINE)
        big.result(DEADLINE)
    assert done_before == [True]


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    model = FakeEmbedder()
    model.gate.clear()
    with run(model, max_batch_tokens=10, max_queue_tokens=5) as batcher:
        running_now = batcher.submit([[1]])
        assert model.entered.wait(DEADLINE)
        waiting = batcher.submit([[1] * 100])  # an empty queue takes any size
        with pytest.raises(QueueFullError, match=r"1 inputs \(100 tokens\) are waiting") as caught:
            batcher.submit([[1]])
        assert caught.value.delay >= 1
        model.gate.set()
        running_now.result(DEADLINE)
        waiting.result(DEADLINE)
        assert batcher.submit([[1]]).result(DEADLINE)
        assert batcher.queued_inputs == 0


def test_cancelled_requests_are_not_encoded_and_give_their_place_back() -> None:
    model = FakeEmbedder()
    model.gate.clear()
    with run(model, max_batch_tokens=10, max_queue_tokens=300) as batcher:
        first = batcher.submit([[1]])
        assert model.entered.wait(DEADLINE)
        given_up = batcher.submit([[44, 44]] * 100)
        assert given_up.cancel()
        assert batcher.queued_inputs == 0
        kept = batcher.submit([[55] * 200])
        model.gate.set()
        first.result(DEADLINE)
        kept.result(DEADLINE)
    assert not any([44, 44] in batch for batch in model.batches)


def test_the_worker_lives_on_when_all_that_waits_is_cancelled() -> None:
    model = FakeEmbedder()
    model.gate.clear()
    with run(model, max_batch_tokens=1) as batcher:
        first = batcher.submit([[1]])
        assert model.entered.wait(DEADLINE)
        assert batcher.submit([[2]]).cancel()
        model.gate.set()
        first.result(DEADLINE)
        until("an idle batcher", lambda: not batcher._jobs)
        assert batcher.submit([[3]]).result(DEADLINE)


def test_only_the_input_at_fault_fails_and_the_worker_lives_on() -> None:
    model = FakeEmbedder()
    model.gate.clear()
    with run(model, max_batch_tokens=1000) as batcher:
        first = batcher.submit([[1]])
        assert model.entered.wait(DEADLINE)
        good = [batcher.submit([[number], [number, 2]]) for number in range(3, 10)]
        bad = batcher.submit([[4], [POISON]])
        model.gate.set()
        with pytest.raises(EncodingError, match=r"input\[1\]: poison"):
            bad.result(DEADLINE)
        for number, future in zip(range(3, 10), good, strict=True):
            assert future.result(DEADLINE) == [model.vector([number]), model.vector([number, 2])]
        assert first.result(DEADLINE)
        assert batcher.trouble == ""


def test_a_model_that_only_fails_is_trouble_until_it_answers_again() -> None:
    model = FakeEmbedder()
    with run(model) as batcher:
        for _ in range(BROKEN_AFTER):
            assert batcher.submit([[POISON]]).exception(DEADLINE)
        assert batcher.trouble == f"the model failed {BROKEN_AFTER} times in a row"
        assert batcher.submit([[1]]).result(DEADLINE)
        assert batcher.trouble == ""


def test_a_model_that_loses_vectors_is_an_error_not_a_wait() -> None:
    batcher: Batcher[bytes] = Batcher(lambda inputs: [], max_wait=0.0)
    batcher.start()
    assert isinstance(batcher.submit([[1]]).exception(DEADLINE), EncodingError)
    batcher.close()


def test_a_dead_worker_is_trouble_and_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    silenced = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda args: silenced.set())
    gate = threading.Event()

    def dies(inputs: list[Tokens]) -> list[bytes]:
        assert gate.wait(DEADLINE)
        raise WorkerEnd

    batcher: Batcher[bytes] = Batcher(dies, max_wait=0.0, max_batch_tokens=1)
    batcher.start()
    futures = [batcher.submit([[1]]) for _ in range(3)]
    gate.set()
    assert all(isinstance(future.exception(DEADLINE), EncodingError) for future in futures)
    assert until("the worker's end", lambda: batcher.trouble) == "the worker thread has ended"
    with pytest.raises(EncodingError, match="not running"):
        batcher.submit([[1]])
    batcher.close()


def test_close_finishes_what_is_queued_and_takes_nothing_new() -> None:
    model = FakeEmbedder()
    model.gate.clear()
    batcher: Batcher[bytes] = Batcher(model.encode, max_batch_tokens=4, max_wait=0.0)
    batcher.start()
    futures = [batcher.submit([[number, number]] * 3) for number in range(4)]
    closer = threading.Thread(target=batcher.close)
    closer.start()
    until("no new requests", lambda: is_refused(batcher))
    model.gate.set()
    closer.join(DEADLINE)
    assert all(len(future.result(0)) == 3 for future in futures)


def is_refused(batcher: Batcher[bytes]) -> bool:
    try:
        batcher.submit([[1]]).cancel()
    except EncodingError:
        return True
    return False


def test_passes_are_reported_with_their_padding() -> None:
    reports: list[BatchReport] = []
    report: Callable[[BatchReport], None] = reports.append
    model = FakeEmbedder()
    with running(Batcher(model.encode, max_wait=0.0, observe=report), model) as batcher:
        batcher.submit([[1, 2, 3], [4]]).result(DEADLINE)
    assert [(r.inputs, r.tokens, r.padded_tokens) for r in reports] == [(2, 4, 6)]
