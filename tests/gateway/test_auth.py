"""API keys: where they come from, what is found by them, and where none are needed."""

from pathlib import Path

import pytest

from gateway.auth import check_listen
from gateway.keys import Keys, load_keys
from gateway.keysource import KeyEntry, to_text
from sage_reconcile.errors import BlockedError, PermanentError
from sage_reconcile.secrets import key_digest

KEYS = load_keys({"SAGE_API_KEYS": "k"}, "")


def test_keys_of_environment_and_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the team\nk3\n\n  sha256:{key_digest('k4').upper()}\n", encoding="utf-8")
    keys = load_keys({"SAGE_API_KEYS": " k1, k2,", "SAGE_ADMIN_API_KEYS": "root"}, str(file))
    found = {given: keys.find(f"Bearer {given}".encode(), b"") for given in ("k1", "k2", "k3", "k4", "root")}
    names = {given: key.name for given, key in found.items() if key is not None}
    assert names == {
        "k1": "SAGE_API_KEYS[0]",
        "k2": "SAGE_API_KEYS[1]",
        "k3": "keys:2",
        "k4": "keys:4",
        "root": "SAGE_ADMIN_API_KEYS[0]",
    }
    assert [key.name for key in keys if key.is_admin] == ["SAGE_ADMIN_API_KEYS[0]"]
    assert keys.has_admin
    assert not KEYS.has_admin
    assert keys.find(b"bearer k1", b"") is keys.find(b"", b"k1") is found["k1"]


@pytest.mark.parametrize("given", [b"", b"Bearer ", b"Bearer k", b"Bearer k11", b"Basic k1", b"k1"])
def test_anything_else_is_refused(given: bytes) -> None:
    assert load_keys({"SAGE_API_KEYS": "k1"}, "").find(given, b"") is None


def test_the_digest_of_a_key_is_no_key() -> None:
    digest = key_digest("k")
    for given in (digest, f"sha256:{digest}", bytes.fromhex(digest).decode("latin-1")):
        assert KEYS.find(b"Bearer " + given.encode("latin-1"), b"") is None


def test_the_digest_of_nothing_lets_nobody_in() -> None:
    keys = load_keys({"SAGE_API_KEYS": f"sha256:{key_digest('')}"}, "")
    assert keys
    assert keys.find(b"", b"") is None


def test_keys_of_a_stack_file() -> None:
    entry = KeyEntry("team-a", key_digest("k1"), ("chat",), 600, 1000, 20, True)
    environ = {"SAGE_GATEWAY_KEYS": to_text([entry]), "SAGE_API_KEYS": "k1,k2"}
    keys = load_keys(environ, "", workers=2)
    first = keys.find(b"Bearer k1", b"")
    assert first is not None
    # What is told of it in the stack file counts, wherever else the same key is.
    assert (first.name, first.models, first.is_admin) == ("team-a", ("chat",), True)
    assert (first.requests_per_minute, first.tokens_per_minute, first.max_concurrent) == (600, 1000, 20)
    assert len(list(keys)) == 2


@pytest.mark.parametrize("text", ["{", "[1]", '[{"name": "a"}]', '[{"name": "a", "sha256": "s3cret"}]'])
def test_keys_of_a_stack_file_that_cannot_be_read(text: str) -> None:
    with pytest.raises(PermanentError, match="SAGE_GATEWAY_KEYS: ") as raised:
        load_keys({"SAGE_GATEWAY_KEYS": text}, "")
    assert "s3cret" not in str(raised.value)


def test_a_key_file_that_holds_nothing_does_not_open_the_gateway(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none\n", encoding="utf-8")
    with pytest.raises(PermanentError, match="holds no key"):
        load_keys({}, str(tmp_path / "keys"))
    with pytest.raises(PermanentError, match="cannot read"):
        load_keys({}, str(tmp_path / "missing"))


def test_a_digest_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("k1\nsha256:s3cret\n", encoding="utf-8")
    with pytest.raises(PermanentError, match="keys:2: after sha256: 64 hex digits are wanted") as raised:
        load_keys({}, str(tmp_path / "keys"))
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.0.1", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    check_listen(host, Keys([]))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_elsewhere_keys_are_needed(host: str) -> None:
    with pytest.raises(BlockedError, match="SAGE_API_KEYS"):
        check_listen(host, Keys([]))
    stack_keys = to_text([KeyEntry("a", key_digest("k"))])
    for variable, value in (
        ("SAGE_API_KEYS", "k"),
        ("SAGE_ADMIN_API_KEYS", "k"),
        ("SAGE_GATEWAY_KEYS", stack_keys),
    ):
        check_listen(host, load_keys({variable: value}, ""))


def test_every_way_to_give_keys_is_named() -> None:
    ways = r"SAGE_API_KEYS.*--api-key-file.*gateway\.keys.*gateway\.api_keys of the stack"
    with pytest.raises(BlockedError, match=ways):
        check_listen("0.0.0.0", Keys([]))
