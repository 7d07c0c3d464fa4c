"""Bad input: text in; file, line, column, field, message and hint out. Nothing is ever a traceback."""

from pathlib import Path

import pytest

from sage_reconcile.errors import Fault, StackError
from sage_reconcile.stack.load import load

MARK = "▸"
ROUTING = "engines[0].routing"
DIGEST = "ab" * 32
ENVIRON = {"HF_TOKEN": "secret", "MODEL": "org/model", "PORT": "8901", "WORD": "abc"}


def faults_of(text: str | bytes, folder: Path, portable: bool = False) -> tuple[Fault, ...]:
    path = folder / "s.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StackError) as error:
        load([path], ENVIRON, portable=portable)
    return error.value.faults


def engine(fields: str) -> str:
    return engines(f"name: a, model: m, {fields}")


def engines(*fields: str) -> str:
    return "engines:\n" + "".join(f"  - {{{one}}}\n" for one in fields)


# (id, text with ▸ before the place of the fault, field, part of the message, part of the hint)
CASES = [
    ("unknown-top-key", "▸enginse: []\nengines: []\n", "enginse", "unknown key", "engines?"),
    ("unknown-key", engine("▸modle: x"), "engines[0].modle", "unknown key", "model?"),
    ("unknown-nested", engine("health: {▸pobe: http}"), "engines[0].health.pobe", "unknown", "probe?"),
    ("text-for-int", engine('replicas: ▸"2"'), "engines[0].replicas", "whole number", ""),
    ("bool-for-int", engine("replicas: ▸true"), "engines[0].replicas", "whole number", ""),
    ("int-for-text", engine("label: ▸5"), "engines[0].label", "text is wanted", "quotes"),
    ("int-for-bool", engine("use_gpu: ▸1"), "engines[0].use_gpu", "true or false", ""),
    ("list-for-map", engine("health: ▸[]"), "engines[0].health", "a map is wanted", ""),
    ("text-for-list", engine("aliases: ▸b"), "engines[0].aliases", "a list is wanted", ""),
    ("kind-typo", engine("kind: ▸embeding"), "engines[0].kind", "must be llm or embedding", "embedding?"),
    ("engines-map", "engines: ▸{a: 1}\n", "engines", "a list is wanted", ""),
    ("engine-text", "engines: [▸a]\n", "engines[0]", "an engine is a map", ""),
    ("no-model", "engines:\n  - ▸name: a\n", "engines[0].model", "is required", "ORGANISATION"),
    ("no-name", "engines:\n  - ▸model: a\n", "engines[0].name", "is required", "name: chat"),
    ("null-model", "engines:\n  - name: a\n    ▸model:\n", "engines[0].model", "is required", ""),
    ("version", "version: ▸2\nengines: []\n", "version", "must be 1", ""),
    ("name-upper", engines("name: ▸Chat, model: m"), "engines[0].name", "cannot be a name", "a-z"),
    ("name-path", engines("name: ▸../x, model: m"), "engines[0].name", "cannot be a name", ""),
    ("stack-name", "name: ▸a b\nengines: []\n", "name", "cannot be a name", ""),
    (
        "duplicate-engine",
        engines("name: a, model: m", "name: ▸a, model: m"),
        "engines[1].name",
        "given twice",
        "line 2",
    ),
    ("duplicate-key", "engines: []\nname: a\n▸name: b\n", "", '"name" is given twice', "line 2"),
    ("port-zero", engine("port: ▸0"), "engines[0].port", "at least 1", ""),
    ("port-high", engine("port: ▸65536"), "engines[0].port", "at most 65535", ""),
    ("port-last", engine("port: ▸65535, replicas: 2"), "engines[0].port", "65536", ""),
    (
        "duplicate-port",
        engines("name: a, model: m, port: 9001", "name: b, model: m, port: ▸9001"),
        "engines[1].port",
        'taken by the engine "a"',
        "leave port out",
    ),
    (
        "replica-port",
        engines("name: a, model: m, port: 9001, replicas: 3", "name: b, model: m, port: ▸9003"),
        "engines[1].port",
        "9003 is taken",
        "",
    ),
    ("gateway-port", "gateway: {port: 9001}\n" + engine("port: ▸9001"), "engines[0].port", "the gateway", ""),
    (
        "alias-clash",
        engines("name: a, model: m, aliases: [x]", "name: b, model: n, label: ▸x"),
        "engines[1].label",
        'ask for "x"',
        "another name",
    ),
    (
        "name-is-model",
        engines("name: a, model: b", "name: ▸b, model: n"),
        "engines[1].name",
        'ask for "b"',
        "",
    ),
    ("self-dependency", engine("depends_on: ▸[a]"), "engines[0].depends_on", "a -> a", ""),
    (
        "dependency-cycle",
        engines(
            "name: a, model: m, depends_on: ▸[c]",
            "name: b, model: m, depends_on: [a]",
            "name: c, model: m, depends_on: [b]",
        ),
        "engines[0].depends_on",
        "a -> c -> b -> a",
        "remove one",
    ),
    (
        "unknown-dependency",
        engines("name: embed, model: m", "name: b, model: m, depends_on: [▸embd]"),
        "engines[1].depends_on[0]",
        'no engine "embd"',
        "embed?",
    ),
    ("tp-zero", engine("tensor_parallel: ▸0"), "engines[0].tensor_parallel", "at least 1", ""),
    ("gpus-not-tp", engine("gpus: ▸2"), "engines[0].gpus", "1 x 1 = 1", "tensor_parallel: 2"),
    ("gpus-list", engine("gpus: ▸[0, 1, 2], replicas: 2"), "engines[0].gpus", "3 GPUs", "list 1, or 2"),
    ("gpus-twice", engine("gpus: ▸[0, 0], replicas: 2"), "engines[0].gpus", "listed twice", ""),
    ("gpus-word", engine("gpus: ▸all"), "engines[0].gpus", "cannot be", "auto"),
    ("gpus-empty", engine("gpus: ▸[]"), "engines[0].gpus", "empty list", ""),
    ("use-gpu-no", engine("use_gpu: ▸false, gpus: 1"), "engines[0].use_gpu", "contradicts", ""),
    ("use-gpu-yes", engine("use_gpu: ▸true, gpus: 0"), "engines[0].use_gpu", "contradicts", ""),
    ("memory-no-unit", engine("gpu_memory: ▸20"), "engines[0].gpu_memory", "20 has no unit", "20GiB?"),
    ("memory-unit", engine("gpu_memory: ▸20Gig"), "engines[0].gpu_memory", "not a size", "20GiB"),
    ("memory-zero", engine("gpu_memory: ▸0"), "engines[0].gpu_memory", "more than 0", ""),
    ("duration", engine("health: {interval: ▸5x}"), "engines[0].health.interval", "duration", "10m"),
    ("duration-sign", engine("rollout: {drain: ▸-1}"), "engines[0].rollout.drain", "cannot be -1", ""),
    ("sharing", engine("routing: {policy: ▸random}"), f"{ROUTING}.policy", "round_robin", ""),
    ("queue-policy", engine("routing: {queue: {policy: ▸lifo}}"), f"{ROUTING}.queue.policy", "fifo", ""),
    ("queue-size", engine("routing: {queue: {size: ▸-1}}"), f"{ROUTING}.queue.size", "at least 0", ""),
    ("health-path", engine("health: {path: ▸x}"), "engines[0].health.path", "start with /", "/x"),
    ("missing-model", engines("name: a, model: ▸/no/such"), "engines[0].model", "not exist", "--portable"),
    ("missing-variable", engine("label: ▸'${env:NOPE}'"), "engines[0].label", "NOPE is not set", "export"),
    ("missing-secret", engine("env: {A: ▸'${env:NOPE}'}"), "engines[0].env.A", "not set", ""),
    ("missing-secret-file", engine("env: {A: ▸'${file:/no}'}"), "engines[0].env.A", "not exist", ""),
    ("number-variable", engine("port: ▸'${env:WORD}'"), "engines[0].port", "whole number", ""),
    ("file-elsewhere", engine("cwd: ▸'${file:/x}'"), "engines[0].cwd", "process listings", "env"),
    ("secret-in-args", engine("args: {t: ▸'${env:HF_TOKEN}'}"), "engines[0].args.t", "secret", "env"),
    ("unterminated", engine("label: ▸'${env:MODEL'"), "engines[0].label", "no closing }", "$${"),
    ("unknown-source", engine("label: ▸'${vault:x}'"), "engines[0].label", "not a reference", "${env:NAME}"),
    ("shell-style", engine("label: ▸'${MODEL}'"), "engines[0].label", "not a reference", "${env:MODEL}?"),
    ("key-in-file", "gateway: {api_keys: [▸abc]}\nengines: []\n", "gateway.api_keys[0]", "in the file", "$"),
    (
        "key-in-keys",
        "gateway: {keys: [{name: a, key: ▸abc}]}\nengines: []\n",
        "gateway.keys[0].key",
        "in the file",
        "$",
    ),
    ("no-key", "gateway: {keys: [▸{name: a}]}\nengines: []\n", "gateway.keys[0]", "is missing", "sha256"),
    (
        "key-and-digest",
        f"gateway: {{keys: [▸{{name: a, key: '${{env:HF_TOKEN}}', sha256: '{DIGEST}'}}]}}\nengines: []\n",
        "gateway.keys[0]",
        "both given",
        "remove one",
    ),
    (
        "digest",
        "gateway: {keys: [{name: a, sha256: ▸sk-abc}]}\nengines: []\n",
        "gateway.keys[0].sha256",
        "64 hex digits are wanted",
        "sage gateway key",
    ),
    (
        "key-name-twice",
        f"gateway:\n  keys:\n    - {{name: a, sha256: '{DIGEST}'}}\n"
        f"    - {{name: ▸a, sha256: '{DIGEST}'}}\nengines: []\n",
        "gateway.keys[1].name",
        '"a" is given twice',
        "gateway.keys[0]",
    ),
    (
        "key-limit",
        f"gateway: {{keys: [{{name: a, sha256: '{DIGEST}', max_concurrent: ▸-1}}]}}\nengines: []\n",
        "gateway.keys[0].max_concurrent",
        "at least 0",
        "",
    ),
    (
        "key-missing-secret",
        "gateway: {keys: [{name: a, key: ▸'${env:NOPE}'}]}\nengines: []\n",
        "gateway.keys[0].key",
        "NOPE is not set",
        "",
    ),
    (
        "origin",
        "gateway: {cors_origins: ▸['https://ui.example/']}\nengines: []\n",
        "gateway.cors_origins",
        "is not an origin",
        "no path",
    ),
    (
        "origin-star",
        "gateway: {cors_origins: ▸['*', 'https://ui.example']}\nengines: []\n",
        "gateway.cors_origins",
        "stands alone",
        "",
    ),
    (
        "sessions-password",
        "gateway: {sessions: {url: ▸'postgresql://u:hidden@h/d'}}\nengines: []\n",
        "gateway.sessions.url",
        "password must not stand",
        "",
    ),
    (
        "sessions-url",
        "gateway: {sessions: {url: ▸'mysql://h/d'}}\nengines: []\n",
        "gateway.sessions.url",
        "no URL of a database",
        "postgresql://",
    ),
    ("runtime-typo", engine("runtime: ▸vlm"), "engines[0].runtime", 'no runtime "vlm"', "vllm?"),
    (
        "own-runtime-typo",
        "runtimes: {vllm-cpu: {kind: vllm}}\n" + engine("runtime: ▸vllm-cp"),
        "engines[0].runtime",
        "no runtime",
        "vllm-cpu?",
    ),
    ("no-command", engine("runtime: ▸command"), "engines[0].runtime", "needs a command", "{port}"),
    ("stray-command", engine("▸command: [x]"), "engines[0].command", "own command", "runtime: command"),
    (
        "no-port",
        engine("runtime: command, command: ▸[x]"),
        "engines[0].command",
        "does not take {port}",
        "--port",
    ),
    (
        "placeholder-typo",
        engine('runtime: command, command: [x, ▸"{prot}"]'),
        "engines[0].command[1]",
        "{prot} is not a placeholder",
        "port?",
    ),
    ("external-no-url", engine("runtime: ▸external"), "engines[0].runtime", "needs a url", "http://"),
    (
        "external-port",
        engine("runtime: external, url: 'http://h:1', ▸port: 1"),
        "engines[0].port",
        "never started",
        "remove port",
    ),
    ("url-v1", engine("runtime: external, url: ▸'http://h:1/v1'"), "engines[0].url", "/v1", "http://h:1"),
    ("url-without-external", engine("▸url: 'http://h:1'"), "engines[0].url", "not start", "external"),
    (
        "asleep",
        engine('state: ▸asleep, runtime: command, command: [run, "{port}"]'),
        "engines[0].state",
        "cannot sleep",
        "vllm",
    ),
    ("asleep-cpu", engine("state: ▸asleep, use_gpu: false"), "engines[0].state", "on the CPU", ""),
    (
        "sleep-swap on the CPU",
        engine("use_gpu: false, rollout: {strategy: ▸sleep-swap}"),
        "engines[0].rollout.strategy",
        "vllm cannot sleep on the CPU",
        "surge",
    ),
    (
        "sleep-swap of what cannot sleep",
        engine("runtime: transformers, rollout: {strategy: ▸sleep-swap}"),
        "engines[0].rollout.strategy",
        "cannot sleep",
        "needs vllm",
    ),
    (
        "lora-runtime",
        engine("runtime: transformers, ▸lora: []"),
        "engines[0].lora",
        "runtime transformers cannot load LoRA adapters",
        "needs vllm",
    ),
    (
        "canary-external",
        engine("runtime: external, url: 'http://h:1', health: {canary: ▸{prompt: a, expect: b}}"),
        "engines[0].health.canary",
        "the canary is for engines that sage starts",
        "remove it",
    ),
    (
        "canary-embedding",
        engine("kind: embedding, health: {canary: ▸{prompt: a, expect: b}}"),
        "engines[0].health.canary",
        "the probe is embed",
        "remove it",
    ),
    ("lora-path", engine("lora: [▸{name: x}]"), "engines[0].lora[0].path", "is required", ""),
    (
        "lora-missing",
        engine("lora: [{name: x, path: ▸/no/such}]"),
        "engines[0].lora[0].path",
        "the directory /no/such does not exist",
        "--portable",
    ),
    (
        "lora-flag",
        engine("args: {enable-lora: false}, lora: ▸[]"),
        "engines[0].lora",
        "contradicts args.enable-lora: false",
        "remove the flag",
    ),
    (
        "lora-modules",
        engine("args: ▸{lora-modules: x=y}, lora: []"),
        "engines[0].args",
        "lora-modules is what lora does",
        "in lora",
    ),
    (
        "on-demand",
        engine("on_demand: {idle_ttl: ▸0}"),
        "engines[0].on_demand.idle_ttl",
        "must be more than 0",
        "10m",
    ),
    (
        "on demand and asleep",
        engine("on_demand: {}, state: ▸asleep"),
        "engines[0].state",
        "an engine on demand sleeps and wakes by itself",
        "remove state: asleep",
    ),
    (
        "on demand and external",
        engine("runtime: external, url: 'http://h', ▸on_demand: {}"),
        "engines[0].on_demand",
        "never started by sage",
        "remove on_demand",
    ),
    ("managed-flag", engine("args: ▸{port: 1}"), "engines[0].args", "sage itself sets --port", "field port"),
    ("flag-twice", engine("args: ▸{a_b: 1, a-b: 2}"), "engines[0].args", '"a-b" is given twice', ""),
    ("flag-map", engine("args: {a: ▸{b: 1}}"), "engines[0].args.a", "cannot be a map", "JSON"),
    ("env-float", engine("env: {V: ▸12.10}"), "engines[0].env.V", "must be text", "12.1"),
    ("env-key", engine("env: {▸A-B: x}"), "engines[0].env.A-B", "cannot be the name", ""),
    ("no-engines", "▸version: 1\n", "", "no engines key", "engines: []"),
    ("null-engines", "▸engines:\n", "engines", "engines is empty", "engines: []"),
    ("top-list", "▸- a\n", "", "a stack file is a map", ""),
    ("syntax", "engines: ▸[\n", "", "not valid YAML", "not closed"),
    ("syntax-colon", "name: a▸: b\n", "", "not valid YAML", "quote"),
    ("tab", "engines:\n▸	- a\n", "", "not valid YAML", "not with tabs"),
    ("braces", engines("name: a, model: $▸{env:MODEL}"), "", "not valid YAML", '"${env:NAME}"'),
    ("two-documents", "engines: []\n▸---\nengines: []\n", "", "second document", "---"),
    ("tag", "name: ▸!!python/object:os.system x\nengines: []\n", "", "means nothing", "remove"),
    ("control", "name: a▸\nengines: []\n", "", "U+0001", ""),
    ("unknown-alias", "name: ▸*a\nengines: []\n", "", "no anchor &a", ""),
    ("self-alias", "name: &a [▸*a]\nengines: []\n", "", "inside its own anchor", ""),
    ("list-key", "? ▸[a]\n: b\nengines: []\n", "", "a key must be text", ""),
    ("merge-text", "<<: ▸a\nengines: []\n", "", "<< merges a map", ""),
    ("deep", "name: " + "[" * 39 + "▸" + "[" * 20 + "]" * 60, "", "nested deeper", ""),
    ("include-missing", "include: [▸x.yaml]\nengines: []\n", "include[0]", "x.yaml does not exist", ""),
    ("include-self", "include: [▸s.yaml]\nengines: []\n", "include[0]", "s.yaml -> s.yaml", ""),
]


@pytest.mark.parametrize(
    ("text", "field", "message", "hint"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_one_fault_with_its_place(tmp_path: Path, text: str, field: str, message: str, hint: str) -> None:
    before, _, after = text.partition(MARK)
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    faults = faults_of(before + after, tmp_path)
    assert len(faults) == 1, [str(fault) for fault in faults]
    fault = faults[0]
    assert (fault.line, fault.column, fault.field) == (line, column, field), str(fault)
    assert message in fault.message
    assert hint in fault.hint
    assert str(fault).startswith(f"{tmp_path}/s.yaml:{line}:{column}: error: ")
    assert "\n" not in str(fault)


WHOLE_FILE = [
    ("empty", b"", "empty file: nothing is stopped", "engines: []"),
    ("comments", b"# nothing here\n", "empty file", "engines: []"),
    ("null", b"~\n", "empty file", "engines: []"),
    ("utf-16", "engines: []".encode("utf-16"), "UTF-16", "UTF-8"),
    ("large", b"#" * (4 * 2**20 + 1), "larger than 4 MiB", ""),
]


@pytest.mark.parametrize(
    ("data", "message", "hint"), [case[1:] for case in WHOLE_FILE], ids=[case[0] for case in WHOLE_FILE]
)
def test_a_fault_of_the_whole_file(tmp_path: Path, data: bytes, message: str, hint: str) -> None:
    (fault,) = faults_of(data, tmp_path)
    assert message in fault.message
    assert hint in fault.hint
    assert fault.line == 0


def test_bytes_that_are_not_utf8_have_a_place(tmp_path: Path) -> None:
    (fault,) = faults_of(b"engines: []\nname: caf\xe9\n", tmp_path)
    assert (fault.line, fault.column) == (2, 10)
    assert "0xE9 is not UTF-8" in fault.message


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(b"\xef\xbb\xbfengines: []\n")
    assert load([path], {}).model.engines == ()


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "stack.yaml").write_text("engines: []")
    with pytest.raises(StackError, match=r"stak\.yaml: error: no such file \(did you mean stack\.yaml\?\)"):
        load([tmp_path / "stak.yaml"], {})


def test_a_directory_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="is a directory"):
        load([tmp_path], {})


def test_an_unreadable_file_says_why(tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    path.symlink_to(path)
    with pytest.raises(StackError, match="cannot be read"):
        load([path], {})


def test_aliases_that_explode_are_refused_quickly(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (fault,) = faults_of("\n".join(lines) + "\nengines: []\n", tmp_path)
    assert "aliases expand to more than" in fault.message


def test_every_fault_of_a_file_is_told_in_file_order(tmp_path: Path) -> None:
    text = """\
nam: x
gateway: {port: 0}
engines:
  - {name: a, model: m, prt: 1, label: 5}
  - {name: b, model: "${env:NOPE}", runtime: vlm}
  - {name: c, model: m, depends_on: [x], args: {a: {}}, env: {B: 1.5}}
"""
    faults = faults_of(text, tmp_path)
    assert [fault.field for fault in faults] == [
        "nam", "gateway.port",
        "engines[0].prt", "engines[0].label",
        "engines[1].model", "engines[1].runtime",
        "engines[2].depends_on[0]", "engines[2].args.a", "engines[2].env.B",
    ]  # fmt: skip
    assert [(fault.line, fault.column) for fault in faults] == sorted((f.line, f.column) for f in faults)


def test_a_fault_of_defaults_is_told_once_and_there(tmp_path: Path) -> None:
    text = "defaults: {health: {interval: x}}\n" + engines("name: a, model: m", "name: b, model: n")
    (fault,) = faults_of(text, tmp_path)
    assert (fault.line, fault.column, fault.field) == (1, 31, "defaults.health.interval")


def test_a_fault_stands_in_the_file_that_holds_the_value(tmp_path: Path) -> None:
    base, top = tmp_path / "base.yaml", tmp_path / "top.yaml"
    base.write_text(
        "engines:\n  - name: a\n    model: m\n    port: 99999\n  - {name: b, model: n, label: 1}\n"
    )
    top.write_text("engines:\n  - name: b\n    replicas: 0\n")
    with pytest.raises(StackError) as error:
        load([base, top], {})
    places = [(Path(f.path).name, f.line, f.column, f.field) for f in error.value.faults]
    assert places == [
        ("base.yaml", 4, 11, "engines[0].port"),
        ("base.yaml", 5, 32, "engines[1].label"),
        ("top.yaml", 3, 15, "engines[1].replicas"),
    ]


def test_faults_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    broken, other = tmp_path / "broken.yaml", tmp_path / "other.yaml"
    broken.write_text("engines: [\n")
    other.write_text("gateway: {prt: 1}\n")
    with pytest.raises(StackError) as error:
        load([broken, other], {})
    assert [Path(f.path).name for f in error.value.faults] == ["broken.yaml", "other.yaml"]


def test_include_cycles_are_told_with_their_chain(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("include: [t.yaml]\nengines: []\n")
    (tmp_path / "t.yaml").write_text("include: [s.yaml]\n")
    with pytest.raises(
        StackError, match=r"t\.yaml:1:11: error: include\[0\]: .*s\.yaml -> t\.yaml -> s\.yaml"
    ):
        load([tmp_path / "s.yaml"], {})


SETS = [
    ("engines.chta.replicas=2", 'no engine "chta"', "did you mean chat?"),
    ("engines.chat=2", "no field", "engines.NAME.FIELD"),
    ("replicas", "not key=value", "engines.NAME.FIELD"),
    ("engines.chat.replicas=0", "at least 1", ""),
    ("engines.chat.replcas=1", "unknown key", "replicas?"),
    ("engines.chat.args.a=[", "not valid YAML", "quote"),
]


@pytest.mark.parametrize(("setting", "message", "hint"), SETS)
def test_a_bad_set_is_a_fault_at_set(tmp_path: Path, setting: str, message: str, hint: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(engines("name: chat, model: m"))
    with pytest.raises(StackError) as error:
        load([path], {}, sets=[setting])
    (fault,) = error.value.faults
    assert fault.path == "--set"
    assert message in fault.message
    assert hint in fault.hint


def test_portable_leaves_out_what_depends_on_the_host(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        engines(
            "name: a, model: /no/such, port: '${env:NOPE}', env: {A: '${env:NOPE}', B: '${file:/no}'}",
            "name: b, model: '${env:NOPE}'",
        )
    )
    stack = load([path], {}, portable=True)
    assert stack.model.engines[0].port is None
    assert stack.model.engines[1].model == "${env:NOPE}"
    with pytest.raises(StackError) as error:
        load([path], {})
    assert len(error.value.faults) == 5


def test_a_syntax_fault_of_the_reference_itself_is_told_even_when_portable(tmp_path: Path) -> None:
    (fault,) = faults_of(engine("label: '${env:'"), tmp_path, portable=True)
    assert "no closing }" in fault.message
