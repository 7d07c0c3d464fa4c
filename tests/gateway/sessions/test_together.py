"""Many at once, several workers and gateways, and processes that are killed in the middle of it all."""

import os
import signal
import socket
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx

from tests.gateway.sessions.talk import Person, anybody, body_of, counting, events, user
from tests.gateway.wire import Answer, Asked, RawEngine
from tests.gateway.world import DEADLINE_S, Gateway, backend, wait_for

PARALLEL = 20


def serve(stack: ExitStack, answer: Answer, *gateways: Gateway) -> RawEngine:
    engine = stack.enter_context(RawEngine(answer))
    for gateway in gateways:
        gateway.serve({"m": [backend(engine.url, model="m")]})
    return engine


def clients_by_worker(stack: ExitStack, gateway: Gateway, each: int) -> dict[int, list[httpx.Client]]:
    """Clients with an open connection each, so many to either of two workers, by pid."""
    found: dict[int, list[httpx.Client]] = defaultdict(list)

    def has_all() -> bool:
        client = stack.enter_context(httpx.Client(base_url=gateway.url, trust_env=False, timeout=DEADLINE_S))
        found[client.get("/health").json()["pid"]].append(client)
        return len(found) == 2 and all(len(clients) >= each for clients in found.values())

    wait_for(has_all, "both workers have connections")
    return {pid: clients[:each] for pid, clients in found.items()}


def say_on(client: httpx.Client, session: str, text: str) -> int:
    body = {"model": "m", "messages": [user(text)], "session_id": session}
    return client.post("/v1/chat/completions", json=body).status_code


def assert_in_order(person: Person, session: str, count: int) -> None:
    """Every turn was asked with exactly those before it."""
    told = person.told(session, limit=100)
    assert [turn["number"] for turn in told["history"]] == list(range(1, count + 1))
    for turn in told["history"]:
        said, answer = (message["content"] for message in turn["messages"])
        assert answer == f"{said} of {2 * turn['number'] - 1}"


def all_at_once(asking: list[Callable[[int], int]]) -> None:
    with ThreadPoolExecutor(len(asking)) as pool:
        statuses = list(pool.map(lambda pair: pair[1](pair[0]), enumerate(asking)))
    assert statuses == [200] * len(asking)


def test_turns_of_one_session_in_two_workers(stack: ExitStack, tmp_path: Path) -> None:
    gateway = stack.enter_context(Gateway(tmp_path, "--workers", "2"))
    engine = serve(stack, counting, gateway)
    person = anybody(gateway)
    session = person.new()
    workers = clients_by_worker(stack, gateway, PARALLEL // 2)
    clients = [client for clients in workers.values() for client in clients]
    all_at_once(
        [lambda number, by=client: say_on(by, session, f"{number}") for client in clients]  # type: ignore[misc]
    )
    assert engine.most == 1
    assert_in_order(person, session, PARALLEL)


def test_turns_of_one_session_in_two_gateways(stack: ExitStack, tmp_path: Path, postgres: str) -> None:
    environ = {"SAGE_SESSIONS_URL": postgres.replace("//", "//sage:${env:SESSIONS_SECRET}@")}
    environ |= {"SESSIONS_SECRET": "any"}
    gateways = [stack.enter_context(Gateway(tmp_path / name, environ=environ)) for name in "ab"]
    engine = serve(stack, counting, *gateways)
    people = [anybody(gateway) for gateway in gateways]
    session = people[0].new()
    asking = [
        lambda number, by=people[at % 2]: by.say(session, f"{number}").status_code for at in range(PARALLEL)
    ]
    all_at_once(asking)  # type: ignore[arg-type]
    assert engine.most == 1
    for person in people:
        assert_in_order(person, session, PARALLEL)
    assert not (tmp_path / "a" / "sage.db").exists()
    assert people[1].ask("POST", f"/sessions/{session}/clear").json()["turns"] == 0
    assert people[0].say(session, {"role": "system", "content": "x"}, "new").status_code == 200
    page = people[0].ask("GET", "/sessions").json()
    assert [one["turns"] for one in page["data"]] == [1]
    assert people[0].ask("GET", "/sessions", params={"after": session}).json()["data"] == []
    assert people[0].ask("GET", "/sessions/%00").status_code == 404
    assert people[0].ask("POST", "/sessions/cleanup?max_age_minutes=0").json() == {"deleted": 1}


def test_a_worker_killed_in_the_middle_of_a_turn(stack: ExitStack, tmp_path: Path) -> None:
    def answer(asked: Asked, connection: socket.socket) -> bool:
        if body_of(asked)["messages"][-1]["content"] == "slow":
            connection.sendall(events({"content": "a"})[:-30])
            connection.recv(1)
            return False
        return counting(asked, connection)

    gateway = stack.enter_context(Gateway(tmp_path, "--workers", "2"))
    serve(stack, answer, gateway)
    person = anybody(gateway)
    session = person.new()
    (pid, [victim]), (_, [other]) = clients_by_worker(stack, gateway, 1).items()
    assert say_on(victim, session, "one") == 200
    body = {"model": "m", "messages": [user("slow")], "session_id": session, "stream": True}
    request = victim.build_request("POST", "/v1/chat/completions", json=body)
    reply = victim.send(request, stream=True)
    assert next(reply.iter_raw())
    os.kill(pid, signal.SIGKILL)
    assert say_on(other, session, "two") == 200
    assert person.texts(session) == ["one", "one of 1", "two", "two of 3"]
    reply.close()
    assert_sound(tmp_path)


def test_workers_killed_while_they_write(stack: ExitStack, tmp_path: Path) -> None:
    """What was answered is there, whoever was killed; nothing is there in part."""
    gateway = stack.enter_context(Gateway(tmp_path, "--workers", "2"))
    serve(stack, counting, gateway)
    person = anybody(gateway)
    sessions = [person.new() for _ in range(4)]
    answered = dict.fromkeys(sessions, 0)
    is_over = threading.Event()

    def talk(session: str) -> None:
        while not is_over.is_set():
            try:
                answered[session] += person.say(session, "x").status_code == 200
            except httpx.TransportError:
                pass  # its worker was killed

    with ThreadPoolExecutor(len(sessions)) as pool:
        for session in sessions:
            pool.submit(talk, session)
        try:
            for round in range(1, 3):
                wait_for(lambda least=5 * round: min(answered.values()) >= least, "turns are answered")
                os.kill(gateway.client.get("/health").json()["pid"], signal.SIGKILL)
                gateway.client.close()
                gateway.client = httpx.Client(base_url=gateway.url, trust_env=False, timeout=DEADLINE_S)
        finally:
            is_over.set()
    for session in sessions:
        turns = person.told(session)["turns"]
        # A turn may have been stored, and its worker killed before it could say so.
        assert answered[session] <= turns <= answered[session] + 2
    assert_sound(tmp_path)


def assert_sound(home: Path) -> None:
    database = sqlite3.connect(home / "sage.db")
    try:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        odd = """SELECT s.id FROM sage_session s LEFT JOIN sage_turn t ON t.session_id = s.id GROUP BY s.id
                 HAVING s.turns != COUNT(t.number) OR s.turns != COALESCE(MAX(t.number), 0)
                     OR s.size != COALESCE(SUM(t.size), 0)"""
        assert database.execute(odd).fetchall() == []
    finally:
        database.close()


def test_what_cannot_be_stored_is_no_whole_reply(stack: ExitStack, tmp_path: Path) -> None:
    """Whoever has a whole reply finds it in the session."""
    gateway = stack.enter_context(Gateway(tmp_path))

    def answer(asked: Asked, connection: socket.socket) -> bool:
        if body_of(asked)["messages"][-1]["content"] == "lost":
            # Stands for a disk that is full from now on: the next write fails.
            database = sqlite3.connect(tmp_path / "sage.db")
            database.execute("DROP TABLE sage_turn")
            database.close()
        if body_of(asked).get("stream"):
            connection.sendall(events({"content": "a"}))
            return True
        return counting(asked, connection)

    serve(stack, answer, gateway)
    person = anybody(gateway)
    session = person.new()
    assert person.say(session, "one").status_code == 200
    reply = person.say(session, "lost")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "sessions_unavailable")


def test_a_stream_that_cannot_be_stored_ends_with_an_error(stack: ExitStack, tmp_path: Path) -> None:
    gateway = stack.enter_context(Gateway(tmp_path))
    go_on = threading.Event()

    def answer(_: Asked, connection: socket.socket) -> bool:
        data = events({"content": "a"})
        at = data.index(b"\n\n\r\n") + 4
        connection.sendall(data[:at])
        assert go_on.wait(DEADLINE_S)
        connection.sendall(data[at:])
        return True

    serve(stack, answer, gateway)
    person = anybody(gateway)
    body = {"model": "m", "messages": [user("x")], "session_id": person.new(), "stream": True}
    url = f"{person.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, trust_env=False, timeout=DEADLINE_S) as reply:
        pieces = reply.iter_raw()
        told = next(pieces)
        database = sqlite3.connect(tmp_path / "sage.db")
        database.execute("DROP TABLE sage_turn")
        database.close()
        go_on.set()
        told += b"".join(pieces)
    assert b"sessions_unavailable" in told
    assert b"[DONE]" not in told
