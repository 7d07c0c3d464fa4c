"""Clients that ask without a pause, to see whether anything they ask is lost."""

import http.client
import json
import threading
from collections import Counter
from typing import Self

from tests.gateway.world import DEADLINE_S, wait_for

BODY = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hi"}]})


class Hammer:
    """Asks for chat completions until the block ends; half of the threads keep their connections.

    `failures` are the errors of each thread, in words; a reply that is not 200 is one, `connection: close` is
    none. Nothing is asked twice.
    """

    def __init__(self, port: int, threads: int = 4) -> None:
        self.port = port
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
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        while not self._is_over.is_set():
            try:
                connection.request("POST", "/v1/chat/completions", BODY, {"content-type": "application/json"})
                reply = connection.getresponse()
                body = reply.read()
                if reply.status == 200:
                    self.answered[number] += 1
                else:
                    self.failures[number].append(f"{reply.status} {body!r}")
            except (OSError, http.client.HTTPException) as error:
                self.failures[number].append(repr(error))
                connection.close()
            if number % 2:
                connection.close()
        connection.close()
