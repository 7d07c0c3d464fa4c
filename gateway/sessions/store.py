"""The sessions in their database. What fails there is told as a RequestError (503)."""

import secrets
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from gateway.errors import RequestError
from gateway.sessions import statements
from gateway.sessions.conversation import Said
from gateway.sessions.database import Database, Work, make_tables, open_database
from gateway.sessions.values import Conversation, Session, Viewer, not_found

T = TypeVar("T")
LAST = 2**31 - 1
# How many are named in one statement.
AT_ONCE = 500


class Store:
    """One database. Everything raises RequestError: 404 for what is not there, 503 for faults."""

    def __init__(self, database: Database, shown: str) -> None:
        """`shown` is what messages call it."""
        self._database = database
        self._shown = shown

    @classmethod
    async def open(cls, url: str, home: Path) -> "Store":
        """The database of this URL, or that of the home; its tables are made if there are none."""
        shown = "the database of SAGE_SESSIONS_URL" if url else str(home / "sage.db")
        try:
            store = cls(open_database(url or f"sqlite:///{home / 'sage.db'}"), shown)
        except (ValueError, OSError) as error:
            raise _unavailable(shown, error) from error
        await store.write(make_tables)
        return store

    async def close(self) -> None:
        """Ends its connections."""
        await self._database.close()

    async def read(self, work: Work[T]) -> T:
        """Runs a transaction that changes nothing."""
        try:
            return await self._database.read(work)
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise _unavailable(self._shown, error) from error

    async def write(self, work: Work[T]) -> T:
        """Runs a transaction. What is raised in it undoes it."""
        try:
            return await self._database.write(work)
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            raise _unavailable(self._shown, error) from error

    async def create(self, viewer: Viewer, title: str) -> Session:
        """A new one, with an id that nobody can guess."""
        made = f"sess_{secrets.token_urlsafe(18)}"
        given = {"the_name": viewer.name, "the_title": title, "the_owner": viewer.owner, "the_session": made}
        return Session(*await self.write(lambda c: c.execute(statements.CREATE, given).one()))

    async def page(self, viewer: Viewer, limit: int, after: str) -> list[Session]:
        """Up to `limit` sessions, newest first, from the one after `after` ("" for the first) on."""

        def work(connection: Connection) -> list[Session]:
            given = {**of_viewer(viewer), "the_limit": limit}
            statement = statements.PAGE
            if after:
                last = _find(connection, viewer, after)
                given |= {"the_created_at": last.created_at, "the_last": last.id}
                statement = statements.PAGE_AFTER
            return [Session(*row) for row in connection.execute(statement, given)]

        return await self.read(work)

    async def conversation(self, viewer: Viewer, session_id: str, limit: int, before: int) -> Conversation:
        """A session with its last `limit` turns, of those before the turn `before` (0: of all)."""

        def work(connection: Connection) -> Conversation:
            *shown, instructions = _find(connection, viewer, session_id)
            given = {"the_session": session_id, "the_limit": limit, "the_before": before or LAST}
            said = [Said(*row) for row in connection.execute(statements.SAID, given)]
            return Conversation(Session(*shown), instructions, tuple(reversed(said)))

        return await self.read(work)

    async def set_title(self, viewer: Viewer, session_id: str, title: str) -> Session:
        """Gives it another title."""

        def work(connection: Connection) -> Session:
            given = {**of_session(viewer, session_id), "the_title": title}
            return Session(*_one(connection, session_id, statements.SET_TITLE, given))

        return await self.write(work)

    async def clear(self, viewer: Viewer, session_id: str) -> Session:
        """Forgets what was said; a turn that is under way is not kept either."""

        def work(connection: Connection) -> Session:
            given = of_session(viewer, session_id)
            cleared = Session(*_one(connection, session_id, statements.CLEAR, given))
            connection.execute(statements.DELETE_TURNS, {"the_session": session_id})
            return cleared

        return await self.write(work)

    async def delete(self, viewer: Viewer, session_id: str) -> None:
        """Forgets all of it."""

        def work(connection: Connection) -> None:
            _find(connection, viewer, session_id)
            connection.execute(statements.DELETE_TURNS, {"the_session": session_id})
            _one(connection, session_id, statements.DELETE, of_session(viewer, session_id))

        await self.write(work)

    async def cleanup(self, viewer: Viewer, max_age_s: float) -> int:
        """Deletes what was not used for so long, but where a turn is under way; how many those were."""

        def work(connection: Connection) -> int:
            given = {**of_viewer(viewer), "the_age": max_age_s}
            ids = list(connection.scalars(statements.OLD, given))
            for at in range(0, len(ids), AT_ONCE):
                some = {"the_sessions": ids[at : at + AT_ONCE]}
                connection.execute(statements.DELETE_TURNS_OF_SOME, some)
                connection.execute(statements.DELETE_SOME, some)
            return len(ids)

        return await self.write(work)


def of_viewer(viewer: Viewer) -> dict[str, Any]:
    """What statements need to know of who asks."""
    return {"the_viewer_sees_all": viewer.sees_all, "the_owner": viewer.owner}


def of_session(viewer: Viewer, session_id: str) -> dict[str, Any]:
    """What statements about one session need to know. Raises RequestError (404) for no id at all."""
    if not session_id.isascii() or not session_id.isprintable():
        raise not_found(session_id)
    return {"the_viewer_sees_all": viewer.sees_all, "the_owner": viewer.owner, "the_session": session_id}


def _find(connection: Connection, viewer: Viewer, session_id: str) -> Any:
    return _one(connection, session_id, statements.FIND, of_session(viewer, session_id))


def _one(connection: Connection, session_id: str, statement: Any, given: dict[str, Any]) -> Any:
    """The one row of it. Raises RequestError (404) if there is none."""
    row = connection.execute(statement, given).first()
    if row is None:
        raise not_found(session_id)
    return row


def _unavailable(shown: str, error: BaseException) -> RequestError:
    """503; of the error only what the database itself says, as its text repeats what was to be stored."""
    cause = getattr(error, "orig", None) or error
    reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
    message = f"Sessions are not to be had: {shown}: {reason}."
    return RequestError(503, message, "sessions_unavailable", retry_after="5")
