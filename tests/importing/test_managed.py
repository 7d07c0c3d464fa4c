"""The form of an engine that sage would start, from the process that runs."""

import shlex
from typing import Any

from sage_reconcile.importing.managed import Gpus, managed, managed_command
from sage_reconcile.importing.processes import Candidate
from sage_reconcile.importing.recognise import recognise
from sage_reconcile.importing.text import Entry, Environment, scalar, stack_text
from sage_reconcile.stack.formatting import formatted


def process(line: str, host: str = "127.0.0.1", **environ: str) -> Candidate:
    argv = tuple(shlex.split(line))
    return Candidate(7, argv, environ, "/srv", host, 9000, recognise(argv))


NONE = Gpus()


def fields(line: str, gpus: Gpus = NONE, **environ: str) -> dict[str, Any]:
    one = process(line, **environ)
    assert one.known is not None
    return managed(one, one.known, {"name": "n", "kind": "llm"}, gpus).fields


def test_known_flags_become_their_fields() -> None:
    line = "/v/bin/python -m vllm.entrypoints.openai.api_server --model o/m --host 0.0.0.0 --port 9000"
    line += " --tensor-parallel-size 2 -pp 2 --gpu-memory-utilization 0.45 --served-model-name a b"
    line += " --max-model-len 4096 --enforce-eager --api-key sk-x"
    held = Gpus(tuple((index, 100) for index in (0, 1, 4, 5)))
    assert fields(line, held) == {
        "name": "n",
        "kind": "llm",
        "model": "o/m",
        "runtime": "vllm",
        "port": 9000,
        "tensor_parallel": 2,
        "pipeline_parallel": 2,
        "gpus": [0, 1, 4, 5],
        "gpu_memory": 0.45,
        "args": {"max-model-len": 4096, "enforce-eager": True},
    }


def test_gpus_are_what_nvml_measured_else_what_the_process_may_see() -> None:
    line = "vllm serve o/m"
    assert fields(line, Gpus(((3, 10),)), CUDA_VISIBLE_DEVICES="0")["gpus"] == [3]
    unseen = fields(line, Gpus(is_known=False), CUDA_VISIBLE_DEVICES="1")
    assert unseen["gpus"] == [1]
    assert fields(line)["use_gpu"] is False


def test_on_the_cpu_the_share_of_memory_stays_a_flag() -> None:
    found = fields("vllm serve o/m --gpu-memory-utilization 0.1")
    assert (found["use_gpu"], found["args"]) == (False, {"gpu-memory-utilization": 0.1})


def test_a_command_keeps_its_words_and_takes_the_port() -> None:
    line = "/opt/llama-server -m m.gguf -c 4096 --port 8080 --host 0.0.0.0 --jinja"
    found = fields(line, Gpus(((0, 900),)))
    assert found["command"] == (
        ["/opt/llama-server", "-m", "m.gguf", "-c", "4096", "--host", "{host}", "--port", "{port}"]
    )
    assert (found["args"], found["cwd"], found["gpu_memory"]) == ({"jinja": True}, "/srv", "900MiB")
    sglang = fields("python3 -m sglang.launch_server --model-path o/m --port 1 --mem-fraction-static 0.8")
    assert sglang["command"][:5] == ["python3", "-m", "sglang.launch_server", "--model-path", "o/m"]
    assert sglang["args"] == {"mem-fraction-static": 0.8}


def test_a_program_that_is_not_known() -> None:
    base = {"name": "n", "kind": "llm"}
    found = managed_command(process("serve.sh --listen=9000 x"), base, "m", Gpus())
    assert found is not None
    assert found.fields["command"] == ["serve.sh", "--listen={port}", "x"]
    assert managed_command(process("serve.sh"), base, "m", Gpus()) is None
    assert managed_command(process("serve.sh 9000 --token abc"), base, "m", Gpus()) is None


def test_only_listed_variables_and_no_secret() -> None:
    one = process("vllm serve o/m", HF_TOKEN="hf_value", HF_HOME="/hf", SHELL="/bin/sh", AWS_SECRET="x")
    assert one.known is not None
    found = managed(one, one.known, {}, Gpus())
    assert found.fields["env"] == {"HF_HOME": "/hf", "HF_TOKEN": "${env:HF_TOKEN}"}
    assert "hf_value" not in repr(found)


def test_urls() -> None:
    assert process("vllm serve m", "0.0.0.0").url == "http://127.0.0.1:9000"
    assert process("vllm serve m", "::1").url == "http://[::1]:9000"
    assert process("vllm serve m --ssl-keyfile k", "10.0.0.5").url == "https://10.0.0.5:9000"


def test_the_text_is_in_canonical_layout() -> None:
    one = process("vllm serve o/m")
    assert one.known is not None
    inside = managed(one, one.known, {"name": "n", "kind": "llm"}, Gpus())
    inside.notes.append("a note\x1b[31m that is " + "long " * 40)
    outside = {"name": "n", "kind": "llm", "model": "yes", "runtime": "external", "url": "http://h:1"}
    runtimes = {"v": Environment("vllm", "/v p/python")}
    text = stack_text("imported", "lab", runtimes, [Entry(outside, ("c",), inside)])
    assert formatted(text, "sage.yaml") == text
    assert max(map(len, text.splitlines())) <= 110
    assert "\x1b" not in text


def test_scalars_are_read_as_what_they_were() -> None:
    from sage_reconcile.stack.yamltree import parse

    for value in ("no", "1", "a: b", "${env:X}", "-", "#", "null", "é\n", {"a-b": [True, None, 1.5, "x"]}):
        root, faults = parse(f"a: {scalar(value)}")
        assert root is not None
        assert (faults, root.plain()) == ([], {"a": value})
