"""Generated stacks, fleets and edits, for the properties of the planner."""

from dataclasses import replace

from hypothesis import strategies as st

from sage_reconcile.model.desired import (
    DesiredEngine,
    DesiredState,
    Device,
    EngineState,
    Kind,
    LiveSpec,
    RouteSpec,
    Strategy,
)
from sage_reconcile.model.observed import ObservedNode
from tests.build import GIB, desired, engine, gpu, node, spec

NAMES = ("a", "b", "c", "d", "e")


@st.composite
def engines(draw: st.DrawFn, name: str) -> DesiredEngine:
    """One engine: GPU or CPU, one to four GPUs, known or unknown need, pinned or not."""
    device = draw(st.sampled_from([Device.GPU, Device.GPU, Device.GPU, Device.CPU, Device.PREFER_GPU]))
    tp, pp = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 2), (2, 2)]))
    if device is not Device.GPU:
        tp = pp = 1
    needs: list[str | int | float] = ["auto", 4 * GIB, 20 * GIB, 30 * GIB, 0.5, 0.9]
    can_sleep = device is Device.GPU and draw(st.booleans())
    launch = spec(
        draw(st.sampled_from(["m1", "m2"])),
        need=draw(st.sampled_from(needs)) if device is not Device.CPU else "auto",
        device=device,
        kind=draw(st.sampled_from([Kind.LLM, Kind.LLM, Kind.EMBEDDING])),
        runtime="vllm" if can_sleep else "command",
        tp=tp,
        pp=pp,
        can_sleep=can_sleep,
    )
    states = [EngineState.RUNNING] * 4 + [EngineState.STOPPED] + [EngineState.ASLEEP] * can_sleep
    pinned: tuple[int | str, ...] | None = None
    if device is Device.GPU and tp * pp == 1:
        pinned = draw(st.sampled_from([None, None, None, (0,), (1,)]))
    before = [other for other in NAMES if other < name]
    return engine(
        name,
        launch,
        replicas=draw(st.integers(1, 3)),
        port=draw(st.sampled_from([None, None, None, 8901 + 10 * NAMES.index(name), 8950])),
        gpus=pinned,
        state=draw(st.sampled_from(states)),
        strategy=draw(st.sampled_from([Strategy.AUTO, Strategy.AUTO, Strategy.SURGE, Strategy.RECREATE])),
        after=tuple(sorted(draw(st.sets(st.sampled_from(before), max_size=1)))) if before else (),
        route=RouteSpec(
            tuple(sorted({name, *draw(st.sets(st.sampled_from(["x", "y"])))})),
            weight=draw(st.integers(1, 2)),
            hold=draw(st.sampled_from([30.0, 60.0])),
        ),
        live=LiveSpec(drain=draw(st.sampled_from([1.0, 30.0]))),
    )


@st.composite
def stacks(draw: st.DrawFn) -> DesiredState:
    """A stack of up to five engines; who depends on what is not in it depends on nothing."""
    names = draw(st.sets(st.sampled_from(NAMES), max_size=5))
    made = [draw(engines(name)) for name in sorted(names)]
    return desired(*(without_missing(one, names) for one in made))


def without_missing(one: DesiredEngine, names: set[str]) -> DesiredEngine:
    return replace(one, after=tuple(name for name in one.after if name in names))


@st.composite
def hosts(draw: st.DrawFn) -> list[ObservedNode]:
    """One or two nodes of up to four GPUs of two sizes, some memory and ports in use by strangers."""
    made = []
    for name in ("n1", "n2")[: draw(st.integers(1, 2))]:
        sizes = draw(st.lists(st.sampled_from([24 * GIB, 80 * GIB]), max_size=4))
        gpus = [
            gpu(index, size, node=name, used=draw(st.sampled_from([0, 0, 0, 10 * GIB])))
            for index, size in enumerate(sizes)
        ]
        ports = draw(st.sets(st.sampled_from([8901, 8902, 8090, 8911]), max_size=2))
        made.append(node(name, gpus, sorted(ports)))
    return made
