"""The page on memory: its example is what the command says now."""

import math
from pathlib import Path

import yaml

from sage_reconcile.engines.modelfiles import model_files
from sage_reconcile.model.observed import ObservedGpu, ObservedNode, ObservedState
from sage_reconcile.plan.explanation import explain
from sage_reconcile.plan.reconcile import reconcile
from sage_reconcile.render.explanation import explanation_lines
from sage_reconcile.stack.load import load
from sage_reconcile.stack.resolve import resolve
from tests.docs.pages import block, text_of
from tests.engines.checkpoints import llama_tensors
from tests.engines.configs import KNOWN

PAGE = "docs/memory.md"


def seen(document: dict[str, list[dict[str, str]]]) -> ObservedState:
    gpus = tuple(ObservedGpu("lab", n, f"lab/{n}", "NVIDIA H100 80GB HBM3", 81559) for n in range(2))
    chat, embed = (engine["model"] for engine in document["engines"])
    llama = KNOWN["llama-3-8b"].config
    stored = [(name, "BF16", math.prod(shape), 2 * math.prod(shape)) for name, shape in llama_tensors(llama)]
    models = (
        model_files(chat, llama, stored),
        model_files(embed, KNOWN["bge-m3"].config),
    )
    return ObservedState(at=0.0, nodes=(ObservedNode("lab", gpus),), models=models)


def test_the_explanation_is_what_the_command_says(tmp_path: Path) -> None:
    text = block(PAGE, "stack: memory")
    path = tmp_path / "sage.yaml"
    path.write_text(text, encoding="utf-8")
    desired = resolve(load([path], {}, (), portable=True))
    state = seen(yaml.safe_load(text))
    engine = desired.engine("chat")
    assert engine is not None
    lines = explanation_lines(explain(engine, state, reconcile(desired, state)))
    assert block(PAGE, "explain: chat") == "".join(f"{line}\n" for _, line in lines[1:])


def test_the_blocked_step_is_what_the_plan_says(tmp_path: Path) -> None:
    text = block(PAGE, "stack: memory")
    path = tmp_path / "sage.yaml"
    path.write_text(text, encoding="utf-8")
    changes = ("engines.chat.args.max-model-len=131072",)
    desired = resolve(load([path], {}, changes, portable=True))
    (blocked,) = reconcile(desired, seen(yaml.safe_load(text))).blocked
    assert f"blocked  chat#0  {blocked.reason}\n" in text_of(PAGE)
