"""Clients that ask through a gateway all the time, and what became of each request."""

import http.client
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

ANSWER = "The capital of France is Paris."
REQUEST_S = 60.0
PAUSE_S = 0.05


@dataclass
class Told:
    """Requests by how they ended: "ok", a status, or the error's name. Changed by many threads."""

    ends: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> Counter[str]:
        """What was told since the last taking."""
        with self.lock:
            taken, self.ends = self.ends, Counter()
        return taken

    def tell(self, end: str) -> None:
        with self.lock:
            self.ends[end] += 1


class Load:
    """One client a model, each with one request at a time, until `end`."""

    def __init__(self, port: int, models: list[str]) -> None:
        self.told = Told()
        self._port = port
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, args=(model,)) for model in models]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self, model: str) -> None:
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]})
        while not self._over.wait(PAUSE_S):
            self.told.tell(self._ask(body))

    def _ask(self, body: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=REQUEST_S)
        try:
            connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            reply = connection.getresponse()
            text = reply.read().decode()
            if reply.status != 200:
                return f"status {reply.status}"
            return "ok" if json.loads(text)["choices"][0]["message"]["content"] == ANSWER else "wrong answer"
        except (OSError, http.client.HTTPException, ValueError) as error:
            time.sleep(PAUSE_S)
            return type(error).__name__
        finally:
            connection.close()
