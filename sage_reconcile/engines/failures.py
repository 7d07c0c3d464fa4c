"""A failed start as the fixes read it: what was wanted, what the engine said, what is known of the host."""

import re
from dataclasses import dataclass

from sage_reconcile.model.desired import ArgValue, DesiredEngine, LaunchSpec
from sage_reconcile.model.fixes import Edit, Fix

_WORD_LISTS = ("extra_args", "command")


@dataclass(frozen=True, slots=True)
class Failure:
    """`cause` is one of supervisor.verdicts, `said` the line of the log that shows it, `tail` its last lines.

    `gpu_total_mib` is the memory of the smallest GPU that it was given, None where that is not known. Of the
    host: `models` are the names of the models that it has, `ports` are taken or spoken for.
    """

    engine: DesiredEngine
    cause: str
    said: str = ""
    tail: tuple[str, ...] = ()
    gpu_total_mib: int | None = None
    models: tuple[str, ...] = ()
    ports: frozenset[int] = frozenset()

    @property
    def spec(self) -> LaunchSpec:
        return self.engine.launch

    @property
    def takes_vllm_flags(self) -> bool:
        """Whether its flags are vLLM's: the runtime, or a command that starts it."""
        return self.spec.runtime == "vllm" or any("vllm" in word for word in self.spec.command)

    def find(self, pattern: str) -> re.Match[str] | None:
        """The pattern in what it said, else in its last lines, the newest first; capitals do not matter."""
        for line in (self.said, *reversed(self.tail)):
            if found := re.search(pattern, line, re.IGNORECASE):
                return found
        return None

    def number(self, pattern: str) -> int | None:
        """The pattern's first group as a whole number."""
        found = self.find(pattern)
        return int(float(found[1])) if found else None

    def flag(self, key: str, value: ArgValue) -> Edit:
        """The edit that gives a flag this value, wherever it stands now: `args`, `extra_args`, `command`.

        Words win over `args`, since they come later on the command line.
        """
        for place in _WORD_LISTS:
            words: tuple[str, ...] = getattr(self.spec, place)
            for index in reversed(range(len(words))):
                name, equals, _ = words[index].replace("_", "-").partition("=")
                if name != f"--{key}":
                    continue
                if equals:
                    return Edit((place, index), f"--{key}={value}")
                if index + 1 < len(words) and not words[index + 1].startswith("--"):
                    return Edit((place, index + 1), str(value))
        return Edit(("args", key), value)

    def edit(self, why: str, *edits: Edit) -> Fix:
        return Fix(self.engine.name, self.cause, why, edits)

    def advise(self, instead: str, why: str = "") -> Fix:
        return Fix(self.engine.name, self.cause, why, (), instead)
