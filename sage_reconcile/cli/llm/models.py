"""`sage llm model`: models on this disk, and on the hub."""

from typing import TYPE_CHECKING, Annotated, Any

import cyclopts

from sage_reconcile.cli.stackfile import Json

if TYPE_CHECKING:
    from sage_reconcile.home import Home
    from sage_reconcile.hub import CachedModel

app = cyclopts.App(
    name="model",
    help="Look at, fetch and remove models.\n\nExample: sage llm model download Qwen/Qwen2.5-7B-Instruct",
)
Model = Annotated[str, cyclopts.Parameter(help="ORGANISATION/NAME, as the hub writes it.")]


@app.command(name="list")
def list_(*, json: Json = False) -> int:
    """List the models of this disk: the Hugging Face cache, and $SAGE_HOME/models.

    Example: sage llm model list
    """
    from rich.table import Table

    from sage_reconcile import hub
    from sage_reconcile.home import Home
    from sage_reconcile.render.print import console, print_json

    found = hub.models(Home.from_environ())
    if json:
        print_json({"models": [_data(model) for model in found]})
        return 0
    if not found:
        print("no model on this disk; `sage llm model download MODEL` fetches one")
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("MODEL", "SIZE", "FILES", "USED", "WHERE"):
        is_number = title in ("SIZE", "FILES")
        table.add_column(title, overflow="fold", justify="right" if is_number else "left")
    for model in found:
        where = "cache" if model.is_cached else str(model.path)
        table.add_row(model.name, _size(model.size), str(model.files), _day(model.used), where)
    console().print(table, soft_wrap=False)
    return 0


@app.command
def show(model: Model, /, *, json: Json = False) -> int:
    """Show a model of this disk: where it lies, its revisions, what its config says, and who uses it.

    Example: sage llm model show Qwen/Qwen2.5-7B-Instruct
    """
    from sage_reconcile import hub
    from sage_reconcile.home import Home
    from sage_reconcile.render.print import print_json

    home = Home.from_environ()
    shown = []
    for found in _found(home, model):
        config = hub.config_of(found)
        kept = ("architectures", "torch_dtype", "dtype", "max_position_embeddings")
        data = {**_data(found), "config": {key: config[key] for key in kept if key in config}}
        shown.append({**data, "engines": _users(home, model)})
    if json:
        print_json({"models": shown})
        return 0
    for one in shown:
        said = ", ".join(f"{key} {value}" for key, value in one["config"].items())
        for title, value in (
            ("model", one["name"]),
            ("path", one["path"]),
            ("size", f"{_size(one['size_bytes'])} in {one['files']} files"),
            ("revisions", ", ".join(one["revisions"]) or "none: a directory"),
            ("config", said or "none"),
            ("engines", ", ".join(one["engines"]) or "none"),
        ):
            print(f"{title:<10} {value}")
    return 0


@app.command
def download(
    model: Model,
    /,
    *,
    revision: Annotated[
        str | None, cyclopts.Parameter(help="Branch, tag or commit; else the hub's main.")
    ] = None,
) -> int:
    """Fetch a model into the Hugging Face cache; files that are there already are not fetched again.

    HF_ENDPOINT names a mirror, HF_TOKEN a token for gated models, HF_HOME the cache.

    Example: sage llm model download Qwen/Qwen2.5-7B-Instruct --revision main
    """
    from sage_reconcile import hub

    path = hub.download(model, revision)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    print(f"{model} is there: {_size(size)}, commit {path.name[:12]}, {path}")
    return 0


@app.command
def delete(
    model: Model,
    /,
    *,
    yes: Annotated[bool, cyclopts.Parameter(name=["--yes", "-y"], negative="", help="Do not ask.")] = False,
) -> int:
    """Remove a model, every revision of it, from the Hugging Face cache; not while an engine uses it.

    Example: sage llm model delete Qwen/Qwen2.5-7B-Instruct
    """
    from sage_reconcile import hub
    from sage_reconcile.cli.apply import ask_yes
    from sage_reconcile.errors import BlockedError, PermanentError
    from sage_reconcile.home import Home

    home = Home.from_environ()
    cached = [one for one in _found(home, model) if one.is_cached]
    if not cached:
        [kept] = _found(home, model)
        raise PermanentError(
            f"{model} is the directory {kept.path}, not sage's to delete: remove it yourself"
        )
    if users := _users(home, model):
        raise BlockedError(f"{model} is used by {', '.join(users)}: stop that first")
    question = f"Delete {model}, {_size(cached[0].size)}, from {cached[0].path.parent}? [y/N] "
    if not yes and not ask_yes(question):
        return 1
    print(f"{model}: {_size(hub.delete(cached[0]))} are free again.")
    return 0


@app.command
def list_remote(
    search: Annotated[str, cyclopts.Parameter(help="Part of the name.")] = "",
    /,
    *,
    limit: Annotated[
        int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=1, lte=1000), help="How many.")
    ] = 20,
    json: Json = False,
) -> int:
    """List models of the hub, those that are fetched most first.

    Example: sage llm model list-remote Qwen2.5 --limit 5
    """
    from dataclasses import asdict

    from rich.table import Table

    from sage_reconcile import hub
    from sage_reconcile.render.print import console, print_json

    found = hub.remote(search, limit)
    if json:
        print_json({"models": [asdict(model) for model in found]})
        return 0
    if not found:
        print(f"the hub has no model whose name holds {search!r}")
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("MODEL", "DOWNLOADS", "TASK", "UPDATED"):
        table.add_column(title, overflow="fold", justify="right" if title == "DOWNLOADS" else "left")
    for model in found:
        table.add_row(model.name, f"{model.downloads:,}", model.task or "-", model.updated or "-")
    console().print(table, soft_wrap=False)
    return 0


def _found(home: "Home", name: str) -> "list[CachedModel]":
    """The places where a model lies. Raises PermanentError where it is in none."""
    from sage_reconcile import hub
    from sage_reconcile.errors import PermanentError
    from sage_reconcile.stack.problems import did_you_mean

    every = hub.models(home)
    found = [model for model in every if model.name == name]
    if not found:
        hint = did_you_mean(name, {model.name for model in every})
        raise PermanentError(
            f"no model {name} on this disk; {hint or f'`sage llm model download {name}` fetches it'}"
        )
    return found


def _users(home: "Home", model: str) -> list[str]:
    """Engines that run of it, of other SAGE_HOMEs too."""
    import asyncio

    from sage_reconcile.observe.look import LocalEyes

    observed = asyncio.run(LocalEyes(home).look())
    marks = [one.mark for one in observed.launches]
    marks += [one.mark for one in observed.foreign] + [one.mark for one in observed.orphans]
    return sorted({str(mark.replica) for mark in marks if mark.spec.model == model})


def _data(model: "CachedModel") -> dict[str, Any]:
    return {
        "name": model.name,
        "path": str(model.path),
        "size_bytes": model.size,
        "files": model.files,
        "revisions": list(model.revisions),
        "where": "cache" if model.is_cached else "home",
    }


def _size(size: float) -> str:
    """Bytes as people write them."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _day(at: float) -> str:
    import time

    return time.strftime("%Y-%m-%d", time.localtime(at)) if at else "-"
