"""What a gateway is started with: the command line, then the stack file, then the environment."""

from pathlib import Path

import pytest

from gateway.keys import load_keys
from gateway.settings import SessionSettings, Settings
from sage_reconcile.errors import PermanentError, StackError
from sage_reconcile.gatewayd.options import GatewayOptions
from sage_reconcile.gatewayd.settle import Start, is_same_access, settle, settle_again
from sage_reconcile.secrets import key_digest

ENVIRON = {"SAGE_GATEWAY_HOST": "::1", "SAGE_GATEWAY_PORT": "9001", "SAGE_API_KEYS": "e1"}


def stack(folder: Path, gateway: str) -> str:
    path = folder / "sage.yaml"
    path.write_text(f"version: 1\nname: demo\ngateway: {gateway}\nengines: []\n")
    return str(path)


def keys(start: Start) -> str | None:
    return start.environ.get("SAGE_API_KEYS")


def test_nothing_said() -> None:
    assert settle({}, "", {}) == Start(GatewayOptions(), {}, {})


def test_the_environment_goes_before_defaults() -> None:
    assert settle({}, "", ENVIRON).options == GatewayOptions("::1", 9001)


def test_the_file_goes_before_the_environment(tmp_path: Path) -> None:
    file = stack(tmp_path, "{port: 9002, workers: 3}")
    start = settle({}, file, ENVIRON)
    assert start.options == GatewayOptions("::1", 9002, 3, stack=file)
    assert (start.stack_name, keys(start)) == ("demo", "e1")


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    file = stack(tmp_path, "{port: 9002, host: 127.0.0.2, workers: 3}")
    start = settle({"port": 9003, "log_level": "error"}, file, ENVIRON)
    assert start.options == GatewayOptions(
        "127.0.0.2", 9003, 3, "error", stack=file, given=("log_level", "port")
    )


def test_a_restart_reads_the_file_anew_and_keeps_what_was_given(tmp_path: Path) -> None:
    before = settle({"port": 9003}, stack(tmp_path, "{port: 9002, workers: 3}"), {}).options
    file = stack(tmp_path, "{port: 9004, workers: 4}")
    assert settle_again(before, file, {}).options == GatewayOptions(
        port=9003, workers=4, stack=file, given=("port",)
    )


def names(start: Start) -> dict[str, str]:
    """Of every key that lets in, the digest by its name."""
    return {key.name: key.digest.hex() for key in load_keys(start.environ, "")}


def test_keys_of_the_file_replace_those_of_the_environment(tmp_path: Path) -> None:
    """Only for the gateway, only until the file has none, and none is to be read there."""
    environ = {**ENVIRON, "DOOR": "door-1"}
    (tmp_path / "key").write_text("door-2\n")
    file = stack(tmp_path, '{api_keys: ["${env:DOOR}", "${file:key}"]}')
    start = settle({}, file, environ)
    assert names(start) == {
        "gateway.api_keys[0]": key_digest("door-1"),
        "gateway.api_keys[1]": key_digest("door-2"),
    }
    assert "SAGE_API_KEYS" not in start.environ
    assert not [value for value in start.environ.values() if "door-" in value]
    assert start.watch_environ == environ
    assert names(settle({}, stack(tmp_path, "{}"), start.environ)) == {}


def test_keys_with_a_name(tmp_path: Path) -> None:
    text = f"""{{keys: [
      {{name: team-a, key: "${{env:A_KEY}}", models: [chat, "org/*"], requests_per_minute: 600,
        tokens_per_minute: 100000, max_concurrent: 20}},
      {{name: ops, sha256: "{key_digest("o").upper()}", admin: true}},
    ]}}"""
    start = settle({}, stack(tmp_path, text), {**ENVIRON, "A_KEY": "a", "SAGE_ADMIN_API_KEYS": "root"})
    keys = load_keys(start.environ, "")
    team, ops = keys.find(b"Bearer a", b""), keys.find(b"Bearer o", b"")
    assert team is not None
    assert ops is not None
    assert (team.name, team.models, team.is_admin) == ("team-a", ("chat", "org/*"), False)
    assert (team.requests_per_minute, team.tokens_per_minute, team.max_concurrent) == (600, 100000, 20)
    assert (ops.name, ops.models, ops.is_admin) == ("ops", (), True)
    # The administrator of the environment stays: only the keys of clients are the file's.
    assert keys.find(b"Bearer root", b"") is not None
    assert keys.find(b"Bearer e1", b"") is None
    assert "A_KEY" not in start.environ
    assert start.watch_environ["A_KEY"] == "a"


def test_a_variable_that_an_engine_is_sent_stays(tmp_path: Path) -> None:
    path = tmp_path / "sage.yaml"
    path.write_text(
        'gateway: {api_keys: ["${env:NEXT}", "${env:DOOR}"]}\n'
        "engines:\n"
        "  - {name: far, model: m, runtime: external, url: http://far, api_key: '${env:NEXT}'}\n"
    )
    start = settle({}, str(path), {"NEXT": "n", "DOOR": "d"})
    assert start.environ["NEXT"] == "n"
    assert "DOOR" not in start.environ


def test_a_key_file_of_the_command_line_goes_before_those_of_the_file(tmp_path: Path) -> None:
    file = stack(tmp_path, '{api_keys: ["${env:DOOR}"], keys: [{name: a, key: "${env:DOOR}"}]}')
    start = settle({"api_key_file": "/keys"}, file, {**ENVIRON, "DOOR": "d1"})
    assert names(start) == {"SAGE_API_KEYS[0]": key_digest("e1")}


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (" ", "DOOR is not set"),
        ("a,b", "a comma"),
        ("a\nb", "a line break"),
        ("sha256:a", "64 hex digits"),
    ],
)
@pytest.mark.parametrize(
    ("section", "place"),
    [
        ('{api_keys: ["${env:DOOR}"]}', r"gateway\.api_keys\[0\]"),
        ('{keys: [{name: a, key: "${env:DOOR}"}]}', r"gateway\.keys\[0\]\.key"),
    ],
)
def test_keys_that_cannot_be_used(tmp_path: Path, value: str, fault: str, section: str, place: str) -> None:
    with pytest.raises(PermanentError, match=rf"sage\.yaml: {place}: .*{fault}") as raised:
        settle({}, stack(tmp_path, section), {"DOOR": value})
    assert value == " " or value not in str(raised.value)


def test_the_same_key_twice(tmp_path: Path) -> None:
    """Which of two limits would count?"""
    text = f'{{api_keys: ["${{env:DOOR}}"], keys: [{{name: a, sha256: "{key_digest("d")}"}}]}}'
    fault = r"gateway\.keys\[0\]: this is the same key as gateway\.api_keys\[0\]"
    with pytest.raises(PermanentError, match=fault):
        settle({}, stack(tmp_path, text), {"DOOR": "d"})


def test_more_keys_than_a_variable_holds(tmp_path: Path) -> None:
    keys = ", ".join(f'{{name: k{number}, sha256: "{number:064x}"}}' for number in range(1500))
    with pytest.raises(PermanentError, match=r"1500 keys take \d+ bytes"):
        settle({}, stack(tmp_path, f"{{keys: [{keys}]}}"), {})


def test_origins(tmp_path: Path) -> None:
    """Those of the file only, where there is one; none of a file that has no more of them."""
    file = stack(tmp_path, "{cors_origins: [https://ui.example, 'http://localhost:3000']}")
    start = settle({}, file, ENVIRON)
    assert Settings.from_environ(start.environ).cors_origins == (
        "https://ui.example",
        "http://localhost:3000",
    )
    again = settle({}, stack(tmp_path, "{}"), start.environ)
    assert Settings.from_environ(again.environ).cors_origins == ()
    by_hand = {"SAGE_GATEWAY_CORS": "https://a, https://b"}
    assert Settings.from_environ(settle({}, "", by_hand).environ).cors_origins == ("https://a", "https://b")


def test_where_sessions_are_kept(tmp_path: Path) -> None:
    """What the file says of them alone counts, if it says anything; a secret stays a reference."""
    environ = {"SAGE_SESSIONS_URL": "sqlite:////a", "SAGE_SESSIONS_MAX_TURNS": "3", "DOOR": "secret"}
    file = stack(tmp_path, '{sessions: {url: "postgresql://u:${env:DOOR}@h/d", max_bytes: 9}}')
    start = settle({}, file, environ)
    assert "secret" not in start.environ["SAGE_GATEWAY_SESSIONS"]
    told = Settings.from_environ(start.environ).sessions
    assert (told.url, told.max_turns, told.max_bytes) == ("postgresql://u:${env:DOOR}@h/d", 200, 9)
    again = settle({}, stack(tmp_path, "{}"), start.environ)
    assert Settings.from_environ(again.environ).sessions == SessionSettings(True, "sqlite:////a", 3)
    assert not is_same_access(start.environ, again.environ)


@pytest.mark.parametrize(
    ("section", "is_same"),
    [
        ('{keys: [{name: a, key: "${env:DOOR}"}]}', True),
        ('{port: 9005, keys: [{name: a, key: "${env:DOOR}"}]}', True),
        ('{keys: [{name: a, key: "${env:OTHER}"}]}', False),
        ('{keys: [{name: a, key: "${env:DOOR}", requests_per_minute: 1}]}', False),
        ('{keys: [{name: a, key: "${env:DOOR}"}], cors_origins: ["*"]}', False),
        ("{}", False),
    ],
)
def test_what_lets_in_other_clients(tmp_path: Path, section: str, is_same: bool) -> None:
    environ = {"DOOR": "d", "OTHER": "o"}
    before = settle({}, stack(tmp_path, '{keys: [{name: a, key: "${env:DOOR}"}]}'), environ)
    after = settle({}, stack(tmp_path, section), environ)
    assert is_same_access(before.environ, after.environ) is is_same


def test_a_reference_that_is_missing_has_its_line(tmp_path: Path) -> None:
    file = stack(tmp_path, '{api_keys: ["${env:DOOR}", "${file:nowhere}"]}')
    with pytest.raises(StackError) as raised:
        settle({}, file, {})
    assert [fault.line for fault in raised.value.faults] == [3, 3]


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1"])
def test_a_variable_that_is_no_port(port: str) -> None:
    with pytest.raises(PermanentError, match=f"SAGE_GATEWAY_PORT is '{port}', which is no port"):
        settle({}, "", {"SAGE_GATEWAY_PORT": port})
    assert settle({"port": 8000}, "", {"SAGE_GATEWAY_PORT": port}).options.port == 8000
