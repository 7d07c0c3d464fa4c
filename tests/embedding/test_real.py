"""The embedding server with the quickstart's model, in the engines' environment (make demo-setup).

SAGE_ENGINES_PYTHON and SAGE_TEST_MODELS say where they are, when not in .venv-engines and $SAGE_HOME/models.
"""

import base64
import json
import math
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.embedding.fakes import DEADLINE, until

ROOT = Path(__file__).parents[2]
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DIM = 384
# Loading takes seconds where nothing else runs, and a minute where everything does.
START_DEADLINE = 150.0

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]


def engines_python() -> str:
    python = Path(os.environ.get("SAGE_ENGINES_PYTHON") or ROOT / ".venv-engines/bin/python")
    if not python.exists():
        pytest.skip(f"no engines' environment at {python}; make demo-setup builds it")
    return str(python)


def model_dir() -> Path:
    home = Path(os.environ.get("SAGE_HOME") or "~/.sage").expanduser()
    models = Path(os.environ.get("SAGE_TEST_MODELS") or home / "models")
    if not (models / MODEL).is_dir():
        pytest.skip(f"no {MODEL} in {models}; make demo-setup writes it")
    return models / MODEL


def server_command(*options: object) -> list[str]:
    return [engines_python(), "-m", "sage_reconcile.embedding.server", *map(str, options)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


class Engine:
    """A client of one running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, texts: Any, **options: Any) -> dict[str, Any]:
        body = {"model": "minilm", "input": texts, **options}
        reply = httpx.post(f"{self.url}/v1/embeddings", json=body, timeout=START_DEADLINE)
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer

    def embed(self, texts: list[str], **options: Any) -> list[list[float]]:
        return [item["embedding"] for item in self.ask(texts, **options)["data"]]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = server_command(
        "--model", model_dir(), "--served-model-name", "minilm", "--port", port, "--device", "cpu"
    )
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as child:
        url = f"http://127.0.0.1:{port}"

        def is_up() -> bool:
            assert child.poll() is None, f"the server exited: {child.communicate()[1]}"
            try:
                return httpx.get(f"{url}/health", timeout=DEADLINE).is_success
            except httpx.TransportError:
                return False

        try:
            until("health", is_up, START_DEADLINE)
            yield Engine(url)
            child.send_signal(signal.SIGTERM)
            _, errors = child.communicate(timeout=DEADLINE)
            assert child.returncode == 0, errors
            assert f"serving minilm on {url} (dim 384, max length 256 tokens, cpu)" in errors
        finally:
            child.kill()


def cosine(a: list[float], b: list[float]) -> float:
    return math.sumprod(a, b) if hasattr(math, "sumprod") else sum(x * y for x, y in zip(a, b, strict=True))


def test_what_means_the_same_is_nearer_than_what_does_not(engine: Engine) -> None:
    cat, same, other = engine.embed(
        ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose in March."]
    )
    assert cosine(cat, same) > 0.5 > 0.2 > cosine(cat, other)


def test_vectors_have_length_1(engine: Engine) -> None:
    [vector] = engine.embed(["How long is this vector?"])
    assert len(vector) == DIM
    assert math.hypot(*vector) == pytest.approx(1.0, abs=1e-6)


def test_a_vector_does_not_depend_on_its_neighbours(engine: Engine) -> None:
    text = "The same text, alone and in company."
    [alone] = engine.embed([text])
    for company in (["short"], ["word " * 40], ["a", "b " * 10, "c " * 100, "d " * 200] * 8):
        together = engine.embed([*company, text])[-1]
        assert cosine(alone, together) == pytest.approx(1.0, abs=1e-6)
        assert max(abs(a - b) for a, b in zip(alone, together, strict=True)) < 1e-6


def test_vectors_are_those_of_the_library_itself(engine: Engine) -> None:
    texts = ["Short.", "A somewhat longer sentence, with Ünïcode and 123 numbers.", "  spaces  "]
    code = (
        "import json, sys; from sentence_transformers import SentenceTransformer as S; "
        "m = S(sys.argv[1], device='cpu', model_kwargs={'dtype': 'float32'}); "
        "print(json.dumps(m.encode(json.loads(sys.argv[2]), batch_size=1).tolist()))"
    )
    done = subprocess.run(
        [engines_python(), "-c", code, str(model_dir()), json.dumps(texts)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=START_DEADLINE,
        check=True,
    )
    expected = json.loads(done.stdout)
    for mine, theirs in zip(engine.embed(texts), expected, strict=True):
        assert max(abs(a - b) for a, b in zip(mine, theirs, strict=True)) < 1e-6


def test_base64_is_the_same_vector(engine: Engine) -> None:
    [as_float] = engine.embed(["the same"])
    text = engine.ask(["the same"], encoding_format="base64")["data"][0]["embedding"]
    assert list(struct.unpack(f"<{DIM}f", base64.b64decode(text))) == as_float


def test_dimensions_cut_and_normalise(engine: Engine) -> None:
    [whole] = engine.embed(["shorter"])
    [cut] = engine.embed(["shorter"], dimensions=64)
    norm = math.hypot(*whole[:64])
    assert cut == pytest.approx([value / norm for value in whole[:64]], abs=1e-6)


def test_tokens_are_counted_by_the_models_tokenizer_and_can_be_sent_themselves(engine: Engine) -> None:
    as_text = engine.ask("hello world")
    assert as_text["usage"] == {"prompt_tokens": 4, "total_tokens": 4}  # [CLS] hello world [SEP]
    as_tokens = engine.ask([101, 7592, 2088, 102])
    assert as_tokens["usage"] == as_text["usage"]
    assert as_tokens["data"] == as_text["data"]


def test_a_text_that_is_too_long_is_refused_with_its_length_or_cut_on_request(engine: Engine) -> None:
    body = {"model": "minilm", "input": "hello " * 300}
    reply = httpx.post(f"{engine.url}/v1/embeddings", json=body, timeout=DEADLINE)
    assert reply.status_code == 400
    assert "input[0] has 302 tokens; minilm takes at most 256" in reply.json()["error"]["message"]
    cut = engine.ask("hello " * 300, truncate=True)
    assert cut["usage"]["prompt_tokens"] == 256
    assert cut["data"] == engine.ask("hello " * 254)["data"]


def test_health_and_small_requests_are_answered_while_a_big_one_runs(engine: Engine) -> None:
    with ThreadPoolExecutor(1) as pool:
        big = pool.submit(engine.embed, ["word " * 60] * 300)
        until(
            "the big request at work", lambda: "requests_running 1" in httpx.get(f"{engine.url}/metrics").text
        )
        assert httpx.get(f"{engine.url}/health", timeout=DEADLINE).is_success
        engine.embed(["a small one"])
        assert not big.done()
        assert len(big.result(START_DEADLINE)) == 300


def test_importing_the_server_imports_no_torch() -> None:
    code = "import sys, sage_reconcile.embedding.server; print('torch' in sys.modules)"
    command = [engines_python(), "-c", code]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=DEADLINE, check=True
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--max-length", "600"], "cannot serve 600 tokens at once"),
        (["--prompt-name", "nosuch"], "it has no prompt named nosuch; it has"),
        (["--device", "cuda:7"], "cannot load"),
    ],
)
def test_what_the_model_cannot_do_is_one_line_at_the_start(options: list[str], reason: str) -> None:
    command = server_command("--model", model_dir(), "--port", 0, *options)
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=START_DEADLINE, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("sage embedding: cannot ")
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1
