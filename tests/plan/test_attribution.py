"""Every byte of a GPU has one owner, and they add up to its size."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from sage_reconcile.model.observed import (
    ForeignLaunch,
    GpuHolder,
    Health,
    ObservedGpu,
    ObservedState,
    PortHolder,
)
from sage_reconcile.model.routing import Backend, RoutingTable, external_id
from sage_reconcile.plan.attribution import Owner, Share, attribution
from tests.build import GIB, engine, gpu, launch_of, mark, node, observed, orphan, running, spec

PORTS = (PortHolder(8000, 500, "llama-server"),)
ADOPTED = Backend(external_id("demo", "old"), "demo", "old", 0, "http://127.0.0.1:8000", "m", "llm")


def state(used: int, *holders: GpuHolder, total: int = 80 * GIB, **more: object) -> ObservedState:
    seen = replace(gpu(0, total, used=used), holders=holders)
    launches = more.pop("launches", ())
    return observed(*launches, nodes=[node(gpus=[seen], ports=PORTS)], **more)  # type: ignore[misc, arg-type]


def shares(of: ObservedState) -> tuple[Share, ...]:
    (found,) = attribution(of)
    return found.shares


def test_each_owner_is_told_apart() -> None:
    of = mark("chat", spec(need=30 * GIB))
    left = orphan(mark("gone", id="l2"), pids=(77,), held=5)
    other = ForeignLaunch(mark("theirs", id="l3", home="/somebody/else"), (88,), "somebody")
    holders = (
        GpuHolder(4001, "VLLM::EngineCore", 20 * GIB),
        GpuHolder(77, "VLLM::EngineCore", 5),
        GpuHolder(88, "python", 6),
        GpuHolder(99, "Xorg", 7),
        GpuHolder(501, "llama-worker", 8, parents=(500, 9)),
        GpuHolder(111, "", 9),
    )
    used = 20 * GIB + 5 + 6 + 7 + 8 + 9 + 10
    routing = RoutingTable(backends=(ADOPTED,))
    seen = state(
        used,
        *holders,
        launches=(running(of, held=20 * GIB),),
        orphans=(left,),
        foreign=(other,),
        routing=routing,
    )
    found = shares(seen)
    assert found == (
        Share(Owner.LAUNCH, "demo/chat#0", 20 * GIB, 10 * GIB, (4001,)),
        Share(Owner.ADOPTED, "demo/old#0", 8, 0, (501,)),
        Share(Owner.ORPHANED, "demo/gone#0", 5, 0, (77,)),
        Share(Owner.FOREIGN, "Xorg", 7, 0, (99,)),
        Share(Owner.FOREIGN, "demo/theirs#0 of somebody", 6, 0, (88,)),
        Share(Owner.UNATTRIBUTED, "", 19, 0, (111,)),
        Share(Owner.FREE, "", 50 * GIB - 45),
    )


def test_what_nvml_cannot_attribute_is_neither_foreign_nor_free() -> None:
    """In a container that sees the host's numbers: the engine's memory is in use, by nobody who is seen."""
    launch = running(mark("chat", spec(need=30 * GIB)))
    found = shares(state(30 * GIB, GpuHolder(7, "", 30 * GIB), launches=(launch,)))
    assert found == (
        Share(Owner.UNATTRIBUTED, "", 30 * GIB, 0, (7,)),
        Share(Owner.FREE, "", 50 * GIB),
    )


def test_an_engine_that_loads_has_its_room_reserved() -> None:
    launch = launch_of(engine("chat", spec(need=30 * GIB)), health=Health.STARTING)
    found = shares(state(0, launches=(launch,)))
    assert found[0] == Share(Owner.LAUNCH, "demo/chat#0", 0, 30 * GIB)
    assert found[-1] == Share(Owner.FREE, "", 50 * GIB)


def test_mig_devices_are_gpus_of_their_own() -> None:
    slices = [
        ObservedGpu(
            "n1", n, f"MIG-{n}", "H100 MIG 3g.40gb", 40 * GIB, 10, (GpuHolder(4001, "engine", 10),) * (n == 1)
        )
        for n in (1, 2)
    ]
    launch = replace(running(mark("chat", spec(need=20 * GIB), gpus=("MIG-1",))), gpu_mib=(("MIG-1", 10),))
    first, second = attribution(observed(launch, nodes=[node(gpus=slices)]))
    assert first.shares[0] == Share(Owner.LAUNCH, "demo/chat#0", 10, 20 * GIB - 10, (4001,))
    assert second.shares == (Share(Owner.UNATTRIBUTED, "", 10), Share(Owner.FREE, "", 40 * GIB - 10))


@given(
    st.integers(0, 1000),
    st.lists(st.tuples(st.sampled_from([4001, 77, 99, 7]), st.integers(0, 400)), max_size=4),
    st.sampled_from([Health.READY, Health.STARTING, Health.ASLEEP]),
    st.integers(1, 1200),
)
def test_whatever_is_there_adds_up_to_the_whole(
    used: int, held: list[tuple[int, int]], health: Health, need: int
) -> None:
    holders = tuple(GpuHolder(pid, "" if pid == 7 else "x", mib) for pid, mib in dict(held).items())
    total = max(1000, sum(holder.mib for holder in holders))
    launch = running(mark("chat", spec(need=need)), health, held=dict(held).get(4001))
    found = shares(state(min(used, total), *holders, total=total, launches=(launch,)))
    assert sum(share.mib + share.reserved_mib for share in found) == total
    assert all(share.mib >= 0 and share.reserved_mib >= 0 for share in found)
