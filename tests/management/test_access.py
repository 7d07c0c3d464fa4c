"""Who may manage, and what is said where nobody can be asked."""

import os
from pathlib import Path

from tests.gateway.world import Gateway, wait_for
from tests.management.test_api import ROOT, control_pid

KEYS = {"SAGE_API_KEYS": "plain", "SAGE_ADMIN_API_KEYS": "boss", "SAGE_DISABLE_NVML": "1"}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_only_administrators_manage(tmp_path: Path) -> None:
    with Gateway(tmp_path / "home", environ=KEYS) as gateway:
        assert gateway.client.get(f"{ROOT}/engines").status_code == 401
        denied = gateway.client.get(f"{ROOT}/engines", headers=bearer("plain"))
        assert (denied.status_code, denied.json()["error"]["code"]) == (403, "admin_key_required")
        assert control_pid(gateway) == 0, "who may not manage starts nothing"
        assert gateway.client.get(f"{ROOT}/engines", headers=bearer("boss")).status_code == 200
        # Behind a proxy the host has another name, and the key is what counts.
        headers = {**bearer("boss"), "host": "gateway.example", "origin": "https://ui.example"}
        assert gateway.client.get(f"{ROOT}/engines", headers=headers).status_code == 200
        environ = Path(f"/proc/{control_pid(gateway)}/environ").read_bytes()
        assert b"boss" not in environ
        assert b"plain" not in environ


def test_without_keys_no_web_page_manages_and_nobody_writes_command_lines(tmp_path: Path) -> None:
    """Once words of a command line came from the network, which is running any code."""
    with Gateway(tmp_path / "home", environ={"SAGE_DISABLE_NVML": "1"}) as gateway:
        for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
            refused = gateway.client.post(f"{ROOT}/engines/prune", headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_key_required")
        assert control_pid(gateway) == 0
        own = {"origin": gateway.url}
        assert gateway.client.get(f"{ROOT}/gpu", headers=own).status_code == 200
        body = {"model_id": "m", "extra_args": ["--trust-remote-code"]}
        refused = gateway.client.post(f"{ROOT}/engines", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (403, "extra_args")
        assert not (tmp_path / "home" / "stacks").exists()


def test_where_it_cannot_be_started_the_answer_says_what_to_do(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Gateway(home, environ={"SAGE_CONTROL_IDLE_SECONDS": "nonsense"}) as gateway:
        refused = gateway.client.get(f"{ROOT}/engines")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "control_unavailable")
        assert "sage status" in refused.json()["error"]["message"]
        assert gateway.client.get("/health").status_code == 200


def test_it_ends_when_nobody_needs_it(tmp_path: Path) -> None:
    environ = {"SAGE_CONTROL_IDLE_SECONDS": "0.3", "SAGE_DISABLE_NVML": "1"}
    with Gateway(tmp_path / "home", environ=environ) as gateway:
        assert gateway.client.get(ROOT).status_code == 200
        wait_for(lambda: control_pid(gateway) == 0, "it ends")
        assert gateway.client.get(ROOT).status_code == 200
        assert os.path.exists(f"/proc/{gateway.process.pid}")
