"""Finding and replacing the model of a request, and touching nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.body import read, with_model
from gateway.errors import RequestError

JSON = b"application/json"
FORM = b"multipart/form-data; boundary=XyZ"

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def form(*parts: tuple[str, bytes]) -> bytes:
    lines = b"".join(
        f"--XyZ\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + value + b"\r\n"
        for head, value in parts
    )
    return lines + b"--XyZ--\r\n"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"a"}', b'{"model":"new"}'),
        (b' \n{ "x": {"model": "inner"} ,"model"\t:\r\n "a" , "y": 1.50 } ', None),
        (b'{"mod\\u0065l": "a"}', b'{"mod\\u0065l": "new"}'),
        (b'{"model": "\\u0061"}', b'{"model": "new"}'),
        (b'{"model": "b", "n": 1e400, "model": "a"}', b'{"model": "new", "n": 1e400, "model": "new"}'),
        (
            b'{"text": "\\"model\\": \\"z\\" }", "model": "a"}',
            b'{"text": "\\"model\\": \\"z\\" }", "model": "new"}',
        ),
        (b'{"x": NaN, "model": "a"}', b'{"x": NaN, "model": "new"}'),
        (b'{"x": "\\ud800", "model": "a"}', b'{"x": "\\ud800", "model": "new"}'),
        ('{"é": "ü😀", "model": "a", "z": "ß"}'.encode(), '{"é": "ü😀", "model": "new", "z": "ß"}'.encode()),
    ],
)
def test_only_the_value_changes(body: bytes, expected: bytes | None) -> None:
    assert read(body, JSON)[0] == "a"
    assert with_model(body, JSON, "new") == (expected or body.replace(b'"a"', b'"new"'))


@given(st.dictionaries(st.text(max_size=6), plain, max_size=5), st.text(min_size=1), st.text(min_size=1))
def test_the_rest_is_kept(rest: dict[str, object], old: str, new: str) -> None:
    request = {**rest, "model": old, "last": rest}
    body = json.dumps(request).encode()
    replaced = with_model(body, JSON, new)
    assert read(body, JSON)[0] == old
    assert json.loads(replaced) == {**request, "model": new}
    again = with_model(replaced, JSON, old)
    assert with_model(again, JSON, new) == replaced
    before, after = body.split(json.dumps(old).encode())[0], body.split(json.dumps(old).encode())[-1]
    assert replaced.startswith(before)
    assert replaced.endswith(after)


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"", "invalid_json", "not valid JSON"),
        (b"{", "invalid_json", "not valid JSON"),
        (b'{"model":"a"} x', "invalid_json", "not valid JSON"),
        (b"[]", "invalid_json", "must be a JSON object"),
        (b'"model"', "invalid_json", "must be a JSON object"),
        (b'{"x":' + b"[" * 100_000, "invalid_json", "not valid JSON"),
        (b"\xff\xfe{", "invalid_json", "not valid JSON"),
        (b"{}", "missing_model", "names no model"),
        (b'{"model": ""}', "missing_model", "names no model"),
        (b'{"model": null}', "missing_model", "names no model"),
        (b'{"model": 3}', "invalid_model", "must be a string"),
    ],
)
def test_faults_are_named(body: bytes, code: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        read(body, JSON)
    assert (caught.value.status, caught.value.code) == (400, code)


def test_model_of_a_form() -> None:
    parts = ('name="file"; filename="model"', b'\x00\xff name="model"\r\n\r\nno'), ('name="model"', b"a")
    body = form(*parts)
    assert read(body, FORM)[0] == "a"
    assert with_model(body, FORM, "whisper") == form(parts[0], ('name="model"', b"whisper"))


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        (form(('name="file"', b"x")), FORM, "missing_model"),
        (b"--XyZ\r\nContent-Disposition: form-data; name=model\r\n\r\nwhis", FORM, "invalid_form"),
        (b"", b"multipart/form-data", "invalid_form"),
    ],
)
def test_faults_of_a_form(body: bytes, content_type: bytes, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(body, content_type)
    assert (caught.value.status, caught.value.code) == (400, code)


def test_many_models_and_many_parts_take_no_time_squared() -> None:
    names = b'"model":"a",' * 200_000
    assert (
        with_model(b"{" + names + b'"x":1}', JSON, "new")
        == b"{" + names.replace(b'"a"', b'"new"') + b'"x":1}'
    )
    body = form(*[('name="x"', b"")] * 200_000, ('name="model"', b"a"))
    assert read(body, FORM)[0] == "a"


def test_digits_in_a_text_are_no_number() -> None:
    body = b'{"x": "' + b"1" * 100_000 + b'", "model": "a"}'
    assert read(body, JSON)[0] == "a"
    assert with_model(body, JSON, "a") == body


@pytest.mark.parametrize("before", [0, 1, 63, 64, 2047, 2048, 4000])
def test_a_huge_number_is_found_wherever_it_begins(before: int) -> None:
    body = b'{"model": "a", ' + b" " * before + b'"x": ' + b"1" * 4301 + b"}"
    with pytest.raises(RequestError, match="not valid JSON"):
        read(body, JSON)
