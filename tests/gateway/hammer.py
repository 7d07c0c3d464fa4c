"""Clients that ask without a pause, to see whether anything they ask is lost."""

import http.client
import json
import threading
from collections import Counter
from typing import Self

from tests.gateway.world import DEADLINE_S, wait_for

BODY: dict[str, object] = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}


class Hammer:
    """Asks for chat completions until the block ends; half of the threads keep their connections.

    `failures` are the errors of each thread, in words; a reply that is not 200 is one, `connection: close` is
    none. Nothing is asked twice. With `has_streams` the second half of the threads asks for streams: one that
    does not come to its end is in `broken`, if it says so by an error event or a broken connection.
    """

    def __init__(self, port: int, threads: int = 4, has_streams: bool = False, **body: object) -> None:
        self.port = port
        self.body = BODY | body
        self.has_streams = has_streams
        self.broken: list[str] = []
        self.failures: list[list[str]] = [[] for _ in range(threads)]
        self.answered: Counter[int] = Counter()
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.goes_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self) -> None:
        """Returns when every thread has been answered some more times."""
        before = dict(self.answered)
        numbers = range(len(self._threads))
        wait_for(
            lambda: all(self.answered[number] >= before.get(number, 0) + 5 for number in numbers), "answers"
        )

    def _ask(self, number: int) -> None:
        is_stream = self.has_streams and number >= len(self._threads) // 2
        body = json.dumps(self.body | {"stream": True} if is_stream else self.body)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        while not self._is_over.is_set():
            try:
                connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
                fault = self._fault(connection, is_stream)
                if fault:
                    self.failures[number].append(fault)
                else:
                    self.answered[number] += 1
            except (OSError, http.client.HTTPException) as error:
                self.failures[number].append(repr(error))
                connection.close()
            if number % 2:
                connection.close()
        connection.close()

    def _fault(self, connection: http.client.HTTPConnection, is_stream: bool) -> str:
        """What is wrong with the reply, "" if nothing is that is not told."""
        reply = connection.getresponse()
        if not is_stream or reply.status != 200:
            body = reply.read()
            return "" if reply.status == 200 else f"{reply.status} {body!r}"
        try:
            events = reply.read()
        except (OSError, http.client.HTTPException) as error:
            self.broken.append(repr(error))
            connection.close()
            return ""
        if b'"src": "sage"' in events.rpartition(b"\n\ndata: ")[2]:
            self.broken.append(events.decode())
        elif not events.endswith(b"data: [DONE]\n\n"):
            return f"half a stream: {events!r}"
        return ""
