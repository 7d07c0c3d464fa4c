"""The sessions of one worker: whose turn is next here, and the database, opened when somebody first asks."""

import asyncio
import importlib
import importlib.util
import logging
import os
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.errors import RequestError
from gateway.sessions.turn import Turn
from gateway.settings import SessionSettings
from sage_reconcile import secrets

if TYPE_CHECKING:
    from gateway.exchange import Exchange
    from gateway.sessions.store import Store
    from gateway.sessions.turns import Turns

logger = logging.getLogger("gateway")

CHAT = b"/v1/chat/completions"
# A third of the time for which a session is held.
RENEW_S = 10.0


class Sessions:
    """Costs nothing until somebody asks for a session: the libraries of the database take 28 MiB."""

    def __init__(self, settings: SessionSettings, home: Path) -> None:
        self._settings = settings
        self._home = home
        self.is_on = settings.is_on and importlib.util.find_spec("advanced_alchemy") is not None
        self._opening: asyncio.Task[tuple[Store, Turns]] | None = None
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}
        self._holders: set[str] = set()
        self._renewing: asyncio.Task[None] | None = None

    def take(self, exchange: "Exchange") -> None:
        """Takes a request that names a session: a chat waits for its turn, all others are dispatched."""
        if self.is_on and exchange.asked.path == CHAT:
            Turn(self, exchange).start()
        else:
            exchange.dispatch()

    async def store(self) -> "Store":
        """The database. Raises RequestError: 501 where there are no sessions, 503 if it cannot be opened."""
        return (await self._opened())[0]

    async def turns(self) -> "Turns":
        """The turns in it. Raises as `store` does."""
        return (await self._opened())[1]

    async def close(self) -> None:
        """Nobody asks any more."""
        if self._renewing is not None:
            self._renewing.cancel()
        if self._opening is not None and self._opening.done() and self._opening.exception() is None:
            await self._opening.result()[0].close()

    # Of turns.

    def join(self, session_id: str) -> asyncio.Future[None]:
        """Takes a place in the line of this worker's turns of a session; it is done when it is the first."""
        line = self._lines.setdefault(session_id, deque())
        place = asyncio.get_running_loop().create_future()
        line.append(place)
        if len(line) == 1:
            place.set_result(None)
        return place

    def leave(self, session_id: str, place: asyncio.Future[None]) -> None:
        """Gives the place up."""
        line = self._lines[session_id]
        was_first = line[0] is place
        line.remove(place)
        if not line:
            del self._lines[session_id]
        elif was_first:
            line[0].set_result(None)

    def hold(self, holder: str) -> None:
        """Keeps what it holds from running out."""
        self._holders.add(holder)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew())

    def let_go(self, holder: str) -> None:
        self._holders.discard(holder)

    async def _renew(self) -> None:
        turns = await self.turns()
        while self._holders:
            await asyncio.sleep(RENEW_S)
            try:
                await turns.renew(self._holders)
            except RequestError as error:
                logger.warning("sessions that are held were not renewed: %s", error)

    async def _opened(self) -> "tuple[Store, Turns]":
        if not self.is_on:
            raise self._off()
        if self._opening is not None and self._opening.done() and self._opening.exception() is not None:
            self._opening = None
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        # Who leaves does not end it for the others.
        return await asyncio.shield(self._opening)

    async def _open(self) -> "tuple[Store, Turns]":
        # In a thread: it takes a while, in which others are to be answered.
        turns = await asyncio.to_thread(importlib.import_module, "gateway.sessions.turns")
        try:
            url = secrets.resolve(self._settings.url, os.environ)
        except ValueError as error:
            message = f"Sessions are not to be had: their URL: {error}."
            raise RequestError(503, message, "sessions_unavailable") from error
        store = await turns.Store.open(url, self._home)
        return store, turns.Turns(store, self._settings.max_turns, self._settings.max_bytes)

    def _off(self) -> RequestError:
        what = (
            "this gateway was installed without them: pip install 'sage-reconcile[sessions]', then `sage "
            "gateway restart`"
            if self._settings.is_on
            else "they are off (`gateway.sessions.enabled` of the stack file, or SAGE_SESSIONS)"
        )
        return RequestError(501, f"There are no sessions here: {what}.", "sessions_off")
