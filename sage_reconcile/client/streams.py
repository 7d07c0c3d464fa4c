"""Answers that come piece by piece: plain iterators of text that end the engine's work when they are left."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Any, Self

from sage_reconcile.client.faults import sdk_faults
from sage_reconcile.errors import ReconcileError

TextOf = Callable[[Any], str]
Told = Callable[[Exception], ReconcileError]


class TextStream(Iterator[str]):
    """Pieces of text. Leaving it early (`break` and letting go of it, close(), `with`) ends the request."""

    def __init__(self, events: Any, text_of: TextOf, told: Told) -> None:
        """Waits for the first piece; faults until then are those of the openai package.

        The generator is begun here: one that was never begun would not close what it reads from.
        """
        self._told = told
        self._texts = _texts(events, text_of)
        self._first = next(self._texts, None)

    def __next__(self) -> str:
        first, self._first = self._first, None
        if first is not None:
            return first
        try:
            return next(self._texts)
        except sdk_faults() as error:
            raise self._told(error) from error

    def close(self) -> None:
        self._first = None
        self._texts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncTextStream(AsyncIterator[str]):
    """The asynchronous twin of TextStream; made by open()."""

    def __init__(self, texts: AsyncGenerator[str, None], first: str | None, told: Told) -> None:
        self._texts = texts
        self._first = first
        self._told = told

    @classmethod
    async def open(cls, events: Any, text_of: TextOf, told: Told) -> "AsyncTextStream":
        """Waits for the first piece; faults until then are those of the openai package."""
        texts = _async_texts(events, text_of)
        return cls(texts, await anext(texts, None), told)

    async def __anext__(self) -> str:
        first, self._first = self._first, None
        if first is not None:
            return first
        try:
            return await anext(self._texts)
        except sdk_faults() as error:
            raise self._told(error) from error

    async def aclose(self) -> None:
        self._first = None
        await self._texts.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _texts(events: Any, text_of: TextOf) -> Generator[str, None, None]:
    with events:
        for event in events:
            if text := text_of(event):
                yield text


async def _async_texts(events: Any, text_of: TextOf) -> AsyncGenerator[str, None]:
    async with events:
        async for event in events:
            if text := text_of(event):
                yield text
