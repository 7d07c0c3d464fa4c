"""The line: who is next, who is turned away, and that nobody is lost or starves."""

import random
from collections.abc import Sequence
from itertools import pairwise
from math import inf
from statistics import mean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.line import AGEING_S, EMBEDDING_BATCH, PATIENCE_S, POLICIES, PRIORITIES, TOKEN_S, Ask, Line

HIGH, NORMAL, LOW = PRIORITIES[b"HIGH"], PRIORITIES[b"NORMAL"], PRIORITIES[b"LOW"]
EVERY_POLICY = pytest.mark.parametrize("policy", sorted(POLICIES))


def ask(owner: str, arrived: float = 0.0, **fields: Any) -> Ask:
    return Ask(arrived, owner=owner, **fields)


def line_of(policy: str, *asks: Ask, size: int = 1000) -> Line:
    line = Line(policy, size)
    for one in asks:
        assert line.push(one) is None
    return line


def order(line: Line) -> str:
    """The owners of all who wait, in the order in which they are served."""
    served = []
    while (one := line.pop()) is not None:
        served.append(str(one.owner))
    return " ".join(served)


def test_nobody_waits() -> None:
    line = Line("fifo", 3)
    assert (len(line), line.pop(), line.overdue(1e9, 0.0)) == (0, None, [])


ORDERS = [
    ("fifo", [ask("a"), ask("b"), ask("c")], "a b c"),
    # One that comes back after its engine was lost stands where it stood.
    ("fifo", [ask("a", 1.0), ask("b", 2.0), ask("again", 0.0)], "again a b"),
    (
        "priority",
        [ask("low", priority=LOW), ask("normal", priority=NORMAL), ask("high", priority=HIGH)],
        "high normal low",
    ),
    ("priority", [ask("a"), ask("b"), ask("h", priority=HIGH), ask("i", priority=HIGH)], "h i a b"),
    ("priority", [ask("old"), ask("high", AGEING_S + 0.1, priority=HIGH)], "old high"),
    ("priority", [ask("old"), ask("high", AGEING_S - 0.1, priority=HIGH)], "high old"),
    ("slo_aware", [ask("none"), ask("late", deadline=9.0), ask("soon", deadline=5.0)], "soon late none"),
    (
        "slo_aware",
        [ask("none"), ask("far", 1.0, deadline=1e9), ask("past", 2.0, deadline=1.0)],
        "past none far",
    ),
    ("slo_aware", [ask("none"), ask("soon", PATIENCE_S, deadline=PATIENCE_S + 0.1)], "none soon"),
    ("cost_optimized", [ask("long", cost=900), ask("short", cost=10), ask("none")], "none short long"),
    ("cost_optimized", [ask("long", cost=900), ask("short", 900 * TOKEN_S, cost=1)], "long short"),
    ("cost_optimized", [ask("huge", cost=1e9), ask("short", PATIENCE_S + 0.1)], "huge short"),
    ("hybrid", [ask("a"), ask("b"), ask("h", priority=HIGH)], "h a b"),
    ("hybrid", [ask("a"), ask("x", is_embedding=True), ask("b"), ask("y", is_embedding=True)], "x y a b"),
]


@pytest.mark.parametrize(("policy", "asks", "expected"), ORDERS)
def test_the_order_of_each_policy(policy: str, asks: list[Ask], expected: str) -> None:
    assert order(line_of(policy, *asks)) == expected


def test_embeddings_go_in_batches_between_chats() -> None:
    chats = [ask("c") for _ in range(3)]
    embeddings = [ask("e", is_embedding=True) for _ in range(2 * EMBEDDING_BATCH + 1)]
    batch = "e " * EMBEDDING_BATCH
    assert order(line_of("hybrid", *chats, *embeddings)) == f"{batch}c {batch}c e c"
    assert order(line_of("fifo", *embeddings[:2], *chats[:1], *embeddings[2:3])) == "e e c e"


def test_a_switch_keeps_all_and_sorts_anew() -> None:
    line = line_of("fifo", ask("a", priority=LOW), ask("x", is_embedding=True), ask("b", priority=HIGH))
    line.policy = "priority"
    assert (line.policy, line.effective, len(line)) == ("priority", "priority", 3)
    assert line.pop().owner == "b"  # type: ignore[union-attr]
    line.policy = "hybrid"
    line.policy = "fifo"
    assert order(line) == "a x"


class TestAdaptive:
    def test_an_urgent_ask_turns_it_to_deadlines(self) -> None:
        line = line_of("adaptive", ask("a"), ask("b"))
        assert line.effective == "fifo"
        line.push(ask("urgent", deadline=2.0))
        assert (line.policy, line.effective) == ("adaptive", "slo_aware")
        assert line.pop().owner == "urgent"  # type: ignore[union-attr]
        assert order(line) == "a b"
        assert line.effective == "fifo"

    def test_a_long_line_turns_it_to_cost(self) -> None:
        line = line_of("adaptive", *[ask("long", cost=100.0) for _ in range(5)], size=20)
        assert line.effective == "fifo"
        line.push(ask("short", cost=1.0))
        assert line.effective == "cost_optimized"
        assert line.pop().owner == "short"  # type: ignore[union-attr]
        for effective in ["cost_optimized", "cost_optimized", "fifo"]:
            line.pop()
            assert line.effective == effective

    def test_it_sees_those_who_wait_already(self) -> None:
        line = line_of("fifo", ask("a"), ask("urgent", deadline=2.0))
        line.policy = "adaptive"
        assert order(line) == "urgent a"

    def test_it_does_not_sort_at_every_step(self) -> None:
        line = line_of("adaptive", *[ask("a") for _ in range(100)])
        turns = []
        for _ in range(50):
            line.push(ask("urgent", deadline=1.0))
            turns.append(line.effective)
            line.pop()
            turns.append(line.effective)
        assert sum(one != other for one, other in pairwise(turns)) <= 2


FULL = [
    ("fifo", ask("new"), "new"),
    ("priority", ask("new", priority=HIGH), "b"),
    ("priority", ask("new", priority=LOW), "new"),
    ("slo_aware", ask("new", deadline=5.0), "b"),
    ("cost_optimized", ask("new", cost=1.0), "b"),
    ("cost_optimized", ask("new", cost=100.0), "new"),
    ("hybrid", ask("new", is_embedding=True), "b"),
]


@pytest.mark.parametrize(("policy", "new", "refused"), FULL)
def test_a_full_line_turns_the_last_away(policy: str, new: Ask, refused: str) -> None:
    line = line_of(policy, ask("a", cost=9.0), ask("b", cost=9.0), size=2)
    turned_away = line.push(new)
    assert turned_away is not None
    assert (turned_away.owner, turned_away.place, len(line)) == (refused, None, 2)
    assert refused not in order(line)


def test_embeddings_do_not_keep_out_chat() -> None:
    line = line_of("hybrid", *[ask(f"e{n}", is_embedding=True) for n in range(4)], size=4)
    assert line.push(ask("chat", 1.0, priority=LOW)).owner == "e3"  # type: ignore[union-attr]


@EVERY_POLICY
def test_no_line_at_all(policy: str) -> None:
    line, new = Line(policy, 0), ask("a")
    assert line.push(new) is new
    assert line.pop() is None


@EVERY_POLICY
def test_who_is_overdue(policy: str) -> None:
    asks = [
        ask("slow", 0.0),
        ask("quick", 4.0),
        ask("dead", 4.0, deadline=5.0, is_embedding=True),
        ask("alive", 4.0, deadline=5.5),
    ]
    line = line_of(policy, *asks)
    assert line.overdue(4.9, 5.0) == []
    assert {one.owner for one in line.overdue(5.0, 5.0)} == {"slow", "dead"}
    assert line.overdue(5.0, 5.0) == []
    assert [one.owner for one in line.overdue(5.5, 5.0)] == ["alive"]
    assert [one.owner for one in line.overdue(9.0, 5.0)] == ["quick"]
    assert len(line) == 0


@EVERY_POLICY
@pytest.mark.parametrize("late", [ask("a", 1.0), ask("a", 3.0, deadline=6.0)])
def test_one_overdue_ask_is_found_among_others(policy: str, late: Ask) -> None:
    line = line_of(policy, ask("b", 2.0), late, ask("c", 2.0))
    assert line.overdue(6.0, 5.0) == [late]
    assert order(line) == "b c"


@EVERY_POLICY
def test_who_left_is_not_served(policy: str) -> None:
    asks = [ask("a"), ask("b", is_embedding=True), ask("c")]
    line = line_of(policy, *asks)
    line.remove(asks[0])
    line.remove(asks[0])
    line.remove(asks[1])
    assert order(line) == "c"
    line.remove(asks[2])
    assert len(line) == 0


@EVERY_POLICY
@pytest.mark.parametrize("is_embedding", [False, True])
def test_the_least_welcome_is_served_under_any_stream(policy: str, is_embedding: bool) -> None:
    """There is always a newcomer whom the policy likes better, and as many are served as come."""
    victim = Ask(0.0, priority=LOW, cost=1e9, is_embedding=is_embedding)
    line = line_of(policy, victim)
    now, served = 0.0, None
    while served is not victim:
        now += 0.1
        assert now <= PATIENCE_S + 1
        for kind in (is_embedding, not is_embedding):
            line.push(Ask(now, priority=HIGH, deadline=now - 2 * PATIENCE_S, is_embedding=kind))
            served = line.pop()
            if served is victim:
                break


def rush(policy: str, deadlines: Sequence[float] = (inf,)) -> list[tuple[Ask, float]]:
    """Ten seconds of twice the work that an engine can do: who was served in the end, and after what wait.

    The engine takes one after another, as long as its cost; who is not served by its deadline leaves.
    """
    dice, line = random.Random(7), Line(policy, 200)
    coming = [
        Ask(
            at / 15,
            priority=dice.choice([HIGH, NORMAL, LOW]),
            deadline=at / 15 + dice.choice(deadlines),
            cost=dice.choice([50.0, 100.0, 900.0]),
        )
        for at in range(150)
    ]
    served, now = [], 0.0
    while coming or len(line):
        while coming and coming[0].arrived <= now:
            line.push(coming.pop(0))
        line.overdue(now, 60.0)
        if (one := line.pop()) is not None:
            served.append((one, now - one.arrived))
        now += one.cost / 2700 if one else 0.01
    return served


def mean_wait(served: list[tuple[Ask, float]], *classes: int) -> float:
    return mean(wait for one, wait in served if one.priority in classes)


def test_each_policy_is_better_than_fifo_at_what_it_is_for() -> None:
    everyone, plain = (HIGH, NORMAL, LOW), rush("fifo")
    assert mean_wait(rush("priority"), HIGH) < mean_wait(plain, HIGH) / 4
    assert mean_wait(rush("cost_optimized"), *everyone) < mean_wait(plain, *everyone) / 2
    deadlines = (3.0, 12.0, 29.0)
    assert len(rush("slo_aware", deadlines)) == 150 > len(rush("fifo", deadlines))
    assert len(rush("adaptive", deadlines)) == 150


ASKS = st.builds(
    Ask,
    st.just(0.0),
    priority=st.integers(0, 2),
    deadline=st.one_of(st.just(inf), st.floats(0, 100)),
    cost=st.floats(0, 1e6),
    is_embedding=st.booleans(),
)
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("push"), ASKS),
        st.tuples(st.just("pop"), st.none()),
        st.tuples(st.just("remove"), st.integers(0, 99)),
        st.tuples(st.just("overdue"), st.floats(1, 60)),
        st.tuples(st.just("policy"), st.sampled_from(sorted(POLICIES))),
        st.tuples(st.just("time"), st.floats(0, 20)),
    ),
    max_size=60,
)


@given(st.sampled_from(sorted(POLICIES)), st.integers(0, 12), MOVES)
def test_nobody_is_lost_or_served_twice_and_nobody_starves(policy: str, size: int, moves: list[Any]) -> None:
    line, now = Line(policy, size), 0.0
    waiting: list[Ask] = []
    for move, what in [*moves, *[("pop", None)] * size]:
        if move == "time":
            now += what
        elif move == "policy":
            line.policy = what
        elif move == "push":
            what.arrived, what.deadline = now, now + what.deadline
            waiting.append(what)
            if (refused := line.push(what)) is not None:
                waiting.remove(refused)
        elif move == "remove" and waiting:
            line.remove(waiting.pop(what % len(waiting)))
        elif move == "overdue":
            late = [one for one in waiting if one.deadline <= now or one.arrived + what <= now]
            assert set(line.overdue(now, what)) == set(late)
            waiting = [one for one in waiting if one not in late]
        elif move == "pop":
            served = line.pop()
            assert (served is None) == (not waiting)
            if served is not None:
                waiting.remove(served)
                rivals = [one for one in waiting if is_rival(line, one, served)]
                assert all(served.arrived <= one.arrived + PATIENCE_S for one in rivals)
        assert len(line) == len(waiting) <= size
        assert set(line) == set(waiting)
    assert not waiting


def is_rival(line: Line, one: Ask, other: Ask) -> bool:
    return line.policy != "hybrid" or one.is_embedding == other.is_embedding
