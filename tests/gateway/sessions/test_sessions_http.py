"""The paths of sessions: who sees what, pages, titles, clearing, cleaning up; and what is not to be had."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.keysource import KeyEntry, to_text
from sage_reconcile.secrets import key_digest
from tests.gateway.sessions.talk import Person, anybody, counting, user
from tests.gateway.wire import RawEngine
from tests.gateway.world import Gateway, backend

NAMES = ("ann", "bob", "root")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    entries = [KeyEntry(name, key_digest(f"sk-{name}"), admin=name == "root") for name in NAMES]
    environ = {"SAGE_GATEWAY_KEYS": to_text(entries)}
    with (
        Gateway(tmp_path_factory.mktemp("guarded"), environ=environ) as running,
        RawEngine(counting) as engine,
    ):
        running.client.headers["authorization"] = "Bearer sk-root"
        running.serve({"m": [backend(engine.url, model="m")]})
        yield running
    assert "Traceback" not in "".join(running.output)


@pytest.fixture
def people(guarded: Gateway) -> Iterator[list[Person]]:
    everybody = [Person(guarded.url, f"sk-{name}") for name in NAMES]
    yield everybody
    everybody[-1].ask("POST", "/sessions/cleanup", params={"max_age_minutes": 0})


def test_a_session_is_of_the_key_that_made_it(people: list[Person]) -> None:
    ann, bob, root = people
    session = ann.new("mine")
    ann.say(session, "secret")
    one = f"/sessions/{session}"
    asked = [
        ("GET", one, {}),
        ("DELETE", one, {}),
        ("POST", f"{one}/clear", {}),
        ("PATCH", f"{one}/title", {"json": {"title": "x"}}),
        ("GET", f"/sessions?after={session}", {}),
        (
            "POST",
            "/v1/chat/completions",
            {"json": {"model": "m", "messages": [user("x")], "session_id": session}},
        ),
    ]
    nothing = [bob.ask(method, path.replace(session, "sess_x"), **more) for method, path, more in asked]
    for (method, path, more), same in zip(asked, nothing, strict=True):
        reply = bob.ask(method, path, **more)
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "session_not_found")
        # Nobody finds out whether there is one.
        assert reply.text.replace(session, "sess_x") == same.text.replace(session, "sess_x")
    assert bob.ask("GET", "/sessions").json()["data"] == []
    bob.ask("POST", "/sessions/cleanup", params={"max_age_minutes": 0})
    assert ann.texts(session) == ["secret", "secret of 1"]
    assert root.told(session)["owner"] == "ann"
    assert Person(ann.url).ask("GET", one).status_code == 401
    assert root.ask("DELETE", one).json() == {"id": session, "deleted": True, "object": "session.deleted"}
    assert ann.ask("GET", one).status_code == 404


def test_pages_go_through_all_and_tell_each_once(people: list[Person]) -> None:
    ann, bob, root = people
    made = [ann.new(f"{number}") for number in range(7)]
    bob.new()
    seen: list[str] = []
    query: dict[str, object] = {"limit": 3}
    while True:
        page = ann.ask("GET", "/sessions", params=query).json()
        seen += [one["id"] for one in page["data"]]
        if not page["has_more"]:
            break
        query["after"] = page["last_id"]
        # What is made or used meanwhile changes nothing of the pages to come.
        ann.say(made[0], "hi")
        bob.new()
    assert seen == made[::-1]
    assert len(root.ask("GET", "/sessions", params={"limit": 100}).json()["data"]) == 10
    assert ann.ask("GET", "/sessions", params={"limit": 101}).status_code == 400


def test_pages_of_what_was_said(people: list[Person]) -> None:
    ann = people[0]
    session = ann.new()
    for number in range(5):
        ann.say(session, f"{number}")

    def numbers(**query: int) -> tuple[list[int], bool]:
        told = ann.told(session, **query)
        return [turn["number"] for turn in told["history"]], told["has_more"]

    assert numbers(limit=2) == ([4, 5], True)
    assert numbers(limit=2, before=4) == ([2, 3], True)
    assert numbers(limit=2, before=2) == ([1], False)


def test_titles(people: list[Person]) -> None:
    ann = people[0]
    session = ann.new()
    assert ann.told(session)["title"] == ""
    ann.say(session, "What  is\nthe \x00capital of France, and of all the countries around it?")
    assert ann.told(session)["title"] == "What is the capital of France, and of all the countries aro…"
    assert ann.ask("PATCH", f"/sessions/{session}/title", json={"title": "Grüße"}).json()["title"] == "Grüße"
    ann.say(session, "more")
    assert ann.told(session)["title"] == "Grüße"
    for title in ("x" * 201, "a\x00b", 7, None):
        reply = ann.ask("PATCH", f"/sessions/{session}/title", json={"title": title})
        assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")


def test_clear_forgets_and_keeps_the_session(people: list[Person]) -> None:
    ann = people[0]
    session = ann.new("kept")
    ann.say(session, {"role": "system", "content": "be kind"}, "one")
    assert ann.ask("POST", f"/sessions/{session}/clear").json()["turns"] == 0
    told = ann.told(session)
    assert (told["title"], told["history"], told["instructions"]) == ("kept", [], [])
    assert ann.say(session, "two").json()["choices"][0]["message"]["content"] == "two of 1"


def test_cleanup_takes_what_was_not_used(people: list[Person]) -> None:
    ann, bob, root = people
    session = ann.new()
    bob.new()

    def cleaned(who: Person, minutes: object) -> int:
        reply = who.ask("POST", "/sessions/cleanup", params={"max_age_minutes": minutes})
        return int(reply.json()["deleted"]) if reply.status_code == 200 else -reply.status_code

    assert [cleaned(ann, 1), cleaned(ann, -1), cleaned(ann, "x")] == [0, -400, -400]
    assert ann.told(session)["turns"] == 0
    assert cleaned(ann, 0) == 1
    assert ann.ask("GET", f"/sessions/{session}").status_code == 404
    ann.new()
    assert cleaned(root, 0) == 2


def test_the_document_tells_of_sessions(guarded: Gateway) -> None:
    document = guarded.client.get("/schema/openapi.json").json()
    paths = {path: sorted(told) for path, told in document["paths"].items() if path.startswith("/sessions")}
    assert paths == {
        "/sessions": ["get", "post"],
        "/sessions/cleanup": ["post"],
        "/sessions/{session_id}": ["delete", "get"],
        "/sessions/{session_id}/clear": ["post"],
        "/sessions/{session_id}/title": ["patch"],
    }
    body = document["paths"]["/sessions"]["post"]["requestBody"]["content"]["application/json"]
    assert "Holidays" in str(body)
    assert "/sessions/cleanup" in guarded.client.get("/docs").text


def test_only_its_owner_reads_the_file(guarded: Gateway, people: list[Person]) -> None:
    people[0].new()
    files = [path for path in guarded.home.iterdir() if path.name.startswith("sage.db")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_off_is_off(tmp_path: Path, recorder_engine: RawEngine) -> None:
    with Gateway(tmp_path, environ={"SAGE_SESSIONS": "off"}) as gateway:
        gateway.serve({"m": [backend(recorder_engine.url, model="m")]})
        person = anybody(gateway)
        reply = person.ask("GET", "/sessions")
        assert (reply.status_code, reply.json()["error"]["code"]) == (501, "sessions_off")
        assert person.say("mine", "hi").status_code == 200
        assert b'"session_id":"mine"' in recorder_engine.asked[-1].body
        assert not (tmp_path / "sage.db").exists()


@pytest.fixture
def recorder_engine() -> Iterator[RawEngine]:
    with RawEngine(counting) as engine:
        yield engine


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://u:${env:SESSIONS_SECRET}@127.0.0.1:1/db", "SAGE_SESSIONS_URL"),
        ("postgresql://u:${env:NOT_THERE}@h/db", "NOT_THERE"),
        ("mysql://u:hidden@h/db", "mysql"),
        ("", "sage.db"),
    ],
    ids=["nobody listens", "no secret", "another database", "damaged file"],
)
def test_a_database_that_is_not_to_be_had(tmp_path: Path, url: str, told: str) -> None:
    (tmp_path / "sage.db").write_text("this is no database at all" * 100)
    environ = {"SAGE_SESSIONS_URL": url, "SESSIONS_SECRET": "hidden"}
    with Gateway(tmp_path, environ=environ) as gateway:
        reply = anybody(gateway).ask("GET", "/sessions")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "sessions_unavailable")
        assert told in reply.text
        if not url:
            (tmp_path / "sage.db").unlink()
            assert anybody(gateway).ask("GET", "/sessions").status_code == 200
    assert "hidden" not in reply.text + "".join(gateway.output)
    assert "Traceback" not in "".join(gateway.output)
