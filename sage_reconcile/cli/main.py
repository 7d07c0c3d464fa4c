"""The `sage` command: dispatches to one module per command. Start-up is a hot path: import nothing early."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts import App

COMMANDS: tuple[tuple[str, str, str], ...] = (
    ("validate", "sage_reconcile.cli.validate:validate", "Check stack files; no GPU or network is needed."),
    ("plan", "sage_reconcile.cli.plan:plan", "Show what apply would do, and why."),
    ("apply", "sage_reconcile.cli.apply:apply", "Make the running engines what the stack file says."),
    ("watch", "sage_reconcile.cli.watch:watch", "Apply on every save and whenever reality drifts."),
    ("status", "sage_reconcile.cli.status:status", "Show engines, health, GPU memory and drift."),
    ("logs", "sage_reconcile.cli.logs:logs", "Show what an engine prints."),
    ("stop", "sage_reconcile.cli.stop:stop", "Stop engines now, without editing a file."),
    ("restart", "sage_reconcile.cli.stop:restart", "Give engines new processes, unchanged."),
    ("lease", "sage_reconcile.cli.lease:lease", "Keep engines off a GPU for a while."),
    ("facts", "sage_reconcile.cli.facts:facts", "List what was measured of engines."),
    ("events", "sage_reconcile.cli.events:events", "Show what happened."),
    ("history", "sage_reconcile.cli.history:history", "List what was applied."),
    ("rollback", "sage_reconcile.cli.history:rollback", "Apply an earlier entry of the history again."),
    ("gateway", "sage_reconcile.cli.gateway:app", "Start, stop and look at the OpenAI gateway."),
    ("llm", "sage_reconcile.cli.llm.app:app", "Serve models by single commands, without writing a file."),
    ("embedding", "sage_reconcile.cli.embedding:app", "Start, list and try embedding engines."),
    ("service", "sage_reconcile.cli.service:app", "Let systemd start gateway and engines at boot."),
    ("import", "sage_reconcile.cli.imports:import_", "Write a stack file of engines that run by hand."),
    ("doctor", "sage_reconcile.cli.doctor:doctor", "Check driver, runtimes, limits, disks and ports."),
    ("runtime", "sage_reconcile.cli.runtime:app", "Install, list and remove versions of engine programs."),
    ("inventory", "sage_reconcile.cli.inventory:inventory", "Describe this host for plans elsewhere."),
    ("schema", "sage_reconcile.cli.schema:schema", "Print the JSON schema of the stack file."),
    ("completion", "sage_reconcile.cli.completion:completion", "Print what completes commands in a shell."),
    ("fmt", "sage_reconcile.cli.fmt:fmt", "Format stack files; comments stay."),
)

OUTPUT_FAULTS = (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT, errno.EBADF)
"""Of an error without a file name: the terminal, pipe or file that the output goes to."""

HELP = """sage keeps LLM inference engines in the state that a stack file describes.

Usage: sage COMMAND [ARGS]

Commands:
{commands}

  sage COMMAND --help shows options and an example. FILE defaults to sage.yaml, then stack.yaml.

Options:
  --help, -h     Show this text.
  --version      Show the version.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command line and exits with its status: 0 well, 1 not, 2 and 3 where a command says so."""
    _encode_anything()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["--version"], ["version"]):
        from sage_reconcile.version import __version__

        print(__version__)
        sys.exit(0)
    if not words or words in (["--help"], ["-h"], ["help"]):
        commands = "\n".join(f"  {name:<10} {summary}" for name, _, summary in COMMANDS)
        print(HELP.format(commands=commands), end="")
        sys.exit(0)
    if words[0] == "__complete":
        _complete(words[1:])
        sys.exit(0)
    sys.exit(_run(words))


def _complete(words: list[str]) -> None:
    """For the scripts of `sage completion`; whatever is wrong, a shell is shown nothing."""
    from sage_reconcile.cli.completion import candidates

    with contextlib.suppress(Exception):
        print("\n".join(candidates(words)))


def _encode_anything() -> None:
    """A terminal of another encoding shows "?" for what it has no sign for: no reason to end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _run(words: list[str]) -> int:
    from sage_reconcile.errors import ReconcileError, StackError

    try:
        status = _dispatch(words)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except StackError as error:
        print(error, file=sys.stderr)
    except ReconcileError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has left (`sage status | head`): nothing more can be said, nor at interpreter exit.
        _drop_output()
    except OSError as error:
        if os.environ.get("SAGE_DEBUG"):
            raise
        print(f"error: {_place(error)}: {error.strerror or error}", file=sys.stderr)
        _drop_output()
    except Exception as error:
        if os.environ.get("SAGE_DEBUG"):
            raise
        print(
            f"error: a fault of sage itself: {type(error).__name__}: {error}; "
            "SAGE_DEBUG=1 shows where, please report it",
            file=sys.stderr,
        )
    return 1


def _place(error: OSError) -> str:
    """What was being done to which file. Whoever writes a file sees to it that the error names it."""
    if error.filename:
        return f"cannot use {os.fsdecode(error.filename)}"
    return "cannot write the output" if error.errno in OUTPUT_FAULTS else "the system refused"


def _drop_output() -> None:
    """What is still to be written is lost: the flush at interpreter exit would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(words: list[str]) -> int:
    from cyclopts import CycloptsError, UnusedCliTokensError

    from sage_reconcile.errors import PermanentError

    app = application(words[0])
    try:
        result = app(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        command = " ".join(["sage", *(error.command_chain or ())])
        what = str(error)
        if isinstance(error, UnusedCliTokensError):
            what = f"{command} takes no {' '.join(error.unused_tokens or ())} here"
        what = what if what.endswith("...") else what.removesuffix(".")
        raise PermanentError(f"{what}; see `{command} --help`") from None
    return result if isinstance(result, int) else 0


def application(command: str) -> "App":
    """Only the command that is asked for is imported; the others are known by name, for did-you-mean."""
    from cyclopts import App

    app = App(name="sage", help_flags=["--help", "-h"], version_flags=[], result_action="return_value")
    for name, path, _ in COMMANDS:
        app.command(path if name == command else _noop, name=name)
    return app


def _noop() -> None:
    """Stands for a command that was not asked for."""


if __name__ == "__main__":
    main()
