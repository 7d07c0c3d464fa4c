"""Clients that talk in sessions, and engines that answer with what they were asked."""

import json
import socket
from dataclasses import dataclass
from typing import Any

import httpx

from tests.gateway.wire import Asked, RawEngine, whole
from tests.gateway.world import DEADLINE_S, Gateway


@dataclass
class Person:
    """Somebody who uses a gateway with a key ("" for none)."""

    url: str
    key: str = ""

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.request(
            method, self.url + path, headers=headers, trust_env=False, timeout=DEADLINE_S, **more
        )

    def new(self, title: str = "") -> str:
        """The id of a new session."""
        reply = self.ask("POST", "/sessions", json={"title": title})
        assert reply.status_code == 201, reply.text
        return str(reply.json()["id"])

    def say(self, session: str, *messages: Any, **more: Any) -> httpx.Response:
        """Says this in a session: messages, or texts of the user."""
        said = [one if isinstance(one, dict) else user(one) for one in messages]
        body = {"model": "m", "messages": said, "session_id": session, **more}
        return self.ask("POST", "/v1/chat/completions", json=body)

    def told(self, session: str, **query: Any) -> dict[str, Any]:
        reply = self.ask("GET", f"/sessions/{session}", params=query)
        assert reply.status_code == 200, reply.text
        told: dict[str, Any] = reply.json()
        return told

    def texts(self, session: str) -> list[str]:
        """Every content of a session, one after another."""
        return [message["content"] for turn in self.told(session)["history"] for message in turn["messages"]]


def anybody(gateway: Gateway) -> Person:
    return Person(gateway.url)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answering(message: dict[str, Any]) -> bytes:
    """A chat reply with this message."""
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()


def events(*deltas: dict[str, Any], end: bytes = b"data: [DONE]\n\n") -> bytes:
    """A stream of these deltas, as chunked HTTP."""
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    told = [b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n" for choice in choices]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in [*told, end]) + b"0\r\n\r\n"


def body_of(asked: Asked) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(asked.message.body)
    return body


def bodies(engine: RawEngine) -> list[dict[str, Any]]:
    """What the engine was asked."""
    return [json.loads(message.body) for message in engine.asked]


def counting(asked: Asked, connection: socket.socket) -> bool:
    """Answers with the last text of the user, and how many messages it was asked with."""
    messages = body_of(asked)["messages"]
    text = f"{messages[-1]['content']} of {len(messages)}"
    connection.sendall(whole(answering({"role": "assistant", "content": text})))
    return True
