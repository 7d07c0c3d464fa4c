"""What a gateway is started with: the command line, then the stack file, then the environment."""

from pathlib import Path

import pytest

from sage_reconcile.errors import PermanentError, StackError
from sage_reconcile.gatewayd.options import GatewayOptions
from sage_reconcile.gatewayd.settle import Start, settle, settle_again

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


def test_keys_of_the_file_replace_those_of_the_environment(tmp_path: Path) -> None:
    """Only for the gateway, and only until the file has none."""
    environ = {**ENVIRON, "DOOR": "d1"}
    (tmp_path / "key").write_text("d2\n")
    file = stack(tmp_path, '{api_keys: ["${env:DOOR}", "${file:key}"]}')
    start = settle({}, file, environ)
    assert keys(start) == "d1,d2"
    assert start.watch_environ == environ
    assert keys(settle({}, stack(tmp_path, "{}"), start.environ)) is None


def test_a_key_file_of_the_command_line_goes_before_those_of_the_file(tmp_path: Path) -> None:
    file = stack(tmp_path, '{api_keys: ["${env:DOOR}"]}')
    assert keys(settle({"api_key_file": "/keys"}, file, {**ENVIRON, "DOOR": "d1"})) == "e1"


@pytest.mark.parametrize(
    ("value", "fault"), [(" ", "DOOR is not set"), ("a,b", "a comma"), ("a\nb", "a line break")]
)
def test_keys_that_cannot_be_used(tmp_path: Path, value: str, fault: str) -> None:
    file = stack(tmp_path, '{api_keys: ["${env:DOOR}"]}')
    with pytest.raises(PermanentError, match=rf"sage\.yaml: gateway\.api_keys\[0\]: .*{fault}") as raised:
        settle({}, file, {"DOOR": value})
    assert value == " " or value not in str(raised.value)


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
