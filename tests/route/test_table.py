from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_reconcile.model.desired import (
    DesiredEngine,
    DesiredState,
    EngineState,
    Kind,
    LaunchSpec,
    ReplicaId,
    RouteSpec,
)
from sage_reconcile.model.observed import (
    ExternalHealth,
    Gap,
    Health,
    Mark,
    ObservedLaunch,
    ObservedState,
    Placement,
)
from sage_reconcile.model.routing import Backend, Route, RoutingTable, external_id
from sage_reconcile.route.table import route_notes, routing_table


def engine(
    name: str, *names: str, model: str = "m", fingerprint: str = "new", **changes: object
) -> DesiredEngine:
    made = DesiredEngine(
        name,
        LaunchSpec(Kind.LLM, "vllm", model),
        RouteSpec(tuple(sorted(names or (model,)))),
        fingerprint=fingerprint,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def launch(
    name: str = "chat",
    launch_id: str = "l1",
    *,
    fingerprint: str = "new",
    health: Health = Health.READY,
    replica: int = 0,
    model: str = "m",
    started: float = 1.0,
    stack: str = "demo",
) -> ObservedLaunch:
    mark = Mark(
        home="/home",
        replica=ReplicaId(stack, name, replica),
        fingerprint=fingerprint,
        launch=launch_id,
        spec=LaunchSpec(Kind.LLM, "vllm", model),
        placement=Placement("here", 8900 + replica),
        model=f"/models/{model}",
    )
    return ObservedLaunch(mark, health, supervisor_pid=1, supervisor_started=started)


def desired(*engines: DesiredEngine, stack: str = "demo") -> DesiredState:
    return DesiredState(stack, tuple(sorted(engines, key=lambda engine: engine.name)))


def observed(*launches: ObservedLaunch, **changes: object) -> ObservedState:
    return replace(ObservedState(at=0.0, launches=launches), **changes)  # type: ignore[arg-type]


def states(table: RoutingTable) -> dict[str, str]:
    """The launch id, or the name of an external engine, of each backend and its state."""
    return {backend.id.split("@")[-1].split(":")[-1]: backend.state for backend in table.backends}


def pools(table: RoutingTable) -> dict[str, list[str]]:
    return {route.name: [backend.split(":")[-1] for backend in route.backends] for route in table.routes}


def test_a_backend_says_all_that_the_gateway_needs() -> None:
    route = RouteSpec(
        ("alias", "m"),
        weight=3,
        max_concurrent=9,
        policy="round_robin",
        hold=5.0,
        metadata=(("a", "b"),),
        queue_policy="priority",
        queue_size=7,
        queue_timeout=6.0,
        first_byte_timeout=4.0,
        idle_timeout=3.0,
    )
    table = routing_table(desired(engine("chat", route=route)), observed(launch(replica=1)))
    backend_id = "demo/chat#1@new:l1"
    assert table.backends == (
        Backend(
            backend_id,
            "demo",
            "chat",
            1,
            "http://127.0.0.1:8901",
            "/models/m",
            "llm",
            "ready",
            weight=3,
            max_concurrent=9,
            node="here",
        ),
    )
    assert table.routes == tuple(
        Route(
            name,
            "llm",
            (backend_id,),
            "round_robin",
            5.0,
            (("a", "b"),),
            "demo",
            queue_policy="priority",
            queue_size=7,
            queue_timeout=6.0,
            first_byte_timeout=4.0,
            idle_timeout=3.0,
        )
        for name in ("alias", "m")
    )


@pytest.mark.parametrize(
    ("health", "state"),
    [
        (Health.READY, "ready"),
        (Health.STARTING, "pending"),
        (Health.ASLEEP, "pending"),
        (Health.FAILING, "pending"),
        (Health.BACKOFF, "pending"),
        (Health.UNKNOWN, "pending"),
        (Health.EXITED, "draining"),
    ],
)
def test_the_state_follows_health(health: Health, state: str) -> None:
    table = routing_table(desired(engine("chat")), observed(launch(health=health)))
    assert states(table) == {"l1": state}
    assert pools(table) == {"m": ["l1"]}


@pytest.mark.parametrize("before", ["ready", "draining", "pending"])
def test_not_seen_is_not_absent(before: str) -> None:
    """A launch that could not be asked keeps the state that it was published with."""
    want = desired(engine("chat"))
    published = routing_table(want, observed(launch()))
    published = replace(published, backends=(replace(published.backends[0], state=before),))
    table = routing_table(want, observed(launch(health=Health.UNKNOWN), routing=published))
    assert states(table) == {"l1": before}


@pytest.mark.parametrize(
    ("gap", "is_kept"),
    [
        (Gap("here", "processes", "no /proc"), True),
        (Gap("here", "node", "unreachable"), True),
        (Gap("there", "demo/chat#0", "its mark cannot be read"), True),
        (Gap("there", "processes", "no /proc"), False),
        (Gap("here", "gpus", "no driver"), False),
        (Gap("here", "demo/chat#1", "its mark cannot be read"), False),
    ],
)
def test_a_blind_look_withdraws_nothing(gap: Gap, is_kept: bool) -> None:
    want = desired(engine("chat"))
    before = routing_table(want, observed(launch()))
    after = routing_table(want, observed(routing=before, gaps=(gap,)))
    assert after == (before if is_kept else routing_table(want, observed()))


def test_a_blind_look_still_drains_what_is_no_longer_wanted() -> None:
    gap = Gap("here", "processes", "no /proc")
    before = routing_table(desired(engine("chat")), observed(launch()))
    gone = routing_table(desired(), observed(routing=before, gaps=(gap,)))
    assert (pools(gone), states(gone)) == ({}, {"l1": "draining"})
    withdrawn = frozenset({before.backends[0].id})
    held = routing_table(desired(engine("chat")), observed(routing=before, gaps=(gap,)), withdrawn)
    assert (pools(held), states(held)) == ({"m": ["l1"]}, {"l1": "draining"})


def test_replicas_share_a_route() -> None:
    table = routing_table(
        desired(engine("chat", replicas=2)), observed(launch(replica=1, launch_id="l2"), launch(replica=0))
    )
    assert pools(table) == {"m": ["l1", "l2"]}
    assert states(table) == {"l1": "ready", "l2": "ready"}


def test_engines_of_one_model_share_its_name_and_keep_their_labels() -> None:
    table = routing_table(
        desired(engine("b", "m", "backup"), engine("a", "m", "main")),
        observed(launch("a", "l1"), launch("b", "l2")),
    )
    assert pools(table) == {"backup": ["l2"], "m": ["l1", "l2"], "main": ["l1"]}


def test_an_engine_without_a_launch_still_has_its_routes() -> None:
    assert pools(routing_table(desired(engine("chat", "m", "x")), observed())) == {"m": [], "x": []}


def test_a_stopped_engine_has_no_route_and_its_launch_drains() -> None:
    table = routing_table(desired(engine("chat", state=EngineState.STOPPED)), observed(launch()))
    assert (pools(table), states(table)) == ({}, {"l1": "draining"})


def test_an_engine_that_left_the_file_drains() -> None:
    table = routing_table(desired(engine("other", "o", model="o")), observed(launch("chat")))
    assert (pools(table), states(table)) == ({"o": []}, {"l1": "draining"})


def test_a_withdrawn_launch_drains_and_stays_in_its_route() -> None:
    table = routing_table(desired(engine("chat")), observed(launch()), frozenset({"demo/chat#0@new:l1"}))
    assert (pools(table), states(table)) == ({"m": ["l1"]}, {"l1": "draining"})


def test_a_replica_too_many_serves_until_it_is_withdrawn() -> None:
    surplus = launch(replica=1, launch_id="l2")
    table = routing_table(
        desired(engine("chat", replicas=1)), observed(launch(health=Health.BACKOFF), surplus)
    )
    assert states(table) == {"l1": "pending", "l2": "ready"}


@pytest.mark.parametrize(
    ("new_health", "withdrawn", "expected"),
    [
        (Health.STARTING, "", {"new": "pending", "old": "ready"}),
        (Health.READY, "", {"new": "ready", "old": "draining"}),
        (Health.FAILING, "", {"new": "pending", "old": "ready"}),
        (Health.STARTING, "old", {"new": "pending", "old": "draining"}),
        (Health.READY, "new", {"new": "draining", "old": "ready"}),
    ],
)
def test_the_outdated_launch_serves_until_the_new_one_is_ready(
    new_health: Health, withdrawn: str, expected: dict[str, str]
) -> None:
    old = launch(launch_id="old", fingerprint="old", started=9.0)
    new = launch(launch_id="new", health=new_health)
    draining = frozenset({launch.mark.id for launch in (old, new) if launch.mark.launch == withdrawn})
    assert states(routing_table(desired(engine("chat")), observed(old, new), draining)) == expected


def test_of_two_outdated_launches_the_newest_serves() -> None:
    first = launch(launch_id="z", fingerprint="a", started=1.0)
    second = launch(launch_id="y", fingerprint="b", started=2.0)
    assert states(routing_table(desired(engine("chat")), observed(first, second))) == {
        "y": "ready",
        "z": "draining",
    }


def test_another_model_never_answers_by_the_new_models_name() -> None:
    """While A is replaced by B: A serves the label and its own name, requests for B are held."""
    want = desired(engine("chat", "B", "label", model="B"))
    old = launch(launch_id="old", fingerprint="old", model="A")
    new = launch(launch_id="new", model="B", health=Health.STARTING)
    table = routing_table(want, observed(old, new))
    assert pools(table) == {"A": ["old"], "B": ["new"], "label": ["new", "old"]}
    ready = replace(new, health=Health.READY)
    table = routing_table(want, observed(old, ready))
    assert pools(table) == {"B": ["new"], "label": ["new", "old"]}
    assert states(table) == {"new": "ready", "old": "draining"}


def test_a_name_for_unlike_engines_goes_to_the_first_and_is_noted() -> None:
    embedding = replace(engine("b", "x", model="e"), launch=LaunchSpec(Kind.EMBEDDING, "st", "e"))
    want = desired(engine("a", "x"), embedding, engine("c", "x", model="n"))
    table = routing_table(
        want, observed(launch("a", "l1"), launch("b", "l2", model="e"), launch("c", "l3", model="n"))
    )
    assert pools(table) == {"x": ["l1"]}
    assert route_notes(want, observed()) == (
        "model name 'x' goes to engine 'a' only: engine 'b' serves another kind by this name",
        "model name 'x' goes to engine 'a' only: engine 'c' serves another model by this name",
    )


def far(**changes: object) -> DesiredEngine:
    spec = LaunchSpec(Kind.LLM, "external", "m", url="http://far:9000/v1/", api_key="${env:KEY}")
    return engine("far", "m", launch=spec, **changes)


@pytest.mark.parametrize(
    ("health", "before", "state"),
    [
        (Health.READY, None, "ready"),
        (Health.FAILING, "ready", "pending"),
        (Health.UNKNOWN, None, "pending"),
        (Health.UNKNOWN, "ready", "ready"),
        (Health.UNKNOWN, "draining", "pending"),
        (None, "ready", "ready"),
    ],
)
def test_an_external_engine_is_what_its_probe_said(
    health: Health | None, before: str | None, state: str
) -> None:
    want = desired(far())
    routing = None
    if before is not None:
        table = routing_table(want, observed())
        routing = replace(table, backends=(replace(table.backends[0], state=before),))
    external = () if health is None else (ExternalHealth("far", health),)
    table = routing_table(want, observed(external=external, routing=routing))
    backend_id = external_id("demo", "far")
    assert backend_id == "demo/far#0@external"
    assert table.backends == (
        Backend(backend_id, "demo", "far", 0, "http://far:9000", "m", "llm", state, api_key="${env:KEY}"),
    )
    assert table.routes[0].backends == (backend_id,)


def test_an_external_engine_can_be_withdrawn_and_stopped() -> None:
    seen = observed(external=(ExternalHealth("far", Health.READY),))
    withdrawn = routing_table(desired(far()), seen, frozenset({external_id("demo", "far")}))
    assert states(withdrawn) == {"external": "draining"}
    stopped = routing_table(desired(far(state=EngineState.STOPPED)), seen)
    assert stopped == RoutingTable()


def published(stack: str, *names: str) -> RoutingTable:
    """What another stack has published: one engine with these names, and a name that waits for its engine."""
    backend = Backend(f"{stack}/e#0@f:{stack}", stack, "e", 0, "http://127.0.0.1:9", "m", "llm")
    routes = [Route(name, "llm", (backend.id,), stack=stack) for name in names]
    return RoutingTable((*routes, Route(f"{stack}-waits", "llm", (), stack=stack)), (backend,))


def test_other_stacks_stay_as_they_are_even_without_backends() -> None:
    theirs = published("other", "theirs")
    table = routing_table(desired(engine("chat")), observed(launch(), routing=theirs))
    assert set(theirs.routes) <= set(table.routes)
    assert set(theirs.backends) <= set(table.backends)
    assert set(pools(table)) == {"m", "other-waits", "theirs"}


def test_what_this_stack_published_before_does_not_linger() -> None:
    before = routing_table(desired(engine("gone", "g", model="g")), observed(launch("gone")))
    assert routing_table(desired(), observed(routing=before)) == RoutingTable()


@pytest.mark.parametrize(("other", "owner"), [("aaa", "aaa"), ("zzz", "demo")])
def test_a_name_that_two_stacks_offer_goes_to_the_first_by_name(other: str, owner: str) -> None:
    want, seen = desired(engine("chat")), observed(launch(), routing=published(other, "m"))
    table = routing_table(want, seen)
    assert [route.stack for route in table.routes if route.name == "m"] == [owner]
    assert len(table.backends) == 2
    (note,) = route_notes(want, seen)
    assert f"'{other}'" in note
    assert "which offers it too" in note


def test_without_conflicts_there_are_no_notes() -> None:
    assert route_notes(desired(engine("chat")), observed(launch(), routing=published("other", "x"))) == ()


NAMES = st.sampled_from(["a", "b", "c"])
MODELS = st.sampled_from(["m", "n"])
ENGINES = st.builds(
    lambda name, names, model, state, replicas: engine(
        name, *names, model=model, state=state, replicas=replicas
    ),
    NAMES,
    st.sets(st.sampled_from(["m", "n", "x", "y"]), min_size=1),
    MODELS,
    st.sampled_from(EngineState),
    st.integers(1, 2),
)
LAUNCHES = st.builds(
    lambda name, fingerprint, health, replica, model, started: launch(
        name, "l", fingerprint=fingerprint, health=health, replica=replica, model=model, started=started
    ),
    NAMES,
    st.sampled_from(["new", "old"]),
    st.sampled_from(Health),
    st.integers(0, 2),
    MODELS,
    st.sampled_from([1.0, 2.0]),
)
WORLDS = st.tuples(
    st.lists(ENGINES, unique_by=lambda engine: engine.name),
    st.lists(LAUNCHES, unique_by=lambda launch: launch.mark.replica.__str__() + launch.mark.fingerprint).map(
        lambda launches: [
            replace(item, mark=replace(item.mark, launch=f"l{number}"))
            for number, item in enumerate(launches)
        ]
    ),
    st.sampled_from([None, published("aaa", "m"), published("zzz", "m", "x")]),
    st.randoms(use_true_random=False),
    st.booleans(),
)


@given(WORLDS)
def test_safety_of_any_table(
    world: tuple[list[DesiredEngine], list[ObservedLaunch], RoutingTable | None, object, bool],
) -> None:
    engines, launches, routing, random, is_withdrawing = world
    draining = frozenset(item.mark.id for item in launches[:1] if is_withdrawing)
    want = desired(*engines)
    table = routing_table(want, observed(*launches, routing=routing), draining)

    shuffled = list(launches)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    turned = DesiredState("demo", tuple(reversed(want.engines)))
    assert routing_table(turned, observed(*shuffled, routing=routing), draining) == table

    known = {backend.id for backend in table.backends}
    assert all(set(route.backends) <= known for route in table.routes)
    assert [route.name for route in table.routes] == sorted({route.name for route in table.routes})
    assert [backend.id for backend in table.backends] == sorted(known)

    ours = [backend for backend in table.backends if backend.stack == "demo"]
    assert {backend.id for backend in ours} == {item.mark.id for item in launches}
    ready = [(backend.engine, backend.replica) for backend in ours if backend.state == "ready"]
    assert len(ready) == len(set(ready)), "one ready launch of a replica at most"
    healthy = {item.mark.id for item in launches if item.health is Health.READY} - draining
    assert {backend.id for backend in ours if backend.state == "ready"} <= healthy

    again = routing_table(want, observed(*launches, routing=table), draining)
    foreign_kept = [route for route in table.routes if route.stack != "demo"]
    assert [route for route in again.routes if route.stack != "demo"] == foreign_kept
    assert again == table, "publishing what was published changes nothing"


def test_names_that_end_with_no_step_are_noted() -> None:
    """The engine died before it left the file, so there is nothing to stop."""
    before = routing_table(desired(engine("gone", "g", "h", model="g")), observed(launch("gone", model="g")))
    assert route_notes(desired(), observed(routing=before)) == ("routes removed: g, h",)
    assert route_notes(desired(), observed(launch("gone", model="g"), routing=before)) == ()
    assert route_notes(desired(engine("new", "g", "h", model="g")), observed(routing=before)) == ()
    assert route_notes(desired(stack="other"), observed(routing=before)) == ()
