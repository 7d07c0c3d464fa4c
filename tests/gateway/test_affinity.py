"""What requests have in common: the beginning of a prompt, a session."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.affinity import PREFIX_BYTES, prefix_key, session_key


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def chat(*messages: tuple[str, str], ensure_ascii: bool = True) -> bytes:
    listed = [{"role": role, "content": content} for role, content in messages]
    return json.dumps({"model": "m", "messages": listed}, ensure_ascii=ensure_ascii).encode()


CONTENT = st.one_of(st.text(max_size=30), st.integers(0, 400).map(lambda size: "ä" * size))


@given(
    st.lists(CONTENT, max_size=2),
    CONTENT,
    st.lists(st.tuples(st.sampled_from(["assistant", "user", "tool"]), CONTENT), max_size=4),
    st.booleans(),
)
def test_a_conversation_that_grows_keeps_its_key(
    system: list[str], question: str, more: list[tuple[str, str]], ensure_ascii: bool
) -> None:
    first = [*(("system", text) for text in system), ("user", question)]
    key = prefix_key(chat(*first, ensure_ascii=ensure_ascii))
    assert key
    assert prefix_key(chat(*first, *more, ensure_ascii=ensure_ascii)) == key


def test_other_beginnings_are_other_keys() -> None:
    bodies = [
        chat(("system", "be kind"), ("user", "a")),
        chat(("system", "be kind"), ("user", "b")),
        chat(("system", "be brief"), ("user", "a")),
        chat(("user", "a")),
        body(prompt="a"),
        body(prompt="b"),
        body(input=["a", "b"]),
        body(input=["a", "c"]),
        body(instructions="be kind", input="x"),
        body(instructions="be brief", input="x"),
        body(system="be brief", messages=[{"role": "user", "content": "a"}]),
    ]
    assert len({prefix_key(one) for one in bodies}) == len(bodies)


def test_no_more_than_the_beginning_counts() -> None:
    long = "x" * PREFIX_BYTES
    assert prefix_key(body(prompt=long + "a")) == prefix_key(body(prompt=long + "b"))
    assert prefix_key(chat(("system", long), ("user", "a"))) == prefix_key(
        chat(("system", long), ("user", "b"))
    )
    assert len(prefix_key(chat(("system", "ü" * 1000), ensure_ascii=False))) <= PREFIX_BYTES + 2


def test_other_fields_do_not_count() -> None:
    assert prefix_key(body(prompt="a", seed=1)) == prefix_key(body(prompt="a", temperature=0.5))


@pytest.mark.parametrize(
    "given", [b"", b"{", b"[]", b'{"model": "m"}', b"\xff", b"--boundary\r\n", b"[" * 100_000]
)
def test_nothing_in_common(given: bytes) -> None:
    assert prefix_key(given) == b""
    assert session_key([], given) == b""


@pytest.mark.parametrize("messages", ["text", {"a": 1}, [], [1], [[[]]], [None], [{"role": []}], [{}]])
def test_odd_messages_are_still_a_beginning(messages: Any) -> None:
    assert prefix_key(body(messages=messages)).startswith(json.dumps(messages)[:1].encode())


@pytest.mark.parametrize(
    ("headers", "fields", "key"),
    [
        ([(b"accept", b"*/*"), (b"x-session-id", b"h")], {"session_id": "s", "user": "u"}, b"h"),
        ([(b"x-session-id", b"")], {"session_id": "s", "user": "u"}, b"s"),
        ([], {"user": "u"}, b"u"),
        ([], {"session_id": None, "user": "u"}, b"u"),
        ([], {"session_id": "", "user": "u"}, b"u"),
        ([], {"session_id": 17}, b"17"),
        ([], {"session_id": {"a": 1}}, b""),
        ([], {}, b""),
    ],
)
def test_a_session(headers: list[tuple[bytes, bytes]], fields: dict[str, Any], key: bytes) -> None:
    assert session_key(headers, body(**fields)) == key
