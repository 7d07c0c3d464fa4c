"""Whatever a file holds, loading it gives a stack or a StackError whose faults lie inside the file."""

import contextlib
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage_reconcile.errors import StackError
from sage_reconcile.stack.load import from_document, load
from sage_reconcile.stack.resolve import resolve
from sage_reconcile.stack.schema import Engine, Stack
from sage_reconcile.stack.sections import Health
from tests.stack.test_load import PRODUCTION, SHAPES

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 70000),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["auto", "${env:A}", "${env:", "10m", "20GiB", "{port}", "{prot}", "command", "vllm", "asleep"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner)),
    max_leaves=6,
)
ENGINES = st.dictionaries(
    st.sampled_from([*Engine.model_fields, *Health.model_fields, "x"]), VALUES, max_size=6
)
DOCUMENTS = st.dictionaries(st.sampled_from([*Stack.model_fields, "y"]), VALUES, max_size=4)


@given(DOCUMENTS, st.lists(ENGINES, max_size=3), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_document(document: dict[str, Any], engines: list[dict[str, Any]], named: bool) -> None:
    if named:
        engines = [{"name": f"e{n}", "model": "m", **engine} for n, engine in enumerate(engines)]
    with contextlib.suppress(StackError):
        resolve(from_document({**document, "engines": engines}, Path("/"), "s", {"A": "b"}))


@given(
    st.sampled_from([SHAPES, PRODUCTION]),
    st.lists(
        st.tuples(
            st.integers(0, 2000), st.integers(0, 12), st.sampled_from([*"{}[]:,-#&*!|>'\"%@\t\n \x00é", ""])
        )
    ),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_to_a_file(tmp_path: Path, text: str, cuts: list[tuple[int, int, str]]) -> None:
    for start, length, new in cuts:
        text = text[:start] + new + text[start + length :]
    path = tmp_path / "s.yaml"
    path.write_text(text)
    try:
        load([path], {"HF_TOKEN": "x", "KEY": "y"})
    except StackError as error:
        lines = text.split("\n")
        for fault in error.faults:
            assert "\n" not in str(fault)
            assert fault.line <= len(lines)
            assert fault.column <= len(lines[fault.line - 1]) + 1
