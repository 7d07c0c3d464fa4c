"""What a client sees while engines come, go and break: nothing, where that is possible."""

import json
import threading
from contextlib import ExitStack

import httpx
import openai
import pytest

from tests.gateway.world import (
    FakeEngine,
    Gateway,
    RecordingEngine,
    Script,
    backend,
    digest_of,
    free_port,
    wait_for,
)


def test_not_ready_without_a_backend(gateway: Gateway) -> None:
    gateway.serve({"m": [backend("http://127.0.0.1:1", state="pending")]})
    reply = gateway.client.get("/ready")
    assert reply.status_code == 503
    assert reply.json()["routes"]["m"] == {"ready": 0, "pending": 1, "draining": 0, "in_flight": 0}
    assert gateway.client.get("/health").status_code == 200


def test_ready_with_one(gateway: Gateway, engine: FakeEngine) -> None:
    gateway.serve({"m": [backend(engine.url)], "n": []})
    assert gateway.client.get("/ready").status_code == 200


def test_a_dead_backend_is_passed_over(gateway: Gateway, engine: FakeEngine) -> None:
    dead = backend(f"http://127.0.0.1:{free_port()}", "dead#0")
    gateway.serve({"fake": [dead, backend(engine.url)]})
    assert [gateway.chat().status_code for _ in range(6)] == [200] * 6


def test_a_dead_backend_is_passed_over_though_it_is_the_idlest(
    gateway: Gateway, recorder: RecordingEngine
) -> None:
    event = b"data: {}\n\n"
    recorder.script = Script(200, {"content-type": "text/event-stream"}, [event, None])
    busy, dead = backend(recorder.url, model="m"), backend(f"http://127.0.0.1:{free_port()}", "dead#0")
    gateway.serve({"only-busy": [busy], "fake": [busy, dead]})
    ask = {"method": "POST", "url": "/v1/completions"}
    with (
        gateway.client.stream(**ask, json={"model": "only-busy"}) as first,
        gateway.client.stream(**ask, json={"model": "fake"}) as second,
    ):
        chunks = [reply.iter_raw() for reply in (first, second)]
        assert [next(chunk) for chunk in chunks] == [event] * 2


def test_an_engine_that_dies_before_the_first_byte_is_replaced(
    gateway: Gateway, engine: FakeEngine, stack: ExitStack
) -> None:
    dying = stack.enter_context(FakeEngine("--die-on-request"))
    gateway.serve({"fake": [backend(dying.url, "dying#0"), backend(engine.url)]})
    assert [gateway.chat().status_code for _ in range(4)] == [200] * 4
    assert dying.process.wait() == 9


def test_a_request_that_kills_engines_does_not_kill_all(gateway: Gateway, stack: ExitStack) -> None:
    dying = [stack.enter_context(FakeEngine("--die-on-request")) for _ in range(4)]
    gateway.serve({"fake": [backend(one.url, f"d#{at}") for at, one in enumerate(dying)]}, hold=5)
    reply = gateway.chat()
    assert reply.status_code == 502
    assert reply.json()["error"]["code"] == "engine_lost"
    wait_for(lambda: [one.process.poll() for one in dying].count(None) == 1, "three of four have ended")


def test_no_ready_backend_in_time(gateway: Gateway) -> None:
    gateway.serve({"fake": [backend("http://127.0.0.1:1", state="pending")]}, hold=0.3)
    reply = gateway.chat()
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.json()["error"]["code"] == "no_ready_backend"
    assert reply.headers["x-sage-src"] == "sage"


def test_a_backend_that_nobody_answers_at(gateway: Gateway) -> None:
    gateway.serve({"fake": [backend(f"http://127.0.0.1:{free_port()}", "dead#0")]})
    reply = gateway.chat()
    assert reply.status_code == 503
    assert "dead#0" in reply.json()["error"]["message"]


def in_background(gateway: Gateway, replies: list[httpx.Response]) -> threading.Thread:
    asking = threading.Thread(target=lambda: replies.append(gateway.chat()))
    asking.start()
    return asking


def test_held_until_ready(gateway: Gateway, engine: FakeEngine) -> None:
    gateway.serve({"fake": [backend(engine.url, state="pending")]}, hold=60)
    replies: list[httpx.Response] = []
    asking = in_background(gateway, replies)
    wait_for(lambda: gateway.client.get("/ready").json()["held"] == 1, "the request is held")
    assert not replies
    gateway.serve({"fake": [backend(engine.url)]}, hold=60)
    asking.join()
    assert replies[0].status_code == 200


def test_held_until_it_listens(gateway: Gateway, stack: ExitStack) -> None:
    # An engine that its supervisor starts again on the same port: the table says ready all the time.
    port = free_port()
    gateway.serve({"fake": [backend(f"http://127.0.0.1:{port}")]}, hold=60)
    replies: list[httpx.Response] = []
    asking = in_background(gateway, replies)
    wait_for(lambda: gateway.client.get("/ready").json()["held"] == 1, "the request is held")
    stack.enter_context(FakeEngine(port=port))
    asking.join()
    assert replies[0].status_code == 200


def test_a_draining_backend_gets_nothing_new(
    gateway: Gateway, engine: FakeEngine, recorder: RecordingEngine
) -> None:
    gateway.serve({"fake": [backend(recorder.url, "old#0", state="draining"), backend(engine.url)]})
    assert [gateway.chat().status_code for _ in range(4)] == [200] * 4
    assert recorder.requests == []


def test_requests_are_spread(gateway: Gateway, stack: ExitStack) -> None:
    engines = [stack.enter_context(FakeEngine()) for _ in range(2)]
    gateway.serve({"fake": [backend(one.url, f"e#{at}") for at, one in enumerate(engines)]})
    pids = [gateway.chat().headers["x-engine-pid"] for _ in range(6)]
    assert sorted(pids) == sorted([str(one.process.pid) for one in engines] * 3)


def test_a_bad_table_changes_nothing(gateway: Gateway, engine: FakeEngine) -> None:
    digest = gateway.serve({"fake": [backend(engine.url)]})
    gateway.write(b'{"routes": ')
    wait_for(lambda: gateway.table()["fault"], "the fault is told")
    assert gateway.table()["digest"] == digest
    assert gateway.chat().status_code == 200
    (gateway.home / "routing" / "routing.json").unlink()
    wait_for(lambda: "No such file" in str(gateway.table()["fault"]), "the missing file is told")
    assert gateway.chat().status_code == 200
    gateway.serve({"other": [backend(engine.url)]})
    assert gateway.table()["fault"] is None
    assert gateway.chat().status_code == 404


def test_leaving_cancels_a_stream(gateway: Gateway, stack: ExitStack) -> None:
    slow = stack.enter_context(FakeEngine("--answer", "word " * 5000, "--chunk-delay", "0.05"))
    gateway.serve({"fake": [backend(slow.url)]})
    body = {"model": "fake", "stream": True}
    with gateway.client.stream("POST", "/v1/chat/completions", json=body) as reply:
        chunks = reply.iter_raw()
        next(chunks)
        assert slow.running() == 1
    wait_for(lambda: slow.running() == 0, "the engine's work ends")
    wait_for(lambda: gateway.client.get("/ready").json()["in_flight"] == 0, "nothing is counted any more")


def test_leaving_before_the_first_byte_cancels(gateway: Gateway, recorder: RecordingEngine) -> None:
    recorder.script = Script(wait_for_client_to_leave=True)
    gateway.serve({"fake": [backend(recorder.url)]})

    def ask_and_leave() -> None:
        # The timeout is how this client leaves: the engine never answers.
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{gateway.url}/v1/completions", json={"model": "fake"}, timeout=1, trust_env=False)

    ask_and_leave()
    assert recorder.asked.is_set()
    wait_for(recorder.left.is_set, "the engine sees that the client has left")


def test_a_stream_that_breaks_ends_with_an_error_event(gateway: Gateway, stack: ExitStack) -> None:
    dying = stack.enter_context(FakeEngine("--die-after-events", "2"))
    gateway.serve({"fake": [backend(dying.url)]})
    with gateway.client.stream(
        "POST", "/v1/chat/completions", json={"model": "fake", "stream": True}
    ) as reply:
        events = b"".join(reply.iter_raw()).decode().split("\n\n")
    assert reply.status_code == 200
    assert [json.loads(event[6:])["object"] for event in events[:2]] == ["chat.completion.chunk"] * 2
    error = json.loads(events[2].removeprefix("data: "))["error"]
    assert (error["code"], error["src"]) == ("engine_lost", "sage")
    assert events[3:] == [""]


def test_the_sdk_raises_at_a_broken_stream(gateway: Gateway, stack: ExitStack) -> None:
    dying = stack.enter_context(FakeEngine("--die-after-events", "2"))
    gateway.serve({"fake": [backend(dying.url)]})
    http = httpx.Client(trust_env=False)
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="x", http_client=http) as client:
        stream = client.completions.create(model="fake", prompt="x", stream=True)
        with pytest.raises(openai.APIError, match="was lost while it was answering"):
            list(stream)


def test_a_plain_answer_that_breaks_is_not_taken_for_whole(
    gateway: Gateway, recorder: RecordingEngine
) -> None:
    def half() -> object:
        yield b'{"half": '
        raise ConnectionAbortedError

    recorder.script = Script(chunks=half())  # type: ignore[arg-type]
    gateway.serve({"fake": [backend(recorder.url)]})
    with pytest.raises(httpx.RemoteProtocolError):
        gateway.chat()
    assert gateway.client.get("/health").status_code == 200


def test_the_digest_is_of_the_bytes(gateway: Gateway) -> None:
    digest = gateway.serve({})
    assert digest == digest_of((gateway.home / "routing" / "routing.json").read_bytes())
