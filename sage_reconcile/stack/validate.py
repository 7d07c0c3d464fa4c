"""A merged document to a validated stack, or every problem in it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sage_reconcile.stack.check import Checked, check_engine
from sage_reconcile.stack.layers import absolute, is_path
from sage_reconcile.stack.lora import anchored, with_ranks
from sage_reconcile.stack.merge import overlay
from sage_reconcile.stack.neighbours import (
    check_adapters,
    check_dependencies,
    check_keys,
    check_names,
    check_ports,
)
from sage_reconcile.stack.problems import Path, Problem, describe, did_you_mean
from sage_reconcile.stack.references import Context, has_reference, substitute
from sage_reconcile.stack.schema import BUILTIN_RUNTIMES, Engine, Runtime, Stack
from sage_reconcile.stack.section import Section
from sage_reconcile.stack.select import pick_runtime

S = TypeVar("S", bound=Section)

_NO_ENGINES_HINT = "to stop all engines of the stack write `engines: []`"


class Validator:
    """Validates one document; `problems` collects everything that is wrong with it."""

    def __init__(self, document: Mapping[str, Any], base: FilePath, context: Context) -> None:
        self.problems: list[Problem] = []
        self._document = document
        self._base = base
        self._context = context
        self._checked: list[Checked] = []

    def run(self) -> Stack | None:
        """The stack with defaults applied and references substituted; None where `problems` has any."""
        top = {key: value for key, value in self._document.items() if key != "engines"}
        top = substitute(top, (), self._context, self.problems)
        stack, bad = self._build(Stack, {**top, "engines": []}, ())
        runtimes = stack.runtimes if stack else {}
        self._engines(top.get("defaults"), runtimes, "runtimes" in bad)
        has_port = isinstance(top.get("gateway"), dict) and top["gateway"].get("port") is not None
        gateway = stack.gateway if stack and has_port and "gateway" not in bad else None
        self.problems += check_ports(self._checked, gateway)
        self.problems += check_keys(stack.gateway) if stack else ()
        self.problems += check_names(self._checked)
        self.problems += check_adapters(self._checked)
        self.problems += check_dependencies(self._checked, self._names())
        if self.problems or stack is None:
            return None
        return stack.model_copy(update={"engines": tuple(it.engine for it in self._checked)})

    def _names(self) -> list[str]:
        engines = self._document.get("engines")
        entries = [entry for entry in engines if isinstance(entry, dict)] if isinstance(engines, list) else []
        return [entry["name"] for entry in entries if isinstance(entry.get("name"), str)]

    def _engines(self, defaults: Any, runtimes: Mapping[str, Runtime], runtimes_are_bad: bool) -> None:
        entries = self._document.get("engines")
        if entries is None:
            is_given = "engines" in self._document
            message = (
                "engines is empty: nothing is stopped because of it"
                if is_given
                else "there is no engines key"
            )
            path = ("engines",) if is_given else ()
            self.problems.append(Problem(path, message, _NO_ENGINES_HINT, is_partial=True))
            return
        if not isinstance(entries, list):
            hint = "write - {name: chat, model: ...}"
            self.problems.append(
                Problem(("engines",), f"a list is wanted, this is {describe(entries)}", hint)
            )
            return
        defaults = defaults if isinstance(defaults, dict) else {}
        known = Runtimes(runtimes, runtimes_are_bad)
        for index, entry in enumerate(entries):
            if isinstance(entry, dict):
                self._engine(index, entry, defaults, known)
            else:
                message = f"an engine is a map, this is {describe(entry)}"
                self.problems.append(Problem(("engines", index), message, "write {name: ..., model: ...}"))

    def _engine(
        self, index: int, entry: dict[str, Any], defaults: Mapping[str, Any], known: "Runtimes"
    ) -> None:
        path: Path = ("engines", index)
        effective = overlay({k: v for k, v in defaults.items() if k != "name"}, entry)
        effective = substitute(effective, path, self._context, self.problems)
        model = effective.get("model")
        if isinstance(model, str) and is_path(model):
            effective["model"] = absolute(model, self._base)
        cwd = effective.get("cwd")
        if isinstance(cwd, str) and cwd and not has_reference(cwd):
            effective["cwd"] = absolute(cwd, self._base)
        lora = anchored(effective.get("lora"), lambda text: absolute(text, self._base))
        if lora is not None:
            place: Path = (*path, "lora")
            effective["lora"] = lora if self._context.is_portable else with_ranks(lora, place, self.problems)
        engine, bad = self._build(Engine, effective, path)
        if engine is None:
            return
        own = frozenset(key for key, value in entry.items() if value is not None)
        runtime = pick_runtime(engine, known.by_name)
        if runtime is None and known.is_incomplete:
            bad = bad | {"runtime"}
        checked = Checked(index, engine, own, bad, runtime, known.names)
        self.problems += check_engine(checked)
        self._model_exists(checked)
        self._checked.append(checked)

    def _model_exists(self, it: Checked) -> None:
        model = it.engine.model
        if self._context.is_portable or "model" in it.bad or it.kind == "external" or not is_path(model):
            return
        if not self._context.exists(model):
            hint = "check the path, or validate with --portable"
            self.problems.append(Problem(it.at("model"), f"the directory {model} does not exist", hint))

    def _build(self, cls: type[S], data: dict[str, Any], path: Path) -> tuple[S | None, frozenset[str]]:
        """The section, without the fields at fault where it has any, and the names of those.

        None where it cannot stand without them. What is left is still checked against other engines.
        """
        try:
            return cls.model_validate(data), frozenset()
        except ValidationError as error:
            errors = error.errors(include_url=False)
        told = {problem.path for problem in self.problems}
        for detail in errors:
            problem = _problem(cls, detail, path)
            given = detail["input"]
            is_open = self._context.is_portable and isinstance(given, str) and has_reference(given)
            if problem.path not in told and not is_open:
                self.problems.append(problem)
        bad = frozenset(str(detail["loc"][0]) for detail in errors if detail["loc"])
        try:
            return cls.model_validate({key: value for key, value in data.items() if key not in bad}), bad
        except ValidationError:
            return None, bad


class Runtimes:
    """The runtimes of the file; `is_incomplete` where some are at fault."""

    def __init__(self, by_name: Mapping[str, Runtime], is_incomplete: bool) -> None:
        self.by_name = by_name
        self.is_incomplete = is_incomplete
        self.names = (*by_name, *BUILTIN_RUNTIMES)


def _problem(cls: type[Section], detail: ErrorDetails, prefix: Path) -> Problem:
    """What pydantic says, in the words of this project."""
    loc = detail["loc"]
    at_key = loc[-1:] == ("[key]",)
    path: Path = (*prefix, *(loc[:-1] if at_key else loc))
    context = detail.get("ctx", {})
    given = describe(detail["input"])
    match detail["type"]:
        case "sage":
            return Problem(path, context["message"], context["hint"], at_key)
        case "missing":
            return Problem(path, "is required", _required_hint(loc), is_partial=True)
        case "extra_forbidden":
            word = str(loc[-1])
            fields = _fields_at(cls, loc[:-1])
            hint = did_you_mean(word, fields) or f"known are {', '.join(sorted(fields))}"
            return Problem(path, f'unknown key "{word}"', hint, at_key=True)
        case "literal_error":
            options = re.findall(r"'([^']*)'", context["expected"])
            expected = context["expected"].replace("'", "")
            return Problem(
                path, f"must be {expected}, is {given}", did_you_mean(str(detail["input"]), options)
            )
        case "greater_than_equal":
            return Problem(path, f"must be at least {context['ge']}, is {detail['input']}")
        case "less_than_equal":
            return Problem(path, f"must be at most {context['le']}, is {detail['input']}")
        case "string_pattern_mismatch":
            return Problem(path, "must start with /", f'did you mean "/{detail["input"]}"?')
        case "string_too_short":
            return Problem(path, "must not be empty")
    for start, wanted, hint in _WANTED:
        if detail["type"].startswith(start):
            return Problem(path, f"{wanted} is wanted, this is {given}", hint if given != "nothing" else "")
    return Problem(path, detail["msg"])


_WANTED = (
    ("string", "text", "put it in quotes"),
    ("int", "a whole number", ""),
    ("tuple", "a list", "write [a, b]"),
    ("dict", "a map", "write {key: value}"),
    ("model", "a map", "write {key: value}"),
)


def _required_hint(loc: Sequence[str | int]) -> str:
    hints = {
        "name": "write name: chat",
        "model": "write model: ORGANISATION/NAME",
        "kind": "write kind: vllm",
    }
    return hints.get(str(loc[-1]), "")


def _fields_at(cls: type[Section], loc: Sequence[str | int]) -> list[str]:
    """The keys that the section at `loc` below `cls` knows."""
    for part in loc:
        if isinstance(part, str) and part in cls.model_fields:
            cls = next(_sections(cls.model_fields[part].annotation), cls)
    return [field.alias or name for name, field in cls.model_fields.items()]


def _sections(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)
