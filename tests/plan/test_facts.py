"""What was measured replaces what was estimated, wherever memory is counted; and what a look teaches."""

from dataclasses import replace

import pytest

from sage_reconcile.engines.activations import VLLM_CONTEXT_MIB
from sage_reconcile.engines.modelfiles import model_files
from sage_reconcile.model.desired import DesiredEngine, Kind, LaunchSpec, fingerprint
from sage_reconcile.model.facts import Fact
from sage_reconcile.model.observed import Health, ObservedLaunch, ObservedState
from sage_reconcile.plan.explanation import explain
from sage_reconcile.plan.learning import blank, learned
from sage_reconcile.plan.memory import Ledger, need_mib
from sage_reconcile.plan.need import counts_by_need
from sage_reconcile.plan.reconcile import reconcile
from sage_reconcile.render.explanation import explanation_data, explanation_lines
from tests.build import GIB, cpu_spec, desired, engine, gpu, launch_of, node, observed, running, spec
from tests.engines.configs import KNOWN

LLAMA = model_files("llama", KNOWN["llama-3-8b"].config)
BGE = model_files("bge", KNOWN["bge-m3"].config)
TOTAL = 80 * GIB


def fact(of: LaunchSpec, *, on: str = "H100", total: int = TOTAL, **measured: object) -> Fact:
    """What was measured of a launch spec on the GPU of `tests.build`."""
    made = Fact(fingerprint(of), on, total, "demo/chat", of.model, of.runtime, 1000.0)
    return replace(made, **measured)  # type: ignore[arg-type]


def vllm(need: str | int | float = "auto", model: str = "llama", kind: Kind = Kind.LLM) -> LaunchSpec:
    return spec(model, need=need, runtime="vllm", kind=kind)


def ready(one: DesiredEngine, held: int | None = None, **changes: object) -> ObservedLaunch:
    launch = running(launch_of(one).mark, held=held)
    seen = replace(launch, ready_at=launch.since + 40.0, engine_started=launch.since + 2.0)
    return replace(seen, **changes)  # type: ignore[arg-type]


# What counts


def test_what_was_measured_is_what_counts() -> None:
    one = vllm(need=20 * GIB)
    assert need_mib(one, TOTAL) == 20 * GIB + VLLM_CONTEXT_MIB
    state = observed(facts=(fact(one, held_mib=22 * GIB),))
    assert Ledger(state).need(one, TOTAL) == 22 * GIB
    (line,) = reconcile(desired(engine("chat", one)), state).memory
    assert line.after_mib == 22 * GIB


def test_only_of_this_very_spec_on_this_model_of_gpu() -> None:
    one, other = vllm(need=20 * GIB), vllm(need=21 * GIB)
    expected = 20 * GIB + VLLM_CONTEXT_MIB
    for known in (
        fact(other, held_mib=30 * GIB),
        fact(one, held_mib=30 * GIB, on="A100"),
        fact(one, held_mib=30 * GIB, total=40 * GIB),
        fact(one, start_seconds=3.0),
    ):
        assert Ledger(observed(facts=(known,))).need(one, TOTAL) == expected


def test_what_computing_takes_is_left_free_although_it_was_not_there_when_measured() -> None:
    """After its start an engine has computed one token: it will hold more, and never more than estimated."""
    one = vllm(need=40 * GIB)
    seen = observed(models=(LLAMA,))
    expected = Ledger(seen).need(one, TOTAL)
    assert expected is not None
    low = Ledger(replace(seen, facts=(fact(one, held_mib=39 * GIB),))).need(one, TOTAL)
    assert low is not None
    assert 39 * GIB < low < expected
    assert Ledger(replace(seen, facts=(fact(one, held_mib=expected - 9),))).need(one, TOTAL) == expected
    assert Ledger(replace(seen, facts=(fact(one, held_mib=expected + 9),))).need(one, TOTAL) == expected + 9


def test_what_the_file_sets_aside_stays_set_aside() -> None:
    one = spec("m", need=20 * GIB)
    assert need_mib(one, TOTAL, fact=fact(one, held_mib=4 * GIB)) == 20 * GIB
    assert need_mib(one, TOTAL, fact=fact(one, held_mib=24 * GIB)) == 24 * GIB


def test_an_unknown_need_is_known_after_the_first_start() -> None:
    one = spec("m", need="auto")
    first = reconcile(desired(engine("chat", one)), observed())
    assert first.steps[0].notes == ("GPU memory need unknown: set gpu_memory to have it counted",)
    state = observed(facts=(fact(one, held_mib=9 * GIB),))
    plan = reconcile(desired(engine("chat", one)), state)
    assert plan.steps[0].notes == ()
    assert plan.memory[0].after_mib == 9 * GIB


def test_what_was_measured_asleep_is_kept_while_it_sleeps() -> None:
    old, new = (vllm(need=0.9), vllm(need=0.89))
    old = replace(old, can_sleep=True)
    state = observed(launch_of(engine("chat", old)), facts=(fact(old, asleep_mib=512),))
    (line,) = reconcile(desired(engine("chat", new)), state).memory
    new_need = need_mib(new, TOTAL)
    assert new_need is not None
    assert line.peak_mib == max(line.before_mib, new_need + 512)


def test_deleted_facts_change_numbers_only() -> None:
    one = engine("chat", vllm(need=20 * GIB))
    known = observed(launch_of(one), facts=(fact(one.launch, held_mib=22 * GIB),))
    for state in (known, replace(known, facts=())):
        plan = reconcile(desired(one), state)
        assert (plan.steps, plan.blocked) == ((), ())


def test_the_explanation_shows_the_fact_beside_the_estimate() -> None:
    one = engine("chat", vllm(need=40 * GIB))
    measured = fact(one.launch, held_mib=41_000, start_seconds=38.25, versions=(("vllm", "0.24.0"),))
    state = observed(models=(LLAMA,), facts=(measured,))
    said = explain(one, state, reconcile(desired(one), state))
    lines = [text.strip() for _, text in explanation_lines(said)]
    assert said.fact == measured
    assert f"counted on each GPU: {said.need_mib:,} MiB (measured before)" in lines
    assert (
        "measured here before: 41,000 MiB (1,190 less than estimated), start 38.2 s; "
        "1970-01-01, H100, vllm 0.24.0" in lines
    )
    assert explanation_data(said)["fact"]["held_mib"] == 41_000
    without = explain(one, replace(state, facts=()), reconcile(desired(one), replace(state, facts=())))
    assert (without.fact, without.need_source) == (None, "40,960 given, and the CUDA context")


# An encoder in vLLM


def test_an_encoder_in_vllm_counts_with_what_it_holds_and_is_told_so() -> None:
    one = engine("embed", vllm(model="bge", kind=Kind.EMBEDDING))
    plan = reconcile(desired(one), observed(models=(BGE,)))
    (line,) = plan.memory
    assert 2000 < line.after_mib < 8000
    launch = plan.steps[0].actions[0]
    assert getattr(launch, "counted_mib", None) == line.after_mib
    assert not counts_by_need(vllm(0.5, "bge", Kind.EMBEDDING), TOTAL, BGE)
    assert not counts_by_need(vllm(), TOTAL, LLAMA)


# What a look teaches


def test_a_ready_launch_teaches_what_it_holds_and_how_long_it_took() -> None:
    one = engine("chat", vllm(need=0.5))
    (found,) = learned(observed(ready(one, 41 * GIB, versions=(("vllm", "0.24.0"),))))
    assert found == Fact(
        one.fingerprint,
        "H100",
        TOTAL,
        "demo/chat",
        "llama",
        "vllm",
        1_000_000.0,
        launch="l1",
        held_mib=41 * GIB,
        start_seconds=38.0,
        versions=(("vllm", "0.24.0"),),
    )


def test_a_second_look_teaches_nothing_and_memory_only_grows() -> None:
    one = engine("chat", vllm(need=0.5))
    state = observed(ready(one, 41 * GIB))
    (first,) = learned(state)
    assert learned(replace(state, facts=(first,))) == ()
    less = observed(ready(one, 40 * GIB), facts=(first,))
    assert learned(less) == ()
    (more,) = learned(observed(ready(one, 42 * GIB), facts=(first,)))
    assert more.held_mib == 42 * GIB


def test_a_supervisors_restart_corrects_the_time_of_a_start() -> None:
    one = engine("chat", vllm(need=0.5))
    (first,) = learned(observed(ready(one, 41 * GIB)))
    again = ready(one, 41 * GIB, engine_started=5000.0, ready_at=5012.5)
    (second,) = learned(observed(again, facts=(first,)))
    assert (second.start_seconds, second.held_mib) == (12.5, 41 * GIB)


def test_another_version_of_the_program_begins_anew() -> None:
    one = engine("chat", vllm(need=0.5))
    (first,) = learned(observed(ready(one, 41 * GIB, versions=(("vllm", "0.24.0"),))))
    (second,) = learned(observed(ready(one, 39 * GIB, versions=(("vllm", "0.25.0"),)), facts=(first,)))
    assert (second.held_mib, second.versions) == (39 * GIB, (("vllm", "0.25.0"),))


def test_a_sleeping_one_teaches_what_sleeping_keeps() -> None:
    one = engine("chat", vllm(need=0.5))
    (first,) = learned(observed(ready(one, 41 * GIB)))
    asleep = ready(one, 1300, health=Health.ASLEEP)
    (second,) = learned(observed(asleep, facts=(first,)))
    assert (second.held_mib, second.asleep_mib, second.start_seconds) == (41 * GIB, 1300, 38.0)


@pytest.mark.parametrize("health", [Health.STARTING, Health.FAILING, Health.BACKOFF, Health.UNKNOWN])
def test_nothing_is_learnt_of_what_does_not_serve(health: Health) -> None:
    assert learned(observed(ready(engine("chat", vllm()), 41 * GIB, health=health))) == ()


def test_where_nvml_names_no_process_of_ours_only_time_is_learnt() -> None:
    (found,) = learned(observed(ready(engine("chat", vllm()))))
    assert (found.held_mib, found.start_seconds) == (None, 38.0)


def test_an_engine_on_the_cpu_has_facts_too() -> None:
    (found,) = learned(observed(ready(engine("chat", cpu_spec()))))
    assert (found.gpu, found.gpu_total_mib, found.start_seconds) == ("", 0, 38.0)


def test_a_gpu_that_is_not_seen_teaches_nothing() -> None:
    one = ready(engine("chat", vllm()), 41 * GIB)
    blind = observed(one, nodes=[node(gpus=0)])
    assert learned(blind) == ()
    assert blank(one.mark, (), 1.0) is None


def test_two_gpus_count_as_the_fuller_one() -> None:
    one = engine("chat", spec(runtime="vllm", tp=2))
    launch = launch_of(one, gpus=(0, 1))
    uuids = launch.mark.placement.gpus
    seen = replace(launch, gpu_mib=((uuids[0], 10), (uuids[1], 12)))
    state: ObservedState = observed(seen, nodes=[node(gpus=[gpu(0), gpu(1)])])
    assert [found.held_mib for found in learned(state)] == [12]
