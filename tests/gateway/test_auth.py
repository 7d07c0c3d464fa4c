"""API keys: where they come from, what they let in, and where none are needed."""

from pathlib import Path

import pytest

from gateway.auth import Keys, check_listen, load_keys
from sage_reconcile.errors import BlockedError, PermanentError


def test_keys_of_environment_and_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\nk3\n\n", encoding="utf-8")
    keys = load_keys({"SAGE_API_KEYS": " k1, k2,"}, str(file))
    assert all(keys.allow(f"Bearer {key}".encode(), b"") for key in ("k1", "k2", "k3"))
    assert keys.allow(b"bearer k1", b"")
    assert keys.allow(b"", b"k2")


@pytest.mark.parametrize("given", [b"", b"Bearer ", b"Bearer k", b"Bearer k11", b"Basic k1", b"k1"])
def test_anything_else_is_refused(given: bytes) -> None:
    assert not load_keys({"SAGE_API_KEYS": "k1"}, "").allow(given, b"")


def test_a_key_file_that_holds_nothing_does_not_open_the_gateway(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none\n", encoding="utf-8")
    with pytest.raises(PermanentError, match="holds no key"):
        load_keys({}, str(tmp_path / "keys"))
    with pytest.raises(PermanentError, match="cannot read"):
        load_keys({}, str(tmp_path / "missing"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.0.1", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    check_listen(host, Keys([]))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_elsewhere_keys_are_needed(host: str) -> None:
    with pytest.raises(BlockedError, match="SAGE_API_KEYS"):
        check_listen(host, Keys([]))
    check_listen(host, Keys(["k"]))


def test_every_way_to_give_keys_is_named() -> None:
    with pytest.raises(BlockedError, match=r"SAGE_API_KEYS.*--api-key-file.*gateway\.api_keys of the stack"):
        check_listen("0.0.0.0", Keys([]))
