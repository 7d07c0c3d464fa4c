"""Turns in the database: one of a session at a time, whichever worker or gateway it is of.

Who begins one writes its name into the session, for HOLD_S, and renews that. One that was killed is found
out: on the same host at once, elsewhere when that time is over.
"""

import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Connection

from gateway.identity import is_alive, name_of
from gateway.sessions import statements
from gateway.sessions.conversation import New, Said, without_orphans
from gateway.sessions.store import LAST, Store, of_session
from gateway.sessions.values import Held, Viewer, not_found


class Turns:
    """Begins and ends turns. `max_turns` and `max_bytes` bound the history of a request."""

    def __init__(self, store: Store, max_turns: int, max_bytes: int) -> None:
        self._store = store
        self._max_turns = max_turns
        self._max_bytes = max_bytes
        self._place = _place()
        self._process = name_of(os.getpid())
        self._numbers = itertools.count()

    async def begin(self, viewer: Viewer, session_id: str) -> Held | None:
        """Takes the session; None while it is somebody else's turn. Raises RequestError, 404 or 503."""
        holder = f"{self._place} {self._process} {next(self._numbers)}"
        given = {**of_session(viewer, session_id), "the_holder": holder}

        def work(connection: Connection) -> Held | None:
            row = self._take(connection, given)
            if row is None:
                return None
            turns, size, instructions = row
            said = self._history(connection, session_id, turns, size) if turns else ()
            return Held(session_id, holder, instructions, tuple(without_orphans(said)))

        return await self._store.write(work)

    async def end(self, held: Held, new: New, model: str, reply: str) -> bool:
        """Keeps a turn and gives the session up; False if it was cleared, deleted or lost meanwhile."""
        request = new.messages_text
        given = {
            "the_session": held.session_id,
            "the_holder": held.holder,
            "the_size": len(request.encode()) + len(reply.encode()),
            "the_title": new.title(),
            "the_instructions": new.instructions_text,
        }

        def work(connection: Connection) -> bool:
            number = connection.execute(statements.COUNT, given).scalar()
            if number is None:
                return False
            turn = {"the_number": number, "the_model": model, "the_request": request, "the_reply": reply}
            turn |= {"the_session": held.session_id, "the_size": given["the_size"]}
            connection.execute(statements.KEEP, turn)
            return True

        return await self._store.write(work)

    async def give_up(self, held: Held) -> None:
        """Gives the session up and keeps nothing."""
        given = {"the_session": held.session_id, "the_holder": held.holder}
        await self._store.write(lambda connection: _run(connection, statements.GIVE_UP, given))

    async def renew(self, holders: Iterable[str]) -> None:
        """Holds on to what these hold."""
        given = {"the_holders": list(holders)}
        await self._store.write(lambda connection: _run(connection, statements.RENEW, given))

    def _take(self, connection: Connection, given: dict[str, Any]) -> Any:
        row = connection.execute(statements.TAKE, given).first()
        if row is not None:
            return row
        holder = connection.execute(statements.HOLDER, given).scalar()
        if holder is None:
            raise not_found(given["the_session"])
        if not self._is_gone(holder):
            return None
        return connection.execute(statements.TAKE_FROM, {**given, "the_former": holder}).first()

    def _history(self, connection: Connection, session_id: str, turns: int, size: int) -> tuple[Said, ...]:
        """The last turns, as many as the bounds let through."""
        given = {"the_session": session_id, "the_first": 1}
        if turns > self._max_turns or size > self._max_bytes:
            rows = connection.execute(statements.SIZES, {**given, "the_limit": self._max_turns})
            given["the_first"] = _first_within(((row.number, row.size) for row in rows), self._max_bytes)
        return tuple(Said(*row) for row in connection.execute(statements.HISTORY, given))

    def _is_gone(self, holder: str) -> bool:
        """Whether a process of this very place held it and has ended."""
        place, _, rest = holder.partition(" ")
        return place == self._place and not is_alive(rest.partition(" ")[0])


def _run(connection: Connection, statement: Any, given: dict[str, Any]) -> None:
    connection.execute(statement, given)


def _first_within(sizes: Iterable[tuple[int, int]], most: int) -> int:
    """The first of the last turns that are not larger together; `sizes` come with the last one first."""
    first, total = LAST, 0
    for number, size in sizes:
        total += size
        if total > most:
            break
        first = number
    return first


def _place() -> str:
    """Where a process id means one process: this boot of this host, and its container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
