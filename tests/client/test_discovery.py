"""Where a client looks, in which order, and what it says when there is nothing."""

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from sage_reconcile.client import AccessDeniedError, NoBackendError, UnifiedInferenceClient, UnknownModelError
from sage_reconcile.errors import PermanentError, TransientError
from sage_reconcile.model.desired import Kind
from sage_reconcile.plan import ports
from tests.client.conftest import Machine
from tests.client.world import ListingEngine, Service
from tests.gateway.world import FakeEngine
from tests.processes import free_port

create = UnifiedInferenceClient.create


def engine(stack: ExitStack, answer: str, port: int | None = None, model: str = "fake") -> FakeEngine:
    return stack.enter_context(FakeEngine("--answer", answer, port=port, model=model))


def test_the_order_of_places(
    stack: ExitStack, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = stack.enter_context(Service(tmp_path, machine.gateway_port))
    with pytest.raises(NoBackendError, match=rf"the gateway at {gateway.url} serves no model"):
        create()
    found = engine(stack, "an engine", machine.llm_ports[1])
    with create() as made:
        assert made.chat("hi") == "an engine"
        assert [known.url for known in made.backends] == [found.url]
    gateway.publish([("fake", "llm", engine(stack, "the gateway").url, "ready")])
    with create() as made:
        assert made.chat("hi") == "the gateway"
    monkeypatch.setenv("SAGE_UNIFIED_BASE_URL", f"{engine(stack, 'the variable').url}/v1/")
    with create() as made:
        assert made.chat("hi") == "the variable"
    with create(engine(stack, "the argument").url) as made:
        assert made.chat("hi") == "the argument"


def test_the_ports_are_those_that_sage_gives_out() -> None:
    assert {kind.value: (of[0], of[-1]) for kind, of in ports.RANGES.items()} == {
        "llm": (8901, 8999),
        "embedding": (8090, 8199),
    }


def test_engines_are_told_apart_by_their_ports(stack: ExitStack, machine: Machine) -> None:
    engine(stack, "x", machine.embedding_ports[2], model="vec")
    engine(stack, "y", machine.llm_ports[3], model="chat")
    with create() as made:
        assert made.chat("hi", return_result=True).model == "chat"
        assert len(made.embed(["a", "b"])) == 2
        with pytest.raises(UnknownModelError, match=r"the model 'other' is not served .*: chat, vec$"):
            made.chat("hi", model="other")


def test_engines_found_on_ports_get_no_key(
    stack: ExitStack, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine(stack, "x", machine.llm_ports[0])
    monkeypatch.setenv("SAGE_UNIFIED_API_KEY", "of-the-gateway")
    with create(api_key="of-the-gateway") as made:
        echo = made.chat("hi", return_result=True).raw["echo"]
    assert "of-the-gateway" not in str(echo["headers"])


def test_what_cannot_list_its_models_is_passed_over_and_told(stack: ExitStack, machine: Machine) -> None:
    blind = stack.enter_context(FakeEngine("--no-models", port=machine.llm_ports[0]))
    with pytest.raises(NoBackendError, match=rf"port {blind.port}: /v1/models answered 500"):
        create()
    engine(stack, "from the other", machine.llm_ports[1])
    with create() as made:
        assert made.chat("hi") == "from the other"


def test_another_program_on_the_gateways_port_is_no_gateway(stack: ExitStack, machine: Machine) -> None:
    engine(stack, "not sage", machine.gateway_port)
    with pytest.raises(NoBackendError, match="is not sage's gateway"):
        create()


def test_nothing_at_all_is_one_error_that_says_what_was_tried(machine: Machine) -> None:
    with pytest.raises(NoBackendError) as told:
        create()
    llm, embedding = machine.llm_ports, machine.embedding_ports
    for said in (
        "SAGE_UNIFIED_BASE_URL is not set",
        f"no gateway answers at http://127.0.0.1:{machine.gateway_port} (Connection refused)",
        f"ports {llm[0]}-{llm[-1]} and {embedding[0]}-{embedding[-1]}",
        "`sage apply`, `sage gateway start`",
        "control_plane_url=",
    ):
        assert said in str(told.value)
    assert isinstance(told.value, TransientError)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("model", [None, "m"])
def test_a_given_place_that_is_dead_is_told(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, model: str | None
) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    with create(dead) as made:
        for ask in (made.chat, made.generate, made.embed):
            with pytest.raises(NoBackendError, match=rf"^{dead}.* cannot be reached \(Connection refused\)"):
                ask("hi", model=model)  # type: ignore[operator]
    monkeypatch.setenv("SAGE_UNIFIED_BASE_URL", dead)
    with create() as made, pytest.raises(NoBackendError, match="given by SAGE_UNIFIED_BASE_URL"):
        made.chat("hi")


def test_a_wrong_key_is_told_and_not_gone_around(
    stack: ExitStack, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = engine(stack, "let in", machine.llm_ports[0])
    gateway = Service(tmp_path, machine.gateway_port, {"SAGE_API_KEYS": "the-key"})
    gateway.client.headers["authorization"] = "Bearer the-key"
    stack.enter_context(gateway)
    gateway.publish([("fake", "llm", behind.url, "ready")])

    for asked in (lambda: create(), lambda: create(api_key="wrong"), lambda: create(gateway.url).chat("hi")):
        with pytest.raises(AccessDeniedError, match=r"HTTP 401.*api_key= or in SAGE_UNIFIED_API_KEY") as told:
            asked()
        assert "wrong" not in str(told.value)
    with create(gateway.url) as made, pytest.raises(AccessDeniedError):
        made.chat("hi", model="fake")
    with create(api_key=" the-key\n") as made:
        assert made.chat("hi") == "let in"
    monkeypatch.setenv("SAGE_UNIFIED_API_KEY", "the-key")
    with create(gateway.url) as made:
        assert made.chat("hi") == "let in"


def test_a_key_is_in_no_representation() -> None:
    with create("http://127.0.0.1:9", api_key="the-key", default_llm_model="m") as made:
        backends = made._channel.backends
        target = backends.known(Kind.LLM, None, ())
        assert target is not None
        assert target.endpoint.api_key == "the-key"
        assert "the-key" not in f"{backends._settings} {target}"


def test_default_models(stack: ExitStack, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with create(service.url) as made:
        assert made.chat("hi", return_result=True).model == "fake"
        assert len(made.embed("a")) == 1
    with create(service.url, default_llm_model="argument") as made:
        with pytest.raises(UnknownModelError, match="'argument' is not served"):
            made.chat("hi")
        assert len(made.embed("a")) == 1
    with create(service.url, default_embedding_model="other") as made:
        assert made.chat("hi", return_result=True).model == "fake"
        with pytest.raises(UnknownModelError, match="'other' is not served"):
            made.embed("a")
    monkeypatch.setenv("SAGE_UNIFIED_MODEL", "variable")
    with create(service.url) as made, pytest.raises(UnknownModelError, match="'variable' is not served"):
        made.chat("hi")


def test_a_ready_model_is_the_default_before_one_that_is_not(service: Service, usual_after: None) -> None:
    service.publish(
        [
            ("a-asleep", "llm", service.chat_url, "pending"),
            ("a-vectors", "embedding", service.embedding_url, "ready"),
            ("b-awake", "llm", service.chat_url, "ready"),
        ]
    )
    with create(service.url) as made:
        assert made._channel.backends.look(Kind.LLM, None, ()).model == "b-awake"
        assert made._channel.backends.look(Kind.EMBEDDING, None, ()).model == "a-vectors"


def test_a_kind_that_is_not_served_is_told(service: Service, usual_after: None) -> None:
    service.publish([("fake", "llm", service.chat_url, "ready")])
    with create(service.url) as made:
        with pytest.raises(UnknownModelError, match=r"no embedding model is listed .*kind embedding"):
            made.embed("a")
        service.publish([("vec", "embedding", service.embedding_url, "ready")])
        assert len(made.embed("a")) == 1


@pytest.mark.parametrize(
    ("arguments", "environ", "said"),
    [
        ({"control_plane_url": "127.0.0.1:8000"}, {}, r"control_plane_url: '127.0.0.1:8000' is not a URL"),
        ({"control_plane_url": "http://"}, {}, "is not a URL"),
        ({"control_plane_url": "http://[::1"}, {}, "is not a URL"),
        ({"control_plane_url": "http://h:99999"}, {}, "is not a URL"),
        ({"control_plane_url": "http://me:secret@h"}, {}, "carries a user name or password; pass api_key="),
        ({"control_plane_url": "http://h/v1?x=1"}, {}, "must end with its path"),
        ({}, {"SAGE_UNIFIED_BASE_URL": "ftp://h"}, "SAGE_UNIFIED_BASE_URL: 'ftp://h' is not a URL"),
        ({}, {"SAGE_GATEWAY_PORT": "eight"}, "SAGE_GATEWAY_PORT: 'eight' is not a port"),
        ({}, {"SAGE_GATEWAY_PORT": "70000"}, "is not a port"),
        ({"timeout": 0}, {}, "timeout must be more than 0 seconds"),
        ({"timeout": float("nan")}, {}, "timeout must be more than 0 seconds"),
        ({"api_key": "schlüssel"}, {}, "the API key has a character"),
    ],
)
def test_settings_that_cannot_be_are_told(
    arguments: dict[str, object], environ: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PermanentError, match=said) as told:
        create(**arguments)  # type: ignore[arg-type]
    assert "secret" not in str(told.value)
    assert "schlüssel" not in str(told.value)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'"text"', b'{"data": {}}', b'{"data": [1, {"id": 2}, {"id": ""}, {"no": "id"}]}']
)
def test_a_list_of_models_that_is_none_is_told(stack: ExitStack, body: bytes) -> None:
    server = stack.enter_context(ListingEngine())
    server.listed = body
    with create(server.url) as made, pytest.raises(UnknownModelError, match=r"models: none.*model="):
        made.chat("hi")


def test_a_server_that_tells_no_kinds_serves_its_first_model(stack: ExitStack) -> None:
    server = stack.enter_context(ListingEngine())
    server.listed = json.dumps({"data": [{"id": "a"}, {"id": "b"}]}).encode()
    with create(server.url) as made:
        assert made._channel.backends.look(Kind.LLM, None, ()).model == "a"
