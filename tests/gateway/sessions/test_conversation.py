"""What of a conversation an engine gets, as values; and how much of it the database hands out."""

import asyncio
import json
from pathlib import Path

import pytest

from gateway.errors import RequestError
from gateway.sessions.conversation import New, Said, body_of, read, without_orphans
from gateway.sessions.reply import Reply
from gateway.sessions.store import Store
from gateway.sessions.turns import Turns
from gateway.sessions.values import Viewer
from tests.gateway.sessions.talk import answering, events, user
from tests.gateway.wire import whole

CALL = '{"role":"assistant","tool_calls":[]}'
RESULT = '[{"role":"tool","content":"1"}]'
REPLY = '{"role":"assistant","content":"ok"}'


def asked(*messages: dict[str, object]) -> New:
    return read(json.dumps({"model": "m", "messages": messages, "session_id": "s"}).encode())


def test_fields_and_messages_stay_byte_for_byte() -> None:
    new = b'{"role":"user", "content":"\\u00e9"}'
    body = b'{"n": 1.0, "session_id":"a","messages" :[ %b ],"big":12345678901234567890123}' % new
    said = (Said(1, '[{"role":"user","content":1e2}]', REPLY),)
    wanted = b'{"n":1.0,"big":12345678901234567890123,"messages":[{"role":"user","content":1e2},%b,%b]}'
    assert body_of(read(body), "", said) == wanted % (REPLY.encode(), new)


def test_repeated_fields_count_once() -> None:
    body = b'{"session_id":"a","messages":[],"messages":[{"role":"user","content":"x"}],"session_id":"b"}'
    assert json.loads(body_of(read(body), "", ())) == {"messages": [user("x")]}


def test_results_of_calls_never_come_first() -> None:
    history = [Said(1, RESULT, CALL), Said(2, RESULT, REPLY), Said(3, '[{"role":"user"}]', REPLY)]
    assert [turn.number for turn in without_orphans(history)] == [3]
    assert list(without_orphans(history[:2])) == []


@pytest.mark.parametrize("body", [b"[]", b'{"messages":{}}', b'{"messages":[NaN]}', b'{"messages":[[[]]]}'])
def test_what_is_no_chat(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        read(body)
    assert caught.value.status == 400


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_reply_is_read_however_it_is_cut(size: int) -> None:
    replies = {
        whole(answering({"role": "assistant", "content": "Größe"})): "Größe",
        events({"role": "assistant", "content": "Gr"}, {"content": "öße"}, {"content": ""}): "Größe",
    }
    for data, content in replies.items():
        reply = Reply()
        for at in range(0, len(data), size):
            reply.feed(data[at : at + size])
        assert reply.is_over
        assert json.loads(reply.message()) == {"role": "assistant", "content": content}


def test_a_stream_that_did_not_finish_is_none() -> None:
    reply = Reply()
    reply.feed(events({"content": "half"}).split(b'"stop"')[0])
    assert (reply.is_over, reply.message()) == (False, "")


@pytest.mark.parametrize(
    ("most_turns", "most_size", "kept"),
    [(100, 10_000, 6), (4, 10_000, 4), (100, 3 * 69 + 5, 3), (2, 3 * 69, 2), (100, 10, 0)],
)
def test_a_long_history_is_cut_at_its_beginning(
    tmp_path: Path, most_turns: int, most_size: int, kept: int
) -> None:
    async def talk() -> list[int]:
        store = await Store.open("", tmp_path)
        session = (await store.create(Viewer(), "")).id
        turns = Turns(store, 1000, 100_000)
        for number in range(6):
            held = await turns.begin(Viewer(), session)
            assert held is not None
            new = asked(user(f"{number}"))
            assert len(new.messages_text) + len(REPLY) == 69
            assert await turns.end(held, new, "m", REPLY)
        held = await Turns(store, most_turns, most_size).begin(Viewer(), session)
        await store.close()
        assert held is not None
        return [turn.number for turn in held.said]

    assert asyncio.run(talk()) == [1, 2, 3, 4, 5, 6][6 - kept :]
