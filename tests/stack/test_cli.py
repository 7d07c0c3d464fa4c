"""sage validate, schema and fmt: what they print, what they write, how they exit."""

import json
import xml.etree.ElementTree
from pathlib import Path

import pytest

from sage_reconcile.cli.fmt import fmt
from sage_reconcile.cli.schema import schema
from sage_reconcile.cli.validate import validate
from sage_reconcile.errors import PermanentError, StackError

GOOD = "engines:\n  - {name: a, model: m}\n"
BAD = "engines:\n  - {name: a, model: m, prt: 1, replicas: 0}\n"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad, 100%.yaml"
    path.write_text(BAD)
    return path


Captured = pytest.CaptureFixture[str]


def test_text(good: Path, bad: Path, capsys: Captured) -> None:
    assert validate([good]) == 0
    assert capsys.readouterr().out == f"{good}: ok: stack good, 1 engine\n"
    assert validate([bad, good]) == 1
    assert capsys.readouterr().out == (
        f'{bad}:2:25: error: engines[0].prt: unknown key "prt" (did you mean port?)\n'
        f"{bad}:2:43: error: engines[0].replicas: must be at least 1, is 0\n"
        f"{good}: ok: stack good, 1 engine\n"
    )


def test_json(good: Path, bad: Path, capsys: Captured) -> None:
    assert validate([good, bad], format="json") == 1
    report = json.loads(capsys.readouterr().out)
    assert [(one["ok"], one["engines"]) for one in report["files"]] == [(True, 1), (False, 0)]
    fault = report["faults"][0]
    assert (fault["path"], fault["line"], fault["column"]) == (str(bad), 2, 25)
    assert (fault["field"], fault["hint"]) == ("engines[0].prt", "did you mean port?")


def test_github(good: Path, bad: Path, capsys: Captured) -> None:
    assert validate([good], format="github") == 0
    assert capsys.readouterr().out == ""
    assert validate([bad], format="github") == 1
    first = capsys.readouterr().out.splitlines()[0]
    file = str(bad).replace("%", "%25").replace(",", "%2C")
    assert first.startswith(
        f"::error file={file},line=2,col=25,title=sage validate::engines[0].prt: unknown key"
    )


def test_sarif(bad: Path, capsys: Captured) -> None:
    assert validate([bad], format="sarif") == 1
    report = json.loads(capsys.readouterr().out)
    (run,) = report["runs"]
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert report["version"] == "2.1.0"
    assert run["tool"]["driver"]["rules"][0]["id"] == run["results"][0]["ruleId"]
    assert place["region"] == {"startLine": 2, "startColumn": 25}
    assert place["artifactLocation"]["uri"] == str(bad).replace("%", "%25").replace(" ", "%20").replace(
        ",", "%2C"
    )


def test_junit(good: Path, bad: Path, capsys: Captured) -> None:
    assert validate([good, bad], format="junit") == 1
    suite = xml.etree.ElementTree.fromstring(capsys.readouterr().out.split("\n", 1)[1])[0]
    assert (suite.attrib["tests"], suite.attrib["failures"]) == ("2", "1")
    assert suite[1][0].attrib["message"] == "2 faults"
    assert 'unknown key "prt"' in (suite[1][0].text or "")


def test_several_files_are_several_stacks_and_overlays_are_one(
    good: Path, tmp_path: Path, capsys: Captured
) -> None:
    top = tmp_path / "top.yaml"
    top.write_text("engines:\n  - {name: a, replicas: 2}\n")
    assert validate([good, top]) == 1
    capsys.readouterr()
    assert validate(None, overlays=[good, top]) == 0
    assert validate([good], overlays=[top]) == 0
    assert validate([good], sets=["engines.a.replicas=0"]) == 1
    assert "--set: error: engines[0].replicas" in capsys.readouterr().out


def test_the_default_file(good: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.chdir(good.parent)
    with pytest.raises(PermanentError, match=r"sage\.yaml or stack\.yaml"):
        validate()
    good.rename(good.parent / "stack.yaml")
    assert validate() == 0
    assert "stack.yaml: ok" in capsys.readouterr().out


def test_portable(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("engines: [{name: a, model: /no/such}]\n")
    assert validate([path]) == 1
    assert validate([path], portable=True) == 0


def test_schema_is_printed_written_and_checked(tmp_path: Path, capsys: Captured) -> None:
    assert schema() == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["title"] == "sage stack file"
    assert schema(output=tmp_path) == 0
    assert (tmp_path / "stack.schema.json").read_text() == printed
    assert schema(output=tmp_path, check=True) == 0
    (tmp_path / "routing.schema.json").write_text("{}")
    assert schema(output=tmp_path, check=True) == 1
    assert "routing.schema.json: is not up to date" in capsys.readouterr().out
    with pytest.raises(PermanentError, match="cannot be written"):
        schema(output=tmp_path / "no" / "such" / "file.json")


UNTIDY = """\
# head
engines:
- name: 'a'   # the first
  model:   m
  env:
      KEY: '8901'
  # about b
- {name: b,   model: m}


# tail
"""
TIDY = """\
# head
engines:
  - name: "a" # the first
    model: m
    env:
      KEY: "8901"
  # about b
  - {name: b, model: m}


# tail
"""


def test_fmt_keeps_comments_and_is_stable(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(UNTIDY)
    path.chmod(0o640)
    assert fmt([path], check=True) == 1
    assert fmt([path], diff=True) == 0
    assert '+  - name: "a"' in capsys.readouterr().out
    assert path.read_text() == UNTIDY
    assert fmt([path]) == 0
    assert path.read_text() == TIDY
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]
    assert fmt([path], check=True) == 0


def test_fmt_adds_the_modeline_once(good: Path) -> None:
    fmt([good], modeline="x.json")
    fmt([good], modeline="x.json")
    assert good.read_text() == f"# yaml-language-server: $schema=x.json\n{GOOD}"


def test_fmt_writes_through_links(good: Path, tmp_path: Path) -> None:
    good.write_text("engines:   []\n")
    link = tmp_path / "link.yaml"
    link.symlink_to(good)
    assert fmt([link]) == 0
    assert link.is_symlink()
    assert good.read_text() == "engines: []\n"


def test_fmt_leaves_a_broken_file_and_says_where(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("engines: [\n")
    with pytest.raises(StackError, match=r"s\.yaml:1:10: error: not valid YAML"):
        fmt([path])
    assert path.read_text() == "engines: [\n"


def test_fmt_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="cannot be read"):
        fmt([tmp_path / "no.yaml"])
