"""Chat requests that name a session, against a real gateway and an engine that a test steers."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest

from tests.gateway.sessions.talk import Person, answering, anybody, bodies, counting, events, user
from tests.gateway.wire import Answer, Asked, RawClient, RawEngine, saying, whole
from tests.gateway.world import DEADLINE_S, Gateway, backend, wait_for


class Served:
    """A person, and the engine that answers."""

    def __init__(self, gateway: Gateway, stack: ExitStack) -> None:
        self.gateway = gateway
        self.person = anybody(gateway)
        self._stack = stack

    def by(self, answer: Answer) -> RawEngine:
        """Only this engine from now on."""
        engine = self._stack.enter_context(RawEngine(answer))
        self.gateway.serve({"m": [backend(engine.url, model="m")]})
        return engine


@pytest.fixture
def served(gateway: Gateway) -> Iterator[Served]:
    with ExitStack() as stack:
        yield Served(gateway, stack)
    assert "Traceback" not in "".join(gateway.output)


def test_what_was_said_goes_before_what_is_new(served: Served) -> None:
    engine = served.by(counting)
    person, session = served.person, served.person.new()
    assert person.say(session, "one").json()["choices"][0]["message"]["content"] == "one of 1"
    assert person.say(session, "two", temperature=0.5).status_code == 200
    first, second = bodies(engine)
    assert first == {"model": "m", "messages": [user("one")]}
    said = [user("one"), {"role": "assistant", "content": "one of 1"}, user("two")]
    assert second == {"model": "m", "temperature": 0.5, "messages": said}
    told = person.told(session)
    assert (told["title"], told["turns"], told["has_more"]) == ("one", 2, False)
    assert person.texts(session) == ["one", "one of 1", "two", "two of 3"]


def test_messages_go_on_and_are_kept_as_they_came(served: Served) -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]
    called = {"role": "assistant", "content": None, "tool_calls": calls, "reasoning_content": "hm"}
    engine = served.by(saying(whole(answering(called))))
    parts = [{"type": "text", "text": "Grüße \u2028"}, {"type": "image_url", "image_url": {"url": "data:x"}}]
    asked = {"role": "user", "name": "ann", "content": parts, "own": {"b": 1.50}}
    result = {"role": "tool", "tool_call_id": "c1", "content": "42"}
    person, session = served.person, served.person.new()
    person.say(session, asked)
    person.say(session, result)
    assert bodies(engine)[1]["messages"] == [asked, called, result]
    raw = engine.asked[1].body
    assert json.dumps(called).encode() in raw
    assert b'"own":{"b":1.5}' in raw
    assert person.told(session)["history"][0]["messages"] == [asked, called]
    assert person.told(session)["title"] == "Grüße"


def test_the_last_instructions_act(served: Served) -> None:
    engine = served.by(counting)
    person, session = served.person, served.person.new()
    kind, brief = {"role": "system", "content": "be kind"}, {"role": "developer", "content": "be brief"}
    person.say(session, kind, "one")
    person.say(session, "two")
    person.say(session, brief, "three")
    person.say(session, "four")
    begins = [body["messages"][0] for body in bodies(engine)]
    assert begins == [kind, kind, brief, brief]
    assert [len(body["messages"]) for body in bodies(engine)] == [2, 4, 6, 8]
    assert person.told(session)["instructions"] == [brief]
    assert person.texts(session)[::2] == ["one", "two", "three", "four"]


def test_a_stream_is_kept_when_it_is_complete(served: Served) -> None:
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": ""},
        {"content": "Hel"},
        {"content": "lo"},
    ]
    calls: list[dict[str, Any]] = [
        {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
    ]
    served.by(saying(events(*deltas, *calls)))
    person, session = served.person, served.person.new()
    with (
        httpx.Client(trust_env=False) as http,
        openai.OpenAI(base_url=f"{person.url}/v1", api_key="none", http_client=http) as client,
    ):
        stream = client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            extra_body={"session_id": session},
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello"
    function = {"name": "f", "arguments": '{"a":1}'}
    called = {"role": "assistant", "content": "Hello"}
    called |= {"tool_calls": [{"id": "c", "type": "function", "function": function}]}  # type: ignore[dict-item]
    assert person.told(session)["history"][0]["messages"] == [user("hi"), called]


def test_a_stream_goes_on_while_it_comes(served: Served) -> None:
    go_on = threading.Event()

    def answer(_: Asked, connection: socket.socket) -> bool:
        data = events({"content": "a"}, {"content": "b"})
        at = data.index(b"\n\n\r\n") + 4
        connection.sendall(data[:at])
        assert go_on.wait(DEADLINE_S)
        connection.sendall(data[at:])
        return True

    served.by(answer)
    session = served.person.new()
    body = {"model": "m", "session_id": session, "stream": True, "messages": [user("hi")]}
    url = f"{served.person.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, trust_env=False, timeout=DEADLINE_S) as reply:
        pieces = reply.iter_raw()
        assert b'"content": "a"' in next(pieces)
        assert served.person.told(session)["turns"] == 0
        go_on.set()
        assert b"[DONE]" in b"".join(pieces)
    assert served.person.texts(session) == ["hi", "ab"]


@pytest.mark.parametrize(
    "answer",
    [
        saying(whole(b'{"error": {"message": "too long"}}', b"400 Bad Request")),
        saying(events({"content": "half"})[:-40], is_kept=False),
        saying(events({"content": "half"}, end=b'data: {"error": {"message": "lost"}}\n\n')),
        saying(whole(answering({"role": "assistant", "content": "half"}))[:-9], is_kept=False),
        saying(whole(b"not json")),
    ],
    ids=["refused", "broken stream", "error in the stream", "cut short", "no reply of a chat"],
)
def test_what_is_no_answer_keeps_nothing(served: Served, answer: Answer) -> None:
    served.by(answer)
    person, session = served.person, served.person.new()
    try:
        person.say(session, "hi")
    except httpx.RemoteProtocolError:
        pass
    served.by(counting)
    assert person.say(session, "again").json()["choices"][0]["message"]["content"] == "again of 1"
    assert person.texts(session) == ["again", "again of 1"]


def test_a_client_that_leaves_keeps_nothing_and_ends_its_turn(served: Served) -> None:
    is_asked = threading.Event()

    def answer(_: Asked, connection: socket.socket) -> bool:
        connection.sendall(events({"content": "a"})[:-30])
        is_asked.set()
        connection.recv(1)
        return False

    served.by(answer)
    session = served.person.new()
    body = {"model": "m", "session_id": session, "stream": True, "messages": [user("hi")]}
    url = f"{served.person.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, trust_env=False, timeout=DEADLINE_S) as reply:
        next(reply.iter_raw())
        assert is_asked.wait(DEADLINE_S)
    served.by(counting)
    assert served.person.say(session, "again").status_code == 200
    assert served.person.texts(session) == ["again", "again of 1"]


def test_who_leaves_while_waiting_gives_up_the_place(served: Served) -> None:
    go_on = threading.Event()

    def answer(asked: Asked, connection: socket.socket) -> bool:
        assert go_on.wait(DEADLINE_S)
        return counting(asked, connection)

    engine = served.by(answer)
    person, session = served.person, served.person.new()
    first = threading.Thread(target=person.say, args=(session, "one"))
    first.start()
    wait_for(lambda: engine.asked, "the first is asked")
    body = {"model": "m", "session_id": session, "messages": [user("left")]}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{person.url}/v1/chat/completions", json=body, trust_env=False, timeout=0.3)
    go_on.set()
    first.join(DEADLINE_S)
    assert person.say(session, "two").status_code == 200
    assert person.texts(session) == ["one", "one of 1", "two", "two of 3"]


def test_what_a_clear_or_a_delete_overtakes_is_answered_and_not_kept(served: Served) -> None:
    person = served.person
    for forget, path in (("POST", "/clear"), ("DELETE", "")):
        go_on = threading.Event()

        def answer(asked: Asked, connection: socket.socket, go_on: threading.Event = go_on) -> bool:
            assert go_on.wait(DEADLINE_S)
            return counting(asked, connection)

        engine = served.by(answer)
        session, replies = person.new(), []
        asking = threading.Thread(target=lambda on=session, to=replies: to.append(person.say(on, "one")))
        asking.start()
        wait_for(lambda of=engine: of.asked, "it is asked")
        assert person.ask(forget, f"/sessions/{session}{path}").status_code == 200
        go_on.set()
        asking.join(DEADLINE_S)
        assert [reply.status_code for reply in replies] == [200]
        shown = person.ask("GET", f"/sessions/{session}")
        assert shown.status_code == 404 or shown.json()["turns"] == 0


def test_without_a_session_nothing_is_kept(served: Served) -> None:
    engine = served.by(counting)
    person, session = served.person, served.person.new()
    for more in ({}, {"session_id": None}):
        body = {"model": "m", "messages": [user("hi")], **more}
        assert person.ask("POST", "/v1/chat/completions", json=body).status_code == 200
        assert bodies(engine)[-1] == body
    # Of other paths it is a word for the engine.
    elsewhere = {"model": "m", "messages": [user("hi")], "session_id": session}
    person.ask("POST", "/v1/completions", json=elsewhere)
    assert bodies(engine)[-1]["session_id"] == session
    assert person.told(session)["turns"] == 0


def test_requests_that_make_no_sense(served: Served) -> None:
    served.by(counting)
    person, session = served.person, served.person.new()

    def code(reply: httpx.Response) -> tuple[int, str]:
        return reply.status_code, reply.json()["error"]["code"]

    assert code(person.say("nobodys", "hi")) == (404, "session_not_found")
    assert code(person.say("ß", "hi")) == (400, "invalid_session")
    assert code(person.say("", "hi")) == (400, "invalid_session")
    for messages in ([], [{"role": "system", "content": "x"}], "hi", [1], [{"content": "x"}]):
        assert code(person.say(session, messages=messages)) == (400, "invalid_messages")
    assert code(person.say(session, "hi", model="other")) == (404, "model_not_found")
    assert person.told(session)["turns"] == 0


def test_a_pipeline_keeps_its_order(served: Served) -> None:
    """The next request of a connection is not answered into the reply that waits for its session."""
    served.by(counting)
    session = served.person.new()

    def request(text: str, name: str) -> bytes:
        asked = {"model": "m", "messages": [user(text)], **({"session_id": name} if name else {})}
        body = json.dumps(asked).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\n"
        return head + b"content-length: %d\r\n\r\n" % len(body) + body

    with RawClient(served.gateway.port) as client:
        client.send(request("one", session) + request("plain", "") + request("two", session))
        said = [json.loads(client.reply().body)["choices"][0]["message"]["content"] for _ in range(3)]
    assert said == ["one of 1", "plain of 1", "two of 3"]


def test_the_same_machinery_carries_it(served: Served) -> None:
    """A backend that breaks before the first byte is replaced by another one."""
    broken = served._stack.enter_context(RawEngine(saying(is_kept=False)))
    good = served._stack.enter_context(RawEngine(counting))
    both = [backend(broken.url, "a#0", model="m"), backend(good.url, "b#0", model="m")]
    served.gateway.serve({"m": both})
    person: Person = served.person
    session = person.new()
    for number in range(4):
        assert person.say(session, f"{number}").status_code == 200
    assert broken.asked
    assert person.told(session)["turns"] == 4
