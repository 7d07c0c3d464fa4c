"""The Python environments of runtimes: what is in them, whether it fits together, whether it can be imported.

Pairings come from the packages' own Requires-Dist, never from a table here: that would be wrong within weeks.
"""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from sage_reconcile.doctor.ask import Answer, ask
from sage_reconcile.doctor.finding import Finding, fault, ok, warning
from sage_reconcile.doctor.interpreters import IMPORTS, NEEDS, Interpreter, environment_of

FACTS_SECONDS = 15.0
# An engine is built against one version of these: another one breaks its import, or gives wrong numbers.
CRITICAL = frozenset({"torch", "transformers", "tokenizers", "huggingface-hub"})
# They break every import of transformers where they do not load, and nothing that sage starts needs them.
OPTIONAL = ("torchvision", "torchaudio", "torchcodec")


async def check_environment(
    one: Interpreter, environ: Mapping[str, str], cuda: tuple[int, int] | None, import_seconds: float
) -> list[Finding]:
    """All findings of one environment. `cuda` is what the driver supports, None without a driver.

    With `import_seconds` 0 nothing is imported.
    """
    if not one.python:
        return [fault(one.called, f"there is no Python at {one.wanted}", _install(one))]
    env = environment_of(one, environ)
    wanted = [NEEDS[one.kind]] if one.kind else []
    facts, imports = await asyncio.gather(
        ask(one.python, ["facts", *wanted], env, FACTS_SECONDS), _imports(one, env, import_seconds)
    )
    if not facts.lines:
        reason = facts.fault or "it said nothing"
        hint = f"try it: {one.python} -c 'import sys; print(sys.version)'"
        return [fault(one.called, f"{one.python} does not run: {reason}", hint)]
    [said] = facts.lines[:1]
    package = NEEDS.get(one.kind, "").partition("[")[0]
    if package and package not in said["packages"]:
        return [fault(one.called, f"{one.python} has no {package}", _install(one))]
    found = [*_pairing(one, said), *_cuda(one, said, cuda), *_imported(one, imports, import_seconds)]
    shown = _versions(said)
    if any(finding.verdict == "fault" for finding in found):
        return found
    return [ok(one.called, f"{one.python}: {shown}"), *found]


async def _imports(one: Interpreter, env: Mapping[str, str], seconds: float) -> Answer | None:
    modules = IMPORTS.get(one.kind, ())
    if not modules or not seconds:
        return None
    return await ask(one.python, ["imports", *modules, *OPTIONAL], env, seconds)


def _versions(said: Any) -> str:
    shown = [f"{said['called'][name]} {version}" for name, version in said["packages"].items()]
    return ", ".join([f"Python {said['python']}", *shown])


def _pairing(one: Interpreter, said: Any) -> Iterator[Finding]:
    """Requirements that the packages declare themselves and the environment does not meet."""
    if not said["can_check"]:
        hint = f"{one.python} -m pip install packaging"
        yield warning(one.called, "requirements cannot be compared: there is no packaging there", hint)
    for unmet in said["unmet"]:
        who = f"{unmet['of']} {unmet['version']}"
        is_there = unmet["has"] is not None
        has = f"there is {unmet['has']}" if is_there else "it is not installed"
        of = f" for {unmet['extra']}" if unmet["extra"] else ""
        message = f"{who} needs {unmet['needs']}{of}, {has}"
        if unmet["name"] in OPTIONAL and not is_there:
            continue
        if unmet["of"] in OPTIONAL:
            yield fault(one.called, message, _without(one, unmet["of"]))
        elif unmet["extra"] or (unmet["name"] in CRITICAL):
            yield fault(one.called, message, _repair(one, who, unmet))
        else:
            yield warning(one.called, message, f"{one.python} -m pip install '{unmet['needs']}'")


def _repair(one: Interpreter, who: str, unmet: Any) -> str:
    if unmet["extra"]:
        return f"{one.python} -m pip install '{unmet['of']}[{unmet['extra']}]'"
    return f"let {unmet['of']} choose: {one.python} -m pip install '{who.replace(' ', '==')}'"


def _without(one: Interpreter, package: str) -> str:
    return f"nothing that sage starts needs it: {one.python} -m pip uninstall -y {package}"


def _cuda(one: Interpreter, said: Any, driver: tuple[int, int] | None) -> Iterator[Finding]:
    """The CUDA version that torch was built for against what the driver supports."""
    built = said["cuda"]
    if built is None or built.startswith("ROCm"):
        return
    if not built:
        if driver is not None and one.on_gpu:
            hint = f"a torch with CUDA in {one.python}, or `use_gpu: false`"
            yield fault(one.called, "torch is built without CUDA, and an engine wants a GPU", hint)
        return
    if driver is None:
        return
    wanted = tuple(int(part) for part in built.split(".")[:2] if part.isdigit())
    supported = "{}.{}".format(*driver)
    if wanted[:1] > driver[:1]:
        hint = f"a newer driver, or a torch built for CUDA {driver[0]}.x"
        yield fault(one.called, f"torch is built for CUDA {built}, the driver supports {supported}", hint)
    elif wanted > driver:
        message = f"torch is built for CUDA {built}, the driver supports {supported}: most of it works"
        yield warning(one.called, message, "a newer driver, if an engine fails to compile a kernel")


def _imported(one: Interpreter, answer: Answer | None, seconds: float) -> Iterator[Finding]:
    if answer is None:
        return
    told = {line["module"]: line["error"] for line in answer.lines}
    for module, error in told.items():
        missing = error.startswith(("ModuleNotFoundError", "ImportError: No module named"))
        if module in OPTIONAL and error and not (missing and f"'{module}'" in error):
            yield fault(one.called, f"{module} cannot be imported: {error}", _without(one, module))
        elif module not in OPTIONAL and error:
            yield fault(one.called, f"{module} cannot be imported: {error}", _after(one, module))
    waited = next((module for module in IMPORTS[one.kind] if module not in told), None)
    if waited is None:
        return
    if answer.is_late:
        hint = f"a cold or slow disk? try it: {one.python} -c 'import {waited}'"
        yield warning(one.called, f"{waited} was not imported within {seconds:g} s", hint)
    else:
        yield fault(one.called, f"importing {waited} {answer.fault or 'ended it'}", _after(one, waited))


def _after(one: Interpreter, module: str) -> str:
    if module.startswith("sage_reconcile"):
        return f"the embedding server is sage's own: install a wheel of sage with {one.python} -m pip"
    return f"see all of it: {one.python} -c 'import {module}'"


def _install(one: Interpreter) -> str:
    """How the environment is made."""
    if one.is_installed:
        return f"sage runtime install {one.kind}"
    if not one.kind:
        return f"make it again, or remove the folder: {one.wanted}"
    what = NEEDS[one.kind] if one.kind != "sentence-transformers" else "sage_reconcile-*.whl[local]"
    if one.wanted == "python3":
        return f"make $SAGE_HOME/runtimes/{one.kind}: python3 -m venv, then pip install '{what}'"
    return f"{one.wanted} -m pip install '{what}'" if one.python else f"python3 -m venv, pip install '{what}'"
