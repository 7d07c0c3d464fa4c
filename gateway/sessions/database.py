"""The database of sessions: opened by its URL, made where there is none, and private."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from advanced_alchemy.config import EngineConfig, SQLAlchemyAsyncConfig, SQLAlchemySyncConfig
from sqlalchemy import event, text
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError

from gateway.sessions.tables import SessionRow, TurnRow

T = TypeVar("T")
# A transaction of a database, as it runs in the one or the other kind of it.
Work = Callable[[Connection], T]

# Of one worker, to PostgreSQL.
CONNECTIONS = 4
CONNECT_S = 10
# How long a writer of SQLite waits for another one, seconds; a transaction takes a fraction of a millisecond.
BUSY_S = 10
# So many transactions apart, what was written is moved from the log into the file, beside the next ones.
CHECKPOINT_EVERY = 1000
# Pages; only if that did not come to it.
CHECKPOINT_AT_LATEST = 20_000
# Any number, the same in every worker: one of them makes the tables.
_MAKING_TABLES = 0x73616765
_TABLES = [SessionRow.metadata.tables[row.__tablename__] for row in (SessionRow, TurnRow)]


class Database(Protocol):
    """Runs transactions. What is raised in one undoes it, and is raised again."""

    async def read(self, work: Work[T]) -> T:
        """Runs one that changes nothing."""

    async def write(self, work: Work[T]) -> T:
        """Runs one that changes something."""

    async def close(self) -> None:
        """Ends the connections."""


def open_database(url: str) -> Database:
    """The database of this URL; it is not asked yet. Raises OSError, and ValueError, which
    names no password."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ValueError("it is no URL like postgresql://USER@HOST/DATABASE or sqlite:////PATH") from error
    kind = parsed.drivername.partition("+")[0]
    if kind == "sqlite":
        return Sqlite(parsed)
    if kind in ("postgres", "postgresql"):
        return Postgres(parsed)
    raise ValueError(f"{kind} is not known: postgresql and sqlite are")


def make_tables(connection: Connection) -> None:
    """Makes what is missing; several workers may at once."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MAKING_TABLES})
    SessionRow.metadata.create_all(connection, tables=_TABLES)


class Sqlite:
    """A file. Every transaction is one errand of a thread: an asynchronous driver would run an errand for
    each step of it, ten times as many, at a tenth of a millisecond each."""

    def __init__(self, url: URL) -> None:
        if not url.database or url.database == ":memory:":
            raise ValueError("SQLite needs a file, as all workers share it: sqlite:////PATH")
        _make_private(Path(url.database))
        config = SQLAlchemySyncConfig(
            connection_string=url.set(drivername="sqlite").render_as_string(hide_password=False),
            engine_config=EngineConfig(pool_size=2, max_overflow=0, connect_args=_SQLITE_ARGUMENTS),
        )
        self._engine = config.get_engine()
        event.listen(self._engine, "connect", _tune)
        event.listen(self._engine, "begin", _begin)
        self._writes = 0
        # One writes, as SQLite lets one write at a time; lists are read beside it.
        self._writer, self._reader = (ThreadPoolExecutor(1, f"sessions-{name}") for name in ("write", "read"))

    async def read(self, work: Work[T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, partial(self._run, work, True))

    async def write(self, work: Work[T]) -> T:
        self._writes += 1
        if self._writes % CHECKPOINT_EVERY == 0:
            self._reader.submit(self._checkpoint)
        return await asyncio.get_running_loop().run_in_executor(self._writer, partial(self._run, work, False))

    async def close(self) -> None:
        for executor in (self._writer, self._reader):
            await asyncio.to_thread(executor.shutdown)
        self._engine.dispose()

    def _run(self, work: Work[T], is_read: bool) -> T:
        _THREAD.is_reading = is_read
        with self._engine.begin() as connection:
            return work(connection)

    def _checkpoint(self) -> None:
        # Whoever writes would wait for the disk, if SQLite did it whenever it thinks it time. The log begins
        # anew only where nobody has written meanwhile: the little that came is moved between two writers.
        self._move_log()
        with contextlib.suppress(RuntimeError):  # it is being closed
            self._writer.submit(self._move_log)

    def _move_log(self) -> None:
        _THREAD.is_reading = None
        with self._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").close()


class Postgres:
    """A server, asked from the event loop."""

    def __init__(self, url: URL) -> None:
        # As libpq spells it; the driver has another word.
        query = {"ssl" if name == "sslmode" else name: value for name, value in url.query.items()}
        config = SQLAlchemyAsyncConfig(
            connection_string=url.set(drivername="postgresql+asyncpg", query=query).render_as_string(
                hide_password=False
            ),
            engine_config=EngineConfig(
                pool_size=CONNECTIONS,
                max_overflow=0,
                # What the server has closed meanwhile is found out before it is used.
                pool_pre_ping=True,
                connect_args={"timeout": CONNECT_S},
            ),
        )
        self._engine = config.get_engine()

    async def read(self, work: Work[T]) -> T:
        return await self.write(work)

    async def write(self, work: Work[T]) -> T:
        async with self._engine.begin() as connection:
            return await connection.run_sync(work)

    async def close(self) -> None:
        await self._engine.dispose()


_SQLITE_ARGUMENTS = {"timeout": BUSY_S, "check_same_thread": False}
# Whether the thread's transaction only reads; None: it is none.
_THREAD = threading.local()


def _make_private(path: Path) -> None:
    """Its companions (-wal, -shm) get the mode of the file itself."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _tune(connection: Any, _: object) -> None:
    # Transactions begin as `_begin` says, not where Python's module guesses.
    connection.isolation_level = None
    checkpoint = f"wal_autocheckpoint={CHECKPOINT_AT_LATEST}"
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "cache_size=-1024", checkpoint):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    if _THREAD.is_reading is not None:
        # Who reads first and then writes could find that somebody else has written in between.
        connection.exec_driver_sql("BEGIN" if _THREAD.is_reading else "BEGIN IMMEDIATE")
