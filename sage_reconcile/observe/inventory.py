"""A described fleet instead of a seen one: for plans in CI, without a GPU (`sage plan --inventory`)."""

import difflib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from sage_reconcile.errors import Fault, StackError
from sage_reconcile.model.observed import ObservedGpu, ObservedNode, ObservedState, PortHolder

Path_ = tuple[str | int, ...]
Name = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Gpus(_Strict):
    """`count` equal GPUs; `memory_mib` and `used_mib` are of each. `index` is that of the first one, where
    it does not follow the GPU before: MIG devices are numbered after all whole GPUs."""

    name: Name
    memory_mib: int = Field(gt=0)
    count: int = Field(default=1, ge=1, le=1024)
    uuid: Name | None = None
    uuids: list[Name] | None = None
    used_mib: int = Field(default=0, ge=0)
    index: int | None = Field(default=None, ge=0)
    mock: bool = False


class _Node(_Strict):
    name: Name
    gpus: list[_Gpus] = []
    ports: list[Annotated[int, Field(ge=1, le=65535)]] = []


class _Inventory(_Strict):
    version: Literal[1]
    nodes: list[_Node] = Field(min_length=1)


# By depth in the file: nodes[i] is 2 deep, nodes[i].gpus[j] 4.
KEYS = {0: tuple(_Inventory.model_fields), 2: tuple(_Node.model_fields), 4: tuple(_Gpus.model_fields)}


def described(path: Path) -> ObservedState:
    """The fleet that the file describes: nothing runs on it. A node without GPUs is a CPU host.

    Raises StackError with every fault of the file, each with its line and column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8 text"
        message = f"the inventory cannot be read: {reason}"
        raise StackError((Fault(str(path), 0, 0, "", message, _nearby(path)),)) from None
    plain = _parsed(path, text)
    try:
        inventory = _Inventory.model_validate(plain)
    except ValidationError as error:
        found = [_explained(item) for item in error.errors(include_url=False)]
    else:
        found = list(_contradictions(inventory))
    if found:
        raise StackError(_placed(path, text, found))
    return ObservedState(at=0.0, nodes=tuple(_node(node) for node in inventory.nodes), is_described=True)


def _nearby(path: Path) -> str:
    """Did-you-mean over the files beside a path where there is no file; "" where none is near."""
    if path.exists():
        return ""
    try:
        beside = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    except OSError:
        return "" if path.parent.exists() else f"the folder {path.parent} does not exist"
    near = difflib.get_close_matches(path.name, beside, n=1)
    return f"did you mean {near[0]}?" if near else ""


def _parsed(path: Path, text: str) -> Any:
    """JSON is tried first: it is much faster to read, and a large fleet has thousands of lines."""
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text, object_pairs_hook=_unique)
        except ValueError:
            pass  # YAML's parser takes flow style, and knows the place of the fault
    try:
        return _yaml().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        message = f"not readable as YAML: {error.problem or error.context}"
        raise StackError((Fault(str(path), line, column, "", message),)) from None
    except RecursionError:
        message = "not readable as YAML: it is nested too deeply"
    except (YAMLError, ValueError) as error:  # ValueError: a date or a number that is none
        message = f"not readable as YAML: {error}"
    raise StackError((Fault(str(path), 0, 0, "", message),))


def _yaml() -> YAML:
    return YAML(typ="safe", pure=True)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


_Found = tuple[Path_, str, str]


def _explained(error: Any) -> _Found:
    """(place, message, hint) of one finding of pydantic, in words."""
    kind, place = error["type"], tuple(error["loc"])
    if kind == "extra_forbidden":
        known = KEYS[len(place) - 1]
        return place, "unknown key", f"known here: {', '.join(known)}"
    if kind == "missing":
        return place, "is needed here", ""
    message = str(error["msg"])
    return place, message[0].lower() + message[1:], ""


def _contradictions(inventory: _Inventory) -> Iterator[_Found]:
    """What each field alone cannot show: names and UUIDs are given once, and as many as GPUs."""
    names: set[str] = set()
    uuids: set[str] = set()
    for n, node in enumerate(inventory.nodes):
        if node.name in names:
            yield (
                ("nodes", n, "name"),
                f"node {node.name!r} is described twice",
                "give each node its own name",
            )
        names.add(node.name)
        following = 0
        for g, group in enumerate(node.gpus):
            place: Path_ = ("nodes", n, "gpus", g)
            first = following if group.index is None else group.index
            if first < following:
                hint = f"the GPU before has index {following - 1}"
                yield (*place, "index"), "indices must go up", hint
            following = first + group.count
            given = _given_uuids(group)
            if given and len(given) != group.count:
                yield (
                    (*place, "count"),
                    f"count is {group.count}, UUIDs are {len(given)}",
                    "give one for each GPU",
                )
            if group.uuid is not None and group.uuids is not None:
                yield (*place, "uuid"), "both uuid and uuids are given", "use one of them"
            if group.used_mib > group.memory_mib:
                yield (*place, "used_mib"), f"more than the GPU has ({group.memory_mib} MiB)", ""
            for uuid in given:
                if uuid in uuids:
                    yield place, f"UUID {uuid!r} is given twice", ""
                uuids.add(uuid)


def _given_uuids(group: _Gpus) -> list[str]:
    return group.uuids or ([group.uuid] if group.uuid is not None else [])


def _node(node: _Node) -> ObservedNode:
    gpus: list[ObservedGpu] = []
    for group in node.gpus:
        given = _given_uuids(group)
        first = _following(gpus) if group.index is None else group.index
        for number in range(group.count):
            index = first + number
            uuid = given[number] if given else f"{node.name}/{index}"
            gpu = ObservedGpu(node.name, index, uuid, group.name, group.memory_mib, group.used_mib)
            gpus.append(replace(gpu, is_mock=group.mock))
    ports = tuple(PortHolder(port) for port in sorted(set(node.ports)))
    return ObservedNode(node.name, tuple(gpus), ports)


def _following(gpus: list[ObservedGpu]) -> int:
    return gpus[-1].index + 1 if gpus else 0


def _placed(path: Path, text: str, found: list[_Found]) -> tuple[Fault, ...]:
    """The findings as faults, in file order. Places take a second parse, and only here."""
    root = _yaml().compose(io.StringIO(text))
    faults = []
    for place, message, hint in found:
        line, column = _position(root, place)
        faults.append(Fault(str(path), line, column, _field(place), message, hint))
    return tuple(sorted(faults))


def _position(root: Node | None, place: Path_) -> tuple[int, int]:
    """Line and column of the key or item, or of what is around it where it is missing."""
    if root is None:
        return 1, 1
    node, mark = root, root.start_mark
    for part in place:
        if isinstance(node, MappingNode):
            entry = next((pair for pair in node.value if pair[0].value == part), None)
            if entry is None:
                break
            mark, node = entry[0].start_mark, entry[1]
        elif isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            mark = node.start_mark
        else:
            break
    return mark.line + 1, mark.column + 1


def _field(place: Path_) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")
