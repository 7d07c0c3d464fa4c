"""What a plan says of memory before anything is started: notes, blocked steps, needs, and --explain."""

from dataclasses import replace
from typing import Any

import pytest

from sage_reconcile.engines.activations import VLLM_CONTEXT_MIB
from sage_reconcile.engines.modelfiles import model_files
from sage_reconcile.model.actions import Plan, Verdict
from sage_reconcile.model.desired import ArgValue, DesiredEngine, DesiredState, Kind
from sage_reconcile.model.modelfiles import ModelFiles
from sage_reconcile.model.observed import ObservedState
from sage_reconcile.plan.explanation import Explanation, explain
from sage_reconcile.plan.reconcile import reconcile
from sage_reconcile.render.explanation import explanation_data, explanation_lines
from tests.build import GIB, cpu_spec, desired, engine, gpu, launch_of, node, observed, spec
from tests.engines.configs import KNOWN

LLAMA = model_files("llama", KNOWN["llama-3-8b"].config)
BIG = model_files("big", KNOWN["llama-3-70b"].config)
BGE = model_files("bge", KNOWN["bge-m3"].config)


def chat(
    need: str | int | float = "auto", model: str = "llama", tp: int = 1, **args: ArgValue
) -> DesiredEngine:
    flags = tuple(sorted((key.replace("_", "-"), value) for key, value in args.items()))
    return engine("chat", spec(model, need=need, runtime="vllm", tp=tp, args=flags))


def embed(need: str | int | float = "auto") -> DesiredEngine:
    return engine("embed", spec("bge", need=need, runtime="sentence-transformers", kind=Kind.EMBEDDING))


def seen(*models: ModelFiles, total: int = 80 * GIB, count: int = 1, **more: Any) -> ObservedState:
    return observed(nodes=[node(gpus=[gpu(n, total) for n in range(count)])], models=models, **more)


def planned(one: DesiredEngine, state: ObservedState) -> Plan:
    return reconcile(desired(one), state)


def test_an_engine_that_fits_needs_no_word() -> None:
    (step,) = planned(chat(), seen(LLAMA)).steps
    assert step.notes == ()


def test_a_request_that_does_not_fit_is_told_before_the_start() -> None:
    """The best known failure of a start: the KV cache of one request."""
    plan = planned(chat(need=20 * GIB, max_model_len=131072), seen(LLAMA))
    assert plan.steps == ()
    (blocked,) = plan.blocked
    assert blocked.reason.startswith("cannot start: weights 15,317 + computing about ")
    assert "the KV cache of one request of 131,072 tokens 16,384" in blocked.reason
    assert "it is given 20,480: lower max-model-len to " in blocked.reason
    assert ", or raise gpu_memory to " in blocked.reason


def test_the_remedies_lead_to_a_plan_without_a_word() -> None:
    reason = planned(chat(need=20 * GIB, max_model_len=131072), seen(LLAMA)).blocked[0].reason
    length = int(reason.partition("lower max-model-len to ")[2].partition(",")[0])
    memory = float(reason.partition("raise gpu_memory to ")[2].partition("GiB")[0])
    for better in (
        chat(need=20 * GIB, max_model_len=length),
        chat(need=int(memory * GIB), max_model_len=131072),
    ):
        (step,) = planned(better, seen(LLAMA)).steps
        assert step.notes == ()


def test_what_depends_on_an_estimate_is_a_note() -> None:
    """Weights and the request fit, and what computing takes is too much by what is known of it."""
    (step,) = planned(chat(need=17 * GIB), seen(LLAMA)).steps
    (note,) = step.notes
    assert note.startswith("may not start: weights 15,317 + computing about ")


def test_a_guess_blocks_nothing() -> None:
    guess = model_files("llama", {**KNOWN["llama-3-8b"].config, "model_type": "brand-new"})
    plan = planned(chat(need=10 * GIB), seen(guess))
    assert plan.blocked == ()
    assert plan.steps[0].notes[0].startswith("may not start: ")
    offloaded = planned(chat(need=10 * GIB, cpu_offload_gb=8), seen(LLAMA))
    assert offloaded.blocked == ()


def test_weights_that_fit_on_no_gpu_want_more_of_them() -> None:
    (blocked,) = planned(chat(model="big"), seen(BIG, count=4)).blocked
    assert "spread it over more GPUs (tensor_parallel)" in blocked.reason
    assert planned(chat(model="big", tp=4), seen(BIG, count=4)).blocked == ()


def test_the_flag_that_the_file_uses_is_the_one_to_raise() -> None:
    one = chat(gpu_memory_utilization=0.25, max_model_len=131072)
    assert "raise gpu-memory-utilization to 0." in planned(one, seen(LLAMA)).blocked[0].reason


def test_what_runs_is_left_alone_whatever_is_estimated() -> None:
    one = chat(need=10 * GIB)
    plan = planned(one, replace(seen(LLAMA), launches=(launch_of(one),)))
    assert [kept.verdict for kept in plan.kept] == [Verdict.KEEP]


def test_an_engine_without_gpu_memory_is_counted_with_what_its_model_needs() -> None:
    plan = planned(embed(), seen(BGE))
    (step,) = plan.steps
    (line,) = plan.memory
    assert 3000 < line.after_mib < 6000
    assert step.notes == (f"needs about {line.after_mib:,} MiB, from config.json (weights counted)",)
    assert planned(embed(need=8 * GIB), seen(BGE)).memory[0].after_mib == 8 * GIB


def test_and_it_is_blocked_where_that_is_not_free() -> None:
    (blocked,) = planned(embed(), seen(BGE, total=2 * GIB)).blocked
    assert "MiB on 1 GPU" in blocked.reason


def test_what_runs_holds_what_it_will_take() -> None:
    """One that is still loading has not taken it yet."""
    one = embed()
    state = replace(seen(BGE), launches=(launch_of(one),))
    assert planned(one, state).memory[0].before_mib == planned(one, seen(BGE)).memory[0].after_mib


def test_where_nothing_is_known_the_plan_is_what_it_was() -> None:
    unknown = ModelFiles("bge", unknown="its files are not on this host")
    assert planned(embed(), seen(unknown)) == planned(embed(), seen())
    assert planned(embed(), seen()).steps[0].notes == (
        "GPU memory need unknown: set gpu_memory to have it counted",
    )


def explained(one: DesiredEngine, state: ObservedState, *others: DesiredEngine) -> Explanation:
    everything: DesiredState = desired(one, *others)
    return explain(one, state, reconcile(everything, state))


def text(of: Explanation) -> str:
    return "\n".join(line for _, line in explanation_lines(of))


def test_the_breakdown_adds_up_and_every_gpu_has_its_reason() -> None:
    state = observed(nodes=[node(gpus=[gpu(0), gpu(1, used=70 * GIB), gpu(2, 24 * GIB)])], models=(LLAMA,))
    found = explained(chat(need=40 * GIB), state)
    assert found.estimate is not None
    assert found.need_mib == 40 * GIB + VLLM_CONTEXT_MIB
    assert found.estimate.parts.total - found.estimate.parts.context == 40 * GIB
    assert [one.reason for one in found.gpus] == [
        "taken: the tightest fit",
        f"too little: lacks {30 * GIB + VLLM_CONTEXT_MIB:,} MiB",
        f"too little: lacks {16 * GIB:,} MiB",
    ]
    lines = text(found)
    assert "weights                       15,317 MiB  bfloat16" in lines
    assert "KV cache" in lines
    assert "n1 GPU 1" in lines
    data = explanation_data(found)
    assert data["estimate"]["parts"]["total"] == found.estimate.parts.total
    assert [one["is_taken"] for one in data["gpus"]] == [True, False, False]


def test_pinned_and_running_and_crowded_gpus_say_so() -> None:
    pinned = replace(embed(), placement=replace(embed().placement, gpus=(1,)))
    found = explained(pinned, seen(BGE, count=2))
    assert [one.reason for one in found.gpus] == ["the file pins others", "taken: the file pins it"]
    running = embed()
    state = replace(seen(BGE, count=2), launches=(launch_of(running),))
    assert [one.reason for one in explained(running, state).gpus] == [
        "runs here",
        "has room, but another GPU fits better",
    ]
    other = engine("other", spec(need=79 * GIB))
    found = explained(embed(), seen(BGE, count=2), other)
    assert sorted(one.engines_mib for one in found.gpus) == [0, 79 * GIB]


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (engine("chat", cpu_spec()), "it runs on the CPU, or no GPU is seen"),
        (engine("chat", spec(need="auto")), "what a command takes is not computed: set gpu_memory"),
        (chat(), "the model's files were not looked for"),
        (embed(), "its files are not on this host"),
    ],
)
def test_no_estimate_has_a_reason(one: DesiredEngine, reason: str) -> None:
    state = seen(ModelFiles("bge", unknown="its files are not on this host"))
    found = explained(one, state)
    assert found.unknown == reason
    assert f"no estimate: {reason}" in text(found)


def test_a_blocked_engine_is_explained_too() -> None:
    found = explained(chat(need=20 * GIB, max_model_len=131072), seen(LLAMA))
    assert found.where.startswith("blocked: cannot start: ")
    assert "raise gpu_memory" in found.shortage
    assert "does not fit: " in text(found)
