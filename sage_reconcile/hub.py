"""Models on the Hugging Face hub and in its cache. The only importer of huggingface_hub, which is optional.

The library is imported by the functions, not by the module: it takes a third of a second.
"""

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sage_reconcile.doctor.finding import Verdict
from sage_reconcile.doctor.hub import check_hub
from sage_reconcile.errors import BlockedError, PermanentError
from sage_reconcile.home import Home

MISSING = "this needs the hub's library: pip install 'sage-reconcile[models]'"


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model on this disk. `revisions` are commits with their names; "" for a directory of SAGE_HOME.

    `size` in bytes, `used` in epoch seconds.
    """

    name: str
    path: Path
    size: int
    files: int
    used: float
    revisions: tuple[str, ...] = ()

    @property
    def is_cached(self) -> bool:
        """Whether it lies in the hub's cache, which may be cleared, and not in $SAGE_HOME/models."""
        return bool(self.revisions)


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model on the hub. `updated` is a date, "" where the hub does not say."""

    name: str
    downloads: int
    task: str
    updated: str


def models(home: Home) -> list[CachedModel]:
    """The models of this disk, by name. Raises PermanentError without the library."""
    return sorted([*_directories(home), *_cached()], key=lambda model: (model.name.lower(), str(model.path)))


def _directories(home: Home) -> Iterator[CachedModel]:
    for path in sorted(home.models.glob("*/*")):
        if path.is_dir():
            files = [file for file in path.rglob("*") if file.is_file()]
            stats = [file.stat() for file in files]
            name = f"{path.parent.name}/{path.name}"
            size, used = sum(one.st_size for one in stats), max((one.st_atime for one in stats), default=0.0)
            yield CachedModel(name, path, size, len(files), used)


def _cached() -> Iterator[CachedModel]:
    with _library():
        from huggingface_hub import scan_cache_dir
        from huggingface_hub.errors import CacheNotFound
    try:
        found = scan_cache_dir()
    except CacheNotFound:
        return
    for repo in found.repos:
        if repo.repo_type == "model":
            revisions = sorted(repo.revisions, key=lambda one: one.commit_hash)
            names = tuple(f"{one.commit_hash[:12]} {','.join(sorted(one.refs))}".strip() for one in revisions)
            yield CachedModel(
                repo.repo_id, repo.repo_path, repo.size_on_disk, repo.nb_files, repo.last_accessed, names
            )


def snapshot(model: CachedModel) -> Path:
    """The folder with the model's files: of the hub's cache that of `main`, else the only one there is."""
    if not model.is_cached:
        return model.path
    main = model.path / "refs" / "main"
    with contextlib.suppress(OSError):
        return model.path / "snapshots" / main.read_text(encoding="utf-8").strip()
    return next(iter(sorted((model.path / "snapshots").iterdir())), model.path)


def config_of(model: CachedModel) -> dict[str, Any]:
    """What config.json says, {} without one."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((snapshot(model) / "config.json").read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


def download(model: str, revision: str | None) -> Path:
    """Fetches a model into the hub's cache, without files that are there; shows bars on a terminal.

    Raises BlockedError where the hub cannot be reached, PermanentError for what it has not or does not give.
    """
    with _library():
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils.tqdm import disable_progress_bars
    if not sys.stderr.isatty():
        disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what goes wrong is told below, once
    with _told(model, revision):
        return Path(snapshot_download(model, revision=revision))


def delete(model: CachedModel) -> int:
    """Removes every revision from the hub's cache; the bytes that are free again."""
    with _library():
        from huggingface_hub import scan_cache_dir
    found = scan_cache_dir()
    hashes = [
        revision.commit_hash
        for repo in found.repos
        if repo.repo_path == model.path
        for revision in repo.revisions
    ]
    strategy = found.delete_revisions(*hashes)
    strategy.execute()
    return int(strategy.expected_freed_size)


def remote(search: str, limit: int) -> list[RemoteModel]:
    """Models of the hub by downloads. Raises as `download` does."""
    with _library():
        from huggingface_hub import HfApi
    with _told(search, None):
        found = HfApi().list_models(search=search or None, limit=limit, sort="downloads")
        return [
            RemoteModel(
                one.id,
                one.downloads or 0,
                one.pipeline_tag or "",
                one.last_modified.date().isoformat() if one.last_modified else "",
            )
            for one in found
        ]


@contextlib.contextmanager
def _library() -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise PermanentError(MISSING) from None


@contextlib.contextmanager
def _told(model: str, revision: str | None) -> Iterator[None]:
    """What the library raises, in words: who did not answer, and what next."""
    import httpx2
    from huggingface_hub import constants, errors

    _require_hub()
    place = constants.ENDPOINT
    mirror = "set HF_ENDPOINT to a mirror, or put the model into $SAGE_HOME/models/ORGANISATION/NAME"
    offline = f"HF_HUB_OFFLINE is set, so {place} is not asked; unset it, or {mirror}"
    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise BlockedError(offline) from None
    except errors.GatedRepoError:
        raise PermanentError(
            f"{model} is gated: accept its terms at {place}/{model}, then set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise PermanentError(f"{model} has no revision {revision} at {place}") from None
    except errors.RepositoryNotFoundError:
        raise PermanentError(
            f"{place} has no model {model}, or it is private: check the name, or set HF_TOKEN"
        ) from None
    except errors.HFValidationError as error:
        raise PermanentError(f"{model} is no name of a model: {str(error).splitlines()[0]}") from None
    except errors.HfHubHTTPError as error:
        raise BlockedError(f"{place} answered: {str(error).splitlines()[0]}") from None
    except (errors.LocalEntryNotFoundError, httpx2.TransportError) as error:
        if constants.HF_HUB_OFFLINE:
            raise BlockedError(offline) from None
        reason = str(error).splitlines()[0].rstrip(".")
        raise BlockedError(f"{place} broke off: {reason}; run it again, or {mirror}") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise BlockedError(f"{place} sent too little: run it again") from None


def _require_hub() -> None:
    """Raises BlockedError where the hub does not answer: the library would ask it again and again first."""
    for finding in asyncio.run(check_hub(os.environ)):
        if finding.verdict is not Verdict.OK:
            raise BlockedError(f"{finding.message}; {finding.next}")
