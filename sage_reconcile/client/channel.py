"""Sends a request until it is answered: the one loop of tries, blocking and asynchronous."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sage_reconcile.client.attempts import Attempts
from sage_reconcile.client.backends import Backends, Target
from sage_reconcile.client.errors import NoBackendError
from sage_reconcile.client.faults import sdk_faults, told
from sage_reconcile.client.requests import InferenceResult, Request
from sage_reconcile.client.sdk import Sdk, request_headers
from sage_reconcile.client.settings import Settings
from sage_reconcile.client.streams import AsyncTextStream, TextStream
from sage_reconcile.errors import ReconcileError

T = TypeVar("T")


class Channel:
    """Every method raises the errors of `client.errors`."""

    def __init__(self, settings: Settings) -> None:
        self.backends = Backends(settings)
        self.sdk = Sdk(settings.timeout)
        self._timeout = settings.timeout

    def answer(self, request: Request, model: str | None) -> InferenceResult:
        started = time.monotonic()
        return self._ask(
            request, model, lambda reply, at: request.result(reply, at.endpoint.url, _ms(started))
        )

    def stream(self, request: Request, model: str | None) -> TextStream:
        return self._ask(request, model, lambda reply, at: TextStream(reply, request.piece, self._teller(at)))

    def vectors(self, request: Request, model: str | None) -> list[list[float]]:
        return self._ask(request, model, lambda reply, at: request.vectors(reply, at.endpoint.url))

    async def aanswer(self, request: Request, model: str | None) -> InferenceResult:
        started = time.monotonic()

        async def receive(reply: Any, at: Target) -> InferenceResult:
            return request.result(reply, at.endpoint.url, _ms(started))

        return await self._aask(request, model, receive)

    async def astream(self, request: Request, model: str | None) -> AsyncTextStream:
        async def receive(reply: Any, at: Target) -> AsyncTextStream:
            return await AsyncTextStream.open(reply, request.piece, self._teller(at))

        return await self._aask(request, model, receive)

    async def avectors(self, request: Request, model: str | None) -> list[list[float]]:
        async def receive(reply: Any, at: Target) -> list[list[float]]:
            return request.vectors(reply, at.endpoint.url)

        return await self._aask(request, model, receive)

    # The two loops differ in their awaits only; a change of one is a change of the other.

    def _ask(self, request: Request, model: str | None, receive: Callable[[Any, Target], T]) -> T:
        attempts = Attempts(self.backends, request.kind, model, self._timeout)
        faults: tuple[type[Exception], ...] = (*sdk_faults(), NoBackendError)
        while True:
            try:
                target = attempts.known() or attempts.look()
                headers = request_headers(target.endpoint)
                sdk = self.sdk.blocking(target.endpoint)
                answer = receive(request.send(sdk, target.model, headers), target)
                attempts.answered()
                return answer
            except faults as error:
                wait = attempts.after(error)
            time.sleep(wait)

    async def _aask(
        self, request: Request, model: str | None, receive: Callable[[Any, Target], Awaitable[T]]
    ) -> T:
        attempts = Attempts(self.backends, request.kind, model, self._timeout)
        faults: tuple[type[Exception], ...] = (*sdk_faults(), NoBackendError)
        while True:
            try:
                target = attempts.known()
                if target is None:
                    target = await asyncio.to_thread(attempts.look)
                sdk = self.sdk.asynchronous(target.endpoint)
                headers = request_headers(target.endpoint)
                answer = await receive(await request.send(sdk, target.model, headers), target)
                attempts.answered()
                return answer
            except faults as error:
                wait = attempts.after(error)
            await asyncio.sleep(wait)

    def _teller(self, at: Target) -> Callable[[Exception], ReconcileError]:
        return lambda error: told(error, at.endpoint.url, at.model, self._timeout)


def _ms(started: float) -> float:
    return (time.monotonic() - started) * 1000
