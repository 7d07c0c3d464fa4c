"""Heads on their way: what is between two neighbours stays there, all else passes as it is."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.heads import CREDENTIALS, HOP_BY_HOP, RENEWED, ReplyHead, to_engine, without_upgrade

Pairs = list[tuple[bytes, bytes]]

NAMES = st.sampled_from(
    [*sorted(HOP_BY_HOP), b"x-request-id", b"x-sage-src", b"content-type", b"date", b"set-cookie", b"x-own"]
)
CASED = st.tuples(NAMES, st.sampled_from([bytes.lower, bytes.upper, bytes.title])).map(lambda p: p[1](p[0]))
VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12).map(str.encode)
OTHERS = st.lists(st.tuples(CASED.filter(lambda name: name.lower() not in FRAMING), VALUES), max_size=8)
FRAMING = {b"content-length", b"transfer-encoding", b"connection"}
CONNECTION = st.lists(st.sampled_from([b"close", b"X-Own", b"date", b"Content-Length", b"transfer-encoding"]))
BODY = st.sampled_from([[], [(b"Content-Length", b"7")], [(b"Transfer-Encoding", b"chunked")]])


def head_of(start: bytes, pairs: Pairs) -> bytes:
    return start + b"\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in pairs) + b"\r\n"


def lines_of(head: bytes) -> list[bytes]:
    assert head.endswith(b"\r\n\r\n")
    return head[:-4].split(b"\r\n")


def tokens(names: list[bytes]) -> set[bytes]:
    return {name.lower() for name in names}


@given(OTHERS, CONNECTION, BODY, st.booleans())
def test_a_reply_keeps_all_but_what_is_between_neighbours(
    others: Pairs, connection: list[bytes], body: Pairs, knows_chunks: bool
) -> None:
    named = [(b"Connection", b", ".join(connection))] if connection else []
    pairs = [*others, *named, *body]
    head = ReplyHead(200, head_of(b"HTTP/1.1 200 OK", pairs))
    dropped = HOP_BY_HOP - {b"transfer-encoding"} | {b"x-request-id", b"x-sage-src"}
    dropped |= tokens(connection) - {b"content-length", b"transfer-encoding"}
    dropped |= set() if knows_chunks else {b"transfer-encoding"}
    kept = [b"%b: %b" % pair for pair in pairs if pair[0].lower() not in dropped]
    told = lines_of(head.to_client(b"x-sage-src: engine\r\n", knows_chunks))
    assert told == [b"HTTP/1.1 200 OK", *kept, b"x-sage-src: engine"]


@given(OTHERS)
def test_an_old_engine_speaks_as_a_new_one(others: Pairs) -> None:
    head = ReplyHead(404, head_of(b"HTTP/1.0 404 Nope", others))
    assert lines_of(head.to_client(b"", True))[0] == b"HTTP/1.1 404 Not Found"


@given(OTHERS, CONNECTION)
def test_a_request_keeps_all_but_what_is_between_neighbours(others: Pairs, connection: list[bytes]) -> None:
    extra = [(name, b"secret") for name in sorted(CREDENTIALS | RENEWED)]
    pairs = [(name.lower(), value) for name, value in others] + extra
    gone = HOP_BY_HOP | CREDENTIALS | RENEWED | tokens(connection)
    told = to_engine(pairs, b", ".join(connection), b"")
    assert told == b"".join(b"%b: %b\r\n" % pair for pair in pairs if pair[0] not in gone)


def test_an_upgrade_that_was_wished() -> None:
    pairs = [(b"host", b"a"), (b"upgrade", b"h2c"), (b"content-length", b"3")]
    wanted = b"POST /v1/x?y HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n"
    assert without_upgrade(b"POST", b"/v1/x?y", pairs) == wanted
