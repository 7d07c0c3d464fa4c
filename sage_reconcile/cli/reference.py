"""Writes docs/cli.md from the commands themselves: `python -m sage_reconcile.cli.reference [PATH]`.

Names, values, defaults and help come from the cyclopts applications, so the page says what `--help` says.
"""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

from cyclopts import App, Argument

from sage_reconcile.cli.main import COMMANDS

HEAD = """# Command line

Generated from the commands by `make docs`; do not edit.

FILE is a stack file; left out, it is `sage.yaml`, then `stack.yaml`, in the working directory. Where `-f` can
be repeated, each file is laid over those before it. `SAGE_HOME` (default `~/.sage`) says which engines are
meant: everything that sage starts, records and stops belongs to one SAGE_HOME. `sage --version` prints the
version.

Exit status: 0 when all is well, 1 when not (the reason is on stderr, one line, or one line a fault), 130
after Ctrl-C; steps that Ctrl-C cut short make it 1, and a watcher that is told to end ends with 0.
`sage plan --detailed-exitcode` adds 2 (there are changes) and 3 (something is blocked or held).
`SAGE_DEBUG=1` shows where a fault of sage itself happened.

| command | does |
|---|---|
"""


def commands() -> App:
    """The whole command line; every command is imported."""
    app = App(name="sage", help_flags=["--help", "-h"], version_flags=[], result_action="return_value")
    for name, path, _ in COMMANDS:
        app.command(path, name=name)
    return app


def leaves(app: App) -> Iterator[tuple[str, App]]:
    """Every command that does something, with its words ("gateway start"), in the order of the overview."""
    for name, _, _ in COMMANDS:
        yield from _leaves(name, app[name])


def _leaves(words: str, command: App) -> Iterator[tuple[str, App]]:
    below = [word for word in command if not word.startswith("-")]
    if not below:
        yield words, command
    for word in below:
        yield from _leaves(f"{words} {word}", command[word])


def reference() -> str:
    """The page as Markdown."""
    found = list(leaves(commands()))
    parts = [HEAD]
    parts += [f"| [`sage {words}`](#{_anchor(words)}) | {_summary(command)} |\n" for words, command in found]
    parts += [_section(words, command) for words, command in found]
    return "".join(parts)


def _anchor(words: str) -> str:
    return f"sage-{words.replace(' ', '-')}"


def _text(command: App) -> tuple[list[str], str]:
    """The paragraphs of a command's help, and its example."""
    paragraphs = [" ".join(part.split()) for part in inspect.cleandoc(command.help).split("\n\n")]
    examples = [part.removeprefix("Example: ") for part in paragraphs if part.startswith("Example: ")]
    return [part for part in paragraphs if not part.startswith("Example: ")], "".join(examples)


def _summary(command: App) -> str:
    return _cell(_text(command)[0][0])


def _section(words: str, command: App) -> str:
    paragraphs, example = _text(command)
    arguments = list(command.assemble_argument_collection())
    positional = [argument for argument in arguments if _is_positional(argument)]
    options = [argument for argument in arguments if not _is_positional(argument)]
    usage = " ".join(
        [f"sage {words}", *(["[OPTIONS]"] if options else []), *(_usage(argument) for argument in positional)]
    )
    lines = ["", f"## sage {words}", "", "\n\n".join(paragraphs), "", f"    {usage}", ""]
    if arguments:
        lines += ["| option | value | default | meaning |", "|---|---|---|---|"]
        lines += [_row(argument) for argument in (*positional, *options)]
        lines.append("")
    return "\n".join([*lines, f"Example: `{example}`", ""])


def _is_positional(argument: Argument) -> bool:
    return argument.field_info.kind is not inspect.Parameter.KEYWORD_ONLY


def _word(argument: Argument) -> str:
    """FILE of a positional argument."""
    return argument.name.removeprefix("--").upper()


def _usage(argument: Argument) -> str:
    word = f"{_word(argument)}..." if _is_list(argument) else _word(argument)
    return word if argument.required else f"[{word}]"


def _is_list(argument: Argument) -> bool:
    return "list[" in str(argument.hint)


def _row(argument: Argument) -> str:
    names = ", ".join(f"`{name}`" for name in argument.names)
    if _is_positional(argument):
        names = f"`{_word(argument)}`"
    environment = "".join(f", else `{name}`" for name in argument.parameter.env_var or ())
    meaning = _cell(argument.parameter.help or "")
    return f"| {names} | {_value(argument)}{environment} | {_default(argument)} | {meaning} |"


def _value(argument: Argument) -> str:
    """What the option takes, in words; nothing for a switch."""
    if choices := argument.get_choices():
        return ", ".join(f"`{choice}`" for choice in choices)
    hint = str(argument.hint)
    words = (("bool", ""), ("int", "whole number"), ("float", "number"), ("Path", "path"), ("str", "text"))
    word = next(word for kind, word in words if kind in hint)
    return f"{word}, repeatable" if _is_list(argument) else word


def _default(argument: Argument) -> str:
    default = argument.field_info.default
    if argument.required:
        return "required"
    if default is True and len(argument.names) > 1:
        return f"`{argument.names[0]}`"
    return "" if default in (None, False, "", inspect.Parameter.empty) else f"`{default}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/cli.md")
    target.write_text(reference(), "utf-8")
