"""The pages: links lead somewhere, generated pages are fresh, words and names that they use exist."""

import re
from pathlib import Path

import pytest

from sage_reconcile.cli.reference import reference
from sage_reconcile.supervisor import verdicts
from tests.docs.pages import NAMES, ROOT, anchors, blocks, links, text_of

VOCABULARY = (
    "stack", "engine", "replica", "launch", "fingerprint", "runtime", "placement", "fleet", "gap", "plan",
    "step", "cause", "route", "backend", "hold", "drain", "withdraw",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    for target in links(name):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        page = (ROOT / name).parent / path if path else ROOT / name
        assert page.exists(), f"{name} links to {target}"
        if anchor:
            assert anchor in anchors(str(page.resolve().relative_to(ROOT))), f"{name} links to {target}"


def test_there_are_links_to_check() -> None:
    assert len(links("README.md")) > 10


def test_the_command_page_is_fresh() -> None:
    assert text_of("docs/cli.md") == reference(), "run make docs"


def test_the_readme_leads_to_every_page() -> None:
    targets = {target.partition("#")[0] for target in links("README.md")}
    assert targets >= {name for name in NAMES if name.startswith("docs/")}


def test_the_glossary_explains_the_vocabulary() -> None:
    glossary = text_of("README.md").partition("## Glossary")[2].partition("\n## ")[0]
    words = re.findall(r"^\| ([a-z]+) \| (.+) \|$", glossary, re.M)
    assert {word for word, _ in words} >= set(VOCABULARY)


def test_every_test_that_a_promise_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text_of("docs/architecture.md"))
    assert len(named) > 20
    for path, function in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert not function or f"def {function}(" in source, f"{path}::{function}"


def test_every_folder_that_the_architecture_names_exists() -> None:
    table = re.findall(r"^\| (`[^|]+) \| ", text_of("docs/architecture.md").partition("## Promises")[0], re.M)
    names = [name for row in table for name in re.findall(r"`([\w/.]+)`", row)]
    assert len(names) > 15
    for name in names:
        assert (ROOT / "sage_reconcile" / name).exists() or (ROOT / name).exists(), name


@pytest.mark.parametrize("rule", verdicts.RULES, ids=lambda rule: rule.verdict.cause)
def test_every_known_cause_has_its_row(rule: verdicts.Rule) -> None:
    cause = rule.verdict.cause.replace("{1}", "NAME")
    assert f"\n| {cause} | " in text_of("docs/troubleshooting.md")


def test_every_unknown_cause_has_its_row() -> None:
    page = text_of("docs/troubleshooting.md")
    assert f"\n| {verdicts.KILLED.cause} | " in page
    assert f"\n| {verdicts.CRASHED.format('SIGSEGV')} | " in page


def test_every_inherited_variable_is_named() -> None:
    from sage_reconcile.apply.environment import INHERITED, PREFIXES

    page = text_of("docs/runtimes.md")
    names = {name for name in INHERITED if not name.endswith("_PROXY")}
    assert {name for name in (*names, *PREFIXES) if f"`{name}`" not in page} == set()


def test_fragments_are_named_for_a_release() -> None:
    kinds = {"feature", "bugfix", "change", "removal", "doc"}
    found = [path for path in (ROOT / "newsfragments").iterdir() if path.name != "README.md"]
    assert found
    for path in found:
        assert re.fullmatch(rf"[a-z0-9-]+\.({'|'.join(kinds)})\.md", path.name), path.name
        assert path.read_text(encoding="utf-8").strip()


@pytest.mark.parametrize("name", NAMES)
def test_lines_are_as_long_as_people_read(name: str) -> None:
    """Prose and code; tables and pasted output are as wide as they are."""
    text = re.sub(r"^```text\n.*?^```$", "", text_of(name), flags=re.M | re.S)
    long = [line for line in text.splitlines() if len(line) > 122 and not line.startswith("|")]
    assert long == []


@pytest.mark.parametrize("name", NAMES)
def test_every_engine_in_a_yaml_block_is_a_valid_stack(name: str, tmp_path: Path) -> None:
    """Fragments are laid over a stack that has what they leave out."""
    import yaml

    from sage_reconcile.observe.inventory import described
    from sage_reconcile.stack.load import load

    for number, one in enumerate(blocks(name)):
        document = yaml.safe_load(one.text) if one.language == "yaml" else None
        if not isinstance(document, dict):
            continue
        path = tmp_path / f"{number}.yaml"
        path.write_text(one.text, encoding="utf-8")
        if "nodes" in document:
            assert described(path).nodes
        elif {"engines", "runtimes"} & document.keys():
            base = tmp_path / f"base-{number}.yaml"
            base.write_text(yaml.safe_dump(_whole(document)), encoding="utf-8")
            assert load([base, path], {}, (), portable=True).model.engines


def _whole(document: dict[str, object]) -> dict[str, object]:
    engines = document.get("engines")
    names = [str(engine["name"]) for engine in engines] if isinstance(engines, list) else ["any"]
    kinds = {str(e["name"]): e.get("kind", "llm") for e in engines} if isinstance(engines, list) else {}
    return {
        "version": 1,
        "name": "base",
        "engines": [{"name": name, "kind": kinds.get(name, "llm"), "model": "o/m"} for name in names],
    }
