"""`sage gateway status` at 80 columns, and while the gateway is stopped."""

import pytest

from sage_reconcile.cli.gatewaystatus import Shown, print_text
from sage_reconcile.gatewayd import GatewayProcess
from sage_reconcile.gatewayd.options import GatewayOptions
from sage_reconcile.model.routing import Backend, Route, RoutingTable

URL = "https://a-long-name-of-a-host.somewhere.example.com:18443/serving/engines/chat"
NAMES = ("Qwen/Qwen2.5-Coder-32B-Instruct-GPTQ-Int4", "a-name-that-clients-use-for-the-coder")


def shown(gateway: GatewayProcess | None) -> Shown:
    backend = Backend("b1", "production", "coder", 0, URL, NAMES[0], "llm")
    table = RoutingTable(tuple(Route(name, "llm", ("b1",)) for name in NAMES), (backend,))
    return Shown(gateway, gateway is not None, None, "", False, "", table, "", "")


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def column(lines: list[str], title: str) -> str:
    """What stands under the title, put together again."""
    [head] = [line for line in lines if line.startswith("State")]
    at, below = head.index(title), lines[lines.index(head) + 1 :]
    return "".join(line[at:].split("  ")[0].strip() for line in below)


def test_addresses_and_names_are_folded_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    print_text(shown(GatewayProcess(1, 0.0, GatewayOptions())))
    out = capsys.readouterr().out
    lines = out.splitlines()
    table = lines[next(n for n, line in enumerate(lines) if line.startswith("State")) :]
    assert max(map(len, table)) <= 80
    assert "…" not in out
    assert column(lines, "Address") == URL
    assert column(lines, "Engine") == "production/coder#0"
    names = column(lines, "Names")
    assert all(name in names for name in NAMES)


def test_a_stopped_gateway_serves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_text(shown(None))
    out = capsys.readouterr().out
    assert "These routes are published, but nobody serves them" in out
    assert "Registered engines" not in out
