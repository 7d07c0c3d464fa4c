"""`sage completion`: scripts by which shells complete commands, options, engines, presets and stack files.

The scripts only ask `sage __complete WORD...`, so they need no new version when commands change.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Argument, Parameter

SCRIPTS = {
    "bash": """\
_sage() {
  local IFS=$'\\n'
  COMPREPLY=($(sage __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o bashdefault -o default -F _sage sage
""",
    "zsh": """\
#compdef sage
_sage() {
  local -a found
  found=("${(@f)$(sage __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  if [[ -n "${found[1]}" ]]; then compadd -a found; else _files; fi
}
compdef _sage sage
""",
    "fish": """\
function __sage_complete
  set -l found (sage __complete (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)
  if test (count $found) -gt 0
    printf '%s\\n' $found
  else
    __fish_complete_path (commandline -ct)
  end
end
complete -c sage -f -a '(__sage_complete)'
""",
}


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="The shell to write it for.")],
    /,
) -> int:
    """Print the script by which a shell completes sage's commands, options, engines, presets and files.

    In ~/.bashrc, or with `zsh` in ~/.zshrc after compinit: `eval "$(sage completion bash)"`.

    For fish: `sage completion fish > ~/.config/fish/completions/sage.fish`.

    Example: sage completion bash
    """
    print(SCRIPTS[shell], end="")
    return 0


def candidates(words: Sequence[str]) -> list[str]:
    """What the last word, as far as it is typed, may become; [] leaves it to the shell."""
    from sage_reconcile.cli.main import COMMANDS, application

    *before, typed = words or [""]
    if not before:
        return _beginning(typed, (name for name, _, _ in COMMANDS))
    app, path = application(before[0]), []
    for word in before:
        below = _below(app)
        if word not in below:
            break
        app = app[word]
        path.append(word)
    if not path:
        return []
    last = before[-1]
    if (
        len(path) < len(before)
        and last.startswith("-")
        and (found := _of_option(app, last, typed)) is not None
    ):
        return _beginning(typed, found)
    if typed.startswith("-"):
        return _beginning(typed, (name for one in _arguments(app) for name in one.names if name[0] == "-"))
    if below := _below(app):
        return _beginning(typed, below)
    choices = [choice for one in _arguments(app) if _is_positional(one) for choice in one.get_choices() or ()]
    source = POSITIONAL.get(" ".join(path))
    return _beginning(typed, source(typed) if source else choices)


def _beginning(typed: str, words: Iterable[str]) -> list[str]:
    return sorted({word for word in words if word.startswith(typed)})


def _below(app: App) -> list[str]:
    return [word for word in app if not word.startswith("-")]


def _arguments(app: App) -> list[Argument]:
    return list(app.assemble_argument_collection()) if app.default_command else []


def _is_positional(argument: Argument) -> bool:
    return argument.field_info.kind is not inspect.Parameter.KEYWORD_ONLY


def _of_option(app: App, name: str, typed: str) -> list[str] | None:
    """Values of an option; None for a switch, after which something else comes."""
    for one in _arguments(app):
        if name in one.names:
            if one.hint is bool or "bool" in str(one.hint):
                return None
            if choices := one.get_choices():
                return list(choices)
            source = OPTIONS.get(name if name.startswith("--") else one.names[0])
            if name == "-n" and "--name" in one.names:
                source = _presets
            return source(typed) if source else []
    return None


def _engines(typed: str) -> list[str]:
    """Engines that have run here, or stand in adhoc.yaml; processes are not looked at: it must be quick."""
    from sage_reconcile import adhoc
    from sage_reconcile.home import Home

    home = Home.from_environ()
    folders = [path for path in home.run.glob("*/*.*") if path.name.rpartition(".")[2].isdecimal()]
    ran = {(path.parent.name, path.name.rpartition(".")[0]) for path in folders}
    return [*(name for _, name in ran), *(f"{stack}/{name}" for stack, name in ran), *adhoc.entries(home)]


def _own_engines(typed: str) -> list[str]:
    from sage_reconcile import adhoc
    from sage_reconcile.home import Home

    return list(adhoc.entries(Home.from_environ()))


def _presets(typed: str) -> list[str]:
    from sage_reconcile.resources import presets

    return list(presets())


def _stack_files(typed: str) -> list[str]:
    """YAML files, and folders on the way to one, beside what is typed."""
    folder = typed.rpartition("/")[0]
    prefix = f"{folder}/" if "/" in typed else ""
    found = []
    for path in Path(prefix or ".").iterdir() if Path(prefix or ".").is_dir() else ():
        if path.suffix in (".yaml", ".yml"):
            found.append(f"{prefix}{path.name}")
        elif path.is_dir() and not path.name.startswith("."):
            found.append(f"{prefix}{path.name}/")
    return found


Source = Callable[[str], list[str]]
OPTIONS: dict[str, Source] = {
    "--file": _stack_files,
    "--stack": _stack_files,
    "--inventory": _stack_files,
    "--target": _engines,
    "--engine": _own_engines,
}
POSITIONAL: dict[str, Source] = {
    **dict.fromkeys(("validate", "plan", "apply", "watch", "status", "fmt"), _stack_files),
    **dict.fromkeys(("logs", "stop", "restart"), _engines),
    **dict.fromkeys(("llm logs", "llm engine stop", "llm engine remove"), _own_engines),
    "llm preset show": _presets,
}
