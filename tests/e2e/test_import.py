"""`sage import`: what runs by hand is routed to at once, and no process notices."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests.e2e.world import FAKE_ENGINE, World, ask, engine, kill
from tests.importing.by_hand import fake, running, vllm_environment
from tests.processes import free_port, is_alive

ROOT = Path(__file__).parents[2]

ENGINES_PYTHON = Path(os.environ.get("SAGE_ENGINES_PYTHON") or ROOT / ".venv-engines/bin/python")
MODELS = Path(os.environ.get("SAGE_TEST_MODELS") or Path.home() / ".sage" / "models")
SECRET = "sk-never-in-a-file-4711"


def entries(world: World, port: int) -> str:
    """What an import prints. Only of one port: engines of others may run on this host."""
    return world("import", "--port", str(port)).ok().out


def uncommented(text: str) -> str:
    """As the file says: the external entry removed, the one below it uncommented."""
    head, *blocks = re.split(r"(?m)^(?=  # Process )", text)
    swapped = []
    for block in blocks:
        managed = block.partition("# Started by sage instead, after it was ended by hand:\n")[2]
        lines = [line for line in managed.splitlines() if not line.startswith("  # Note")]
        swapped += [line.replace("  # ", "  ", 1) for line in lines]
    return head + "\n".join(swapped) + "\n"


@pytest.fixture
def vllm(tmp_path: Path) -> Path:
    return vllm_environment(tmp_path / "vllm")


def test_adoption_is_an_empty_plan_and_the_handover_starts_the_same(world: World, vllm: Path) -> None:
    port = free_port()
    command = [vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", "Qwen/Qwen2.5-7B-Instruct"]
    command += ["--served-model-name", "qwen", "--port", str(port), "--max-model-len", "4096"]
    with running(
        world.folder, port, *command, "--api-key", SECRET, OMP_NUM_THREADS="2", HF_TOKEN=SECRET
    ) as pid:
        text = entries(world, port)
        assert SECRET not in text
        # The key is known to the import for its proof, and to later commands from their environment.
        told = world("import", "-p", str(port), "-o", "sage.yaml").ok().out
        assert (world.folder / "sage.yaml").read_text() == text
        assert "set QWEN_API_KEY" in told
        assert "Planning again: No changes" in told
        assert "No changes" in world("plan", "--detailed-exitcode", QWEN_API_KEY=SECRET).ok().out
        assert is_alive(pid)
        assert ask(port, "/argv")[1:] == [*map(str, command[3:]), "--api-key", SECRET, "--model", "qwen"]

    # After it was ended by hand, the entry below starts the same from the same environment.
    world.write_text(uncommented(text))
    assert "replace" not in world("plan", HF_TOKEN=SECRET).ok().out
    world("apply", "--yes", HF_TOKEN=SECRET).ok()
    argv = ask(port, "/argv")
    assert argv[argv.index("--max-model-len") + 1] == "4096"
    assert ask(port, "/env")["OMP_NUM_THREADS"] == "2"
    world("stop", "--all", "--yes").ok()


def test_in_one_go(world: World) -> None:
    port = free_port()
    with running(world.folder, port, *fake(port, "someone")) as pid:
        told = world("import", "-p", str(port), "-o", "sage.yaml", "--name", "mine")
        assert f"someone (http://127.0.0.1:{port})" in told.out
        assert "Adopted without touching a process. Planning again: No changes" in told.out
        told.ok()
        table = json.loads((world.home / "routing" / "routing.json").read_bytes())
        assert any(backend["url"] == f"http://127.0.0.1:{port}" for backend in table["backends"])
        assert is_alive(pid)
        again = ["import", "-p", str(port), "-o", "sage.yaml", "--name", "mine"]
        assert "--force overwrites" in world(*again).failed().err
        assert "No changes" in world(*again, "--force").ok().out
        assert "cannot be the name" in world("import", "--name", "Not One").failed().err


def test_a_model_that_stands_in_a_file_of_options(world: World, vllm: Path) -> None:
    port = free_port()
    command = [vllm, "-m", "vllm.entrypoints.openai.api_server", "--config", "/etc/vllm.yaml", "--port"]
    with running(world.folder, port, *command, str(port), "--served-model-name", "qwen", FAKE_ROOT="o/m"):
        text = entries(world, port)
    assert "  #   model: o/m\n" in text
    assert "args: {config: /etc/vllm.yaml}" in text


def test_what_an_unknown_program_is_for_is_asked(world: World) -> None:
    port = free_port()
    script = world.folder / "embeds.py"
    script.write_text(EMBEDS)
    with running(world.folder, port, sys.executable, script, str(port)):
        text = entries(world, port)
    assert "kind: embedding" in text
    assert "model: vectors" in text


def test_a_stack_that_has_engines_of_its_own_is_not_run_over(world: World) -> None:
    port, chat = free_port(), engine("chat")
    world.write(chat, name="imported", file="own.yaml")
    world.apply("own.yaml")
    pids = world.until_ready("chat#0", stack="imported")
    with running(world.folder, port, *fake(port, "someone")):
        ports = ["-p", str(port), "-p", str(chat["port"])]
        assert "its plan is more than routes" in world("import", *ports, "-o", "sage.yaml").failed().err
    assert world.until_ready("chat#0", stack="imported") == pids
    text = (world.folder / "sage.yaml").read_text()
    assert text.count("runtime: external") == 1, "an engine of sage's own is not imported"


def test_nothing_to_import_is_said(world: World) -> None:
    assert "no engine was found that runs by hand" in world("import", "-p", str(free_port())).failed().err


@pytest.mark.real
@pytest.mark.timeout(400)
def test_transformers_serve_by_hand(world: World) -> None:
    port, model = free_port(), str(MODELS / "HuggingFaceTB" / "SmolLM2-135M-Instruct")
    if not ENGINES_PYTHON.exists() or not Path(model).is_dir():
        pytest.skip("no engines' environment or model; make demo-setup makes them")
    command = [ENGINES_PYTHON, "-m", "transformers.cli.transformers", "serve", model, "--port", str(port)]
    with running(world.folder, port, *command, "--dtype", "float32", OMP_NUM_THREADS="1") as pid:
        text = entries(world, port)
        assert f"model: {model}" in text
        world.write_text(text)
        world.apply()
        assert "No changes" in world("plan", "--detailed-exitcode").ok().out
        assert is_alive(pid)
        [shown] = world("status", "--json").ok().json()["engines"]
        assert shown["state"] == "ready"
        kill(pid)


def test_llama_server_answers_to_its_own_name(world: World) -> None:
    port = free_port()
    program = world.folder / "llama-server"
    program.write_text(FAKE_ENGINE.read_text())
    with running(world.folder, port, sys.executable, program, "--port", str(port), "--model", "m"):
        text = entries(world, port)
    assert "llama-server, in" in text
    assert text.count("model: m\n") == 2
    assert '"--port", "{port}"]' in text


EMBEDS = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.reply(200, {"data": [{"id": "vectors"}]})

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        is_known = self.path == "/v1/embeddings"
        self.reply(200 if is_known else 404, {"data": [{"embedding": [1.0]}]} if is_known else {})


HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
