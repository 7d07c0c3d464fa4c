"""The management API through a real gateway, with fake engines as real processes."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.world import World
from tests.gateway.world import FakeEngine, Gateway, free_port, wait_for
from tests.processes import is_alive

ROOT = "/v1/management"


def start(gateway: Gateway, model: str = "org/m", query: str = "?wait=true", **more: Any) -> httpx.Response:
    body = {"model_id": model, "runtime": "fake", "port": free_port(), **more}
    return gateway.client.post(f"{ROOT}/engines{query}", json=body)


def engines(gateway: Gateway) -> dict[str, dict[str, Any]]:
    found = gateway.client.get(f"{ROOT}/engines").json()
    assert found["count"] == len(found["engines"])
    return {one["engine_id"]: one for one in found["engines"]}


def control_pid(gateway: Gateway) -> int:
    """The control process, 0 while there is none."""
    for child in Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children").read_text().split():
        if "sage_reconcile.management" in Path(f"/proc/{child}/cmdline").read_text():
            return int(child)
    return 0


def test_nobody_pays_for_it_who_does_not_use_it(gateway: Gateway) -> None:
    assert control_pid(gateway) == 0
    found = gateway.client.get(ROOT).json()
    assert f"GET {ROOT}/engines" in found["routes"]
    assert control_pid(gateway) != 0


def test_the_first_systems_shapes(gateway: Gateway, world: World) -> None:
    assert start(gateway).status_code == 200
    (engine,) = engines(gateway).values()
    names = "engine_id model_id host port state engine_kind created_at last_heartbeat consecutive_failures"
    assert {*names.split(), "active_requests", "metadata"} <= engine.keys()
    assert (engine["engine_id"], engine["state"]) == ("adhoc/m#0", "READY")
    status = gateway.client.get(f"{ROOT}/status").json()
    expected = {"control_plane", "gpu", "engines", "managed_instances", "resource_reservations"}
    assert status.keys() == expected
    assert status["managed_instances"] == ["adhoc/m#0"]
    backends = gateway.client.get(f"{ROOT}/backends").json()
    counts = ("total_llm_backends", "healthy_llm_backends", "total_embedding_backends")
    assert [backends[name] for name in counts] == [1, 1, 0]
    assert gateway.client.get(f"{ROOT}/gpu").json() == {"gpus": [], "gaps": []}


def test_api_command_and_file_tell_of_one_record(gateway: Gateway, world: World) -> None:
    started = start(gateway, "org/My-Model", engine_label="main", max_concurrent_requests=7)
    assert started.status_code == 200, started.text
    operation = started.json()
    assert (operation["state"], operation["engine_id"]) == ("done", "adhoc/my-model#0")
    assert "max_concurrent: 7" in (world.home / "stacks" / "adhoc.yaml").read_text()
    (row,) = world("llm", "engine", "list", "--json").ok().json()["engines"]
    assert (row["id"], row["state"], row["port"]) == ("my-model", "ready", operation["engines"][0]["port"])
    assert "No changes" in world("plan", world.home / "stacks" / "adhoc.yaml").ok().out
    wait_for(lambda: gateway.chat("main").status_code == 200, "the gateway routes to it")

    pids = world.pids("adhoc")["my-model#0"]
    stopped = gateway.client.delete(f"{ROOT}/engines/adhoc%2Fmy-model%230?wait=true")
    assert stopped.status_code == 200, stopped.text
    assert not is_alive(pids.engine)
    assert engines(gateway)["adhoc/my-model#0"]["state"] == "STOPPED"
    (row,) = world("llm", "engine", "list", "--json").ok().json()["engines"]
    assert row["state"] == "stopped"
    # And the other way round.
    world("llm", "engine", "start", "org/My-Model").ok()
    assert engines(gateway)["adhoc/my-model#0"]["state"] == "READY"
    world("llm", "engine", "stop", "my-model").ok()
    assert (
        gateway.client.post(f"{ROOT}/engines/prune?wait=true")
        .json()["events"][-1]["text"]
        .endswith("my-model")
    )
    assert engines(gateway) == {}


def test_an_operation_is_followed(gateway: Gateway, world: World) -> None:
    begun = start(gateway, query="")
    assert begun.status_code == 202
    assert begun.headers["location"] == f"{ROOT}/operations/{begun.json()['id']}"
    events: list[tuple[str, dict[str, Any]]] = []
    with gateway.client.stream("GET", f"{begun.headers['location']}/events") as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        kind = ""
        for line in reply.iter_lines():
            word, _, rest = line.partition(": ")
            kind = rest if word == "event" else kind
            if word == "data":
                events.append((kind, json.loads(rest)))
    assert [kind for kind, _ in events][-1] == "end"
    assert any("waiting until it answers" in data["text"] for kind, data in events if kind == "progress")
    assert events[-1][1]["state"] == "done"
    assert gateway.client.get(begun.headers["location"]).json()["state"] == "done"
    assert gateway.client.get(f"{ROOT}/operations/op-none").json()["error"]["code"] == "operation_not_found"


def test_an_engine_that_dies_while_it_loads_is_a_failure(gateway: Gateway, world: World) -> None:
    """Once a preset "succeeded" when its engine died while loading, and errors came as HTTP 200."""
    before = (world.home / "stacks" / "adhoc.yaml").read_bytes()
    text = before.decode().replace('"{model}"]', '"{model}", "--exit-after", "0"]')
    (world.home / "stacks" / "adhoc.yaml").write_text(text)
    failed = start(gateway)
    assert failed.status_code == 422, failed.text
    error = failed.json()["error"]
    assert (error["src"], error["type"], error["code"]) == ("sage", "invalid_request_error", "refused")
    assert "as it was before" in error["message"]
    assert engines(gateway) == {}


def test_a_crash_is_shown_and_listing_changes_nothing(gateway: Gateway, world: World) -> None:
    """Once a crash was masked as running, and listing engines disabled their restart."""
    start(gateway)
    pids = world.pids("adhoc")["m#0"]
    os.kill(pids.engine, signal.SIGKILL)
    wait_for(lambda: engines(gateway)["adhoc/m#0"]["restarts"] == 1, "the restart is told")
    again = world.until_ready("m#0", stack="adhoc")["m#0"]
    assert again.engine != pids.engine
    wait_for(lambda: engines(gateway)["adhoc/m#0"]["state"] == "READY", "it is ready again")


def test_an_engine_elsewhere_is_routed_to_and_never_owned(gateway: Gateway, world: World) -> None:
    with FakeEngine(model="far") as far:
        body = {"url": f"{far.url}/v1", "model_id": "far", "metadata": {"room": "7"}}
        registered = gateway.client.post(f"{ROOT}/engines/register?wait=true", json=body)
        assert registered.status_code == 200, registered.text
        info = engines(gateway)["adhoc/far#0"]
        assert (info["state"], info["is_managed"], info["url"]) == ("READY", False, far.url)
        assert info["metadata"] == {"room": "7"}
        wait_for(lambda: gateway.chat("far").status_code == 200, "the gateway routes to it")
        gone = gateway.client.delete(f"{ROOT}/engines/far?wait=true")
        assert gone.status_code == 200, gone.text
        assert engines(gateway) == {}
        assert far.process.poll() is None
        wait_for(lambda: gateway.chat("far").status_code == 404, "nothing goes there any more")


def test_addresses_that_are_no_engines_are_refused(gateway: Gateway) -> None:
    urls = {
        "http://169.254.169.254/latest": "metadata",
        "http://[fe80::1]:80": "metadata",
        "http://[::ffff:169.254.169.254]": "metadata",
        "http://0.0.0.0:80": "not the address of one machine",
        "ftp://127.0.0.1": "write it as",
        "http://user:pass@127.0.0.1:80": "no user and password",
        f"http://127.0.0.1:{free_port()}": "nothing answers",
    }
    for url, told in urls.items():
        refused = gateway.client.post(
            f"{ROOT}/engines/register?wait=true", json={"url": url, "model_id": "m"}
        )
        assert (refused.status_code, told in refused.text) == (422, True), (url, refused.text)


def test_what_contradicts_what_is_there_is_a_conflict(gateway: Gateway, world: World) -> None:
    start(gateway, port=(port := free_port()))
    other = start(gateway, port=port, max_concurrent_requests=3)
    assert other.status_code == 200, "what only the gateway notices needs no new process"
    conflict = start(gateway, port=free_port())
    assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "conflict")
    missing = gateway.client.delete(f"{ROOT}/engines/mm")
    assert (missing.status_code, "did you mean m?" in missing.text) == (404, True)


def test_a_killed_control_process_comes_back_and_nobody_notices(gateway: Gateway, world: World) -> None:
    start(gateway, engine_label="main")
    pids = world.pids("adhoc")
    wait_for(lambda: gateway.chat("main").status_code == 200, "the gateway routes to it")
    old = control_pid(gateway)
    os.kill(old, signal.SIGKILL)
    assert gateway.chat("main").status_code == 200
    wait_for(lambda: control_pid(gateway) != old, "it is gone")
    assert engines(gateway)["adhoc/m#0"]["state"] == "READY"
    assert control_pid(gateway) not in (0, old)
    assert world.pids("adhoc") == pids
    new = control_pid(gateway)
    os.kill(gateway.process.pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(new), "it does not outlive its gateway")


def test_a_stop_waits_for_requests_that_are_counted(gateway: Gateway, world: World) -> None:
    """Once draining was hollow: nobody counted the requests in flight."""
    path = world.home / "stacks" / "adhoc.yaml"
    path.write_text(path.read_text().replace('"{model}"]', '"{model}", "--request-delay", "4"]'))
    assert start(gateway).status_code == 200
    wait_for(lambda: "org/m" in gateway.client.get("/v1/models").text, "the gateway routes to it")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(gateway.chat, "org/m")
        wait_for(lambda: engines(gateway)["adhoc/m#0"]["active_requests"] == 1, "it is counted")
        stopped = gateway.client.delete(f"{ROOT}/engines/m?wait=true")
        assert stopped.status_code == 200
        assert answer.result().status_code == 200
    assert engines(gateway)["adhoc/m#0"]["active_requests"] == 0
