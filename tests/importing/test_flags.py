"""Command lines of engines, read back."""

import shlex

import pytest

from sage_reconcile.engines.base import render_flag
from sage_reconcile.importing.flags import is_secret, parse, redacted
from sage_reconcile.importing.recognise import SWITCHES, Recognised, recognise


def known(line: str) -> Recognised:
    found = recognise(tuple(shlex.split(line)))
    assert found is not None, line
    return found


@pytest.mark.parametrize(
    ("line", "program", "model"),
    [
        ("python3 -m vllm.entrypoints.openai.api_server --model o/m", "vllm", "o/m"),
        ("/v/bin/python -u -X dev -m vllm.entrypoints.openai.api_server --model=o/m", "vllm", "o/m"),
        ("/v/bin/python /v/bin/vllm serve o/m --port 1", "vllm", "o/m"),
        ("vllm serve --enforce-eager o/m", "vllm", "o/m"),
        ("python -m vllm.entrypoints.cli.main serve o/m", "vllm", "o/m"),
        ("python3.12 -m sglang.launch_server --model-path o/m --port 30000", "SGLang", "o/m"),
        ("/opt/llama/llama-server -m /models/m.gguf -c 4096 --port 8080", "llama-server", "/models/m.gguf"),
        ("llama-server -hf o/m:Q4", "llama-server", "o/m:Q4"),
        ("python /v/bin/transformers serve /models/m --port 1", "transformers", "/models/m"),
        ("python -m transformers.cli.transformers serve o/m", "transformers", "o/m"),
        ("python -m sage_reconcile.embedding.server --model d", "sage's embedding server", "d"),
    ],
)
def test_the_forms_in_which_engines_are_started(line: str, program: str, model: str) -> None:
    found = known(line)
    assert (found.program, found.model) == (program, model)


@pytest.mark.parametrize(
    "line", ["", "python", "python -c 'import vllm'", "vllm bench", "nginx -g x", "python -m http.server"]
)
def test_what_is_no_engine(line: str) -> None:
    assert recognise(tuple(shlex.split(line))) is None


def test_flags_with_none_one_and_several_values() -> None:
    line = "--max_model_len 4096 --share 0.90 --no-log --names a b --x=1 -tp 2 --x 2 -c 7 --neg -1 word"
    flags = parse(tuple(line.split()))
    assert flags.long == {
        "max-model-len": 4096,
        "share": "0.90",
        "no-log": True,
        "names": ("a", "b"),
        "x": 1,
        "tensor-parallel-size": 2,
        "neg": (-1, "word"),
    }
    assert flags.rest == ("--x", "2", "-c", "7")


def test_what_is_read_is_written_again() -> None:
    words = ("--aa", "1", "--bb", "--cc", "x", "y", "--dd", "0.5", "--ee=f")
    again = [part for key, value in parse(words).long.items() for part in render_flag(key, value, False)]
    assert again == [*words[:-1], "--ee", "f"]


def test_embedding_engines() -> None:
    for flag in ("--runner pooling", "--task embed"):
        assert known(f"vllm serve o/m {flag}").is_embedding
    assert known("llama-server -m x --embeddings").is_embedding
    assert not known("vllm serve o/m").is_embedding
    assert "embeddings" in SWITCHES


@pytest.mark.parametrize(
    ("name", "value", "is_one"),
    [
        ("api-key", "x", True),
        ("HF_TOKEN", "x", True),
        ("header", "Authorization: Bearer abc", True),
        ("proxy", "http://user:pass@host", True),
        ("", "sk-abcdefghijkl", True),
        ("max-tokens", 5, False),
        ("TOKENIZERS_PARALLELISM", "false", False),
        ("ssl-keyfile", "/etc/x.pem", False),
        ("tokenizer", "o/m", False),
        ("endpoint", "http://host:80/a@b", False),
    ],
)
def test_what_must_not_be_written_down(name: str, value: object, is_one: bool) -> None:
    assert is_secret(name, value) is is_one


def test_a_command_line_is_shown_without_its_secrets() -> None:
    line = "vllm serve m --api-key one two --hf-token=three --header sk-abcdefghijkl --port 1"
    assert shlex.join(redacted(tuple(line.split()))) == (
        "vllm serve m --api-key ... ... --hf-token=... --header ... --port 1"
    )
