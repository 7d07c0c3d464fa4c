"""Which engine a command line is, and what it says of model, flags and port. Pure."""

import os
from dataclasses import dataclass

from sage_reconcile.importing.flags import Flags, parse
from sage_reconcile.model.desired import ArgValue

VLLM_MODULES = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.cli.main")
TRANSFORMERS_MODULE = "transformers.cli.transformers"
EMBEDDING_MODULE = "sage_reconcile.embedding.server"
SGLANG_MODULE = "sglang.launch_server"
LLAMA = ("llama-server", "llama-server.exe")
# Flags of vLLM without a value, after which a model may stand: `vllm serve --enforce-eager MODEL`.
SWITCHES = frozenset(
    {"enforce-eager", "trust-remote-code", "enable-sleep-mode", "enable-prefix-caching", "enable-lora"}
    | {"enable-auto-tool-choice", "enable-chunked-prefill", "disable-log-requests", "disable-log-stats"}
    | {"continuous-batching", "embedding", "embeddings", "is-embedding", "truncate", "jinja"}
)


@dataclass(frozen=True, slots=True)
class Recognised:
    """`program` as people call it. `runtime` is sage's own that starts the same, "" where it is a command.

    `head` are the words before the flags, `python` the interpreter, "" where it is no Python program.
    """

    program: str
    runtime: str
    head: tuple[str, ...]
    python: str
    model: str
    flags: Flags

    def flag(self, *names: str) -> ArgValue:
        """The value of the first of these that is given, None where none is."""
        return next((self.flags.long[name] for name in names if name in self.flags.long), None)

    @property
    def is_embedding(self) -> bool:
        if self.runtime == "sentence-transformers":
            return True
        pools = self.flag("runner") == "pooling" or self.flag("task") in ("embed", "embedding")
        return pools or self.flag("embedding", "embeddings", "is-embedding") is not None

    @property
    def served(self) -> tuple[str, ...]:
        """Names that requests use, where the command line gives them."""
        found = self.flag("served-model-name", "alias")
        return tuple(map(str, found)) if isinstance(found, tuple) else (str(found),) if found else ()


def recognise(argv: tuple[str, ...]) -> Recognised | None:
    """None for a command line that is no engine known here."""
    if not argv:
        return None
    python, words = ("", argv)
    if os.path.basename(argv[0]).startswith("python"):
        python, words = argv[0], _after_options(argv[1:])
    if not words:
        return None
    name = os.path.basename(words[0])
    module = words[1] if words[0] == "-m" and len(words) > 1 else ""
    before = len(argv) - len(words)
    if module in VLLM_MODULES[:1]:
        return _engine("vllm", "vllm", argv, before + 2, python)
    if (name == "vllm" and words[1:2] == ("serve",)) or (module and words[1:3] == (VLLM_MODULES[1], "serve")):
        return _engine("vllm", "vllm", argv, before + (3 if module else 2), python)
    if module == TRANSFORMERS_MODULE and words[2:3] == ("serve",):
        return _engine("transformers", "transformers", argv, before + 3, python)
    if name == "transformers" and words[1:2] == ("serve",):
        return _engine("transformers", "transformers", argv, before + 2, python)
    if module == EMBEDDING_MODULE:
        return _engine("sage's embedding server", "sentence-transformers", argv, before + 2, python)
    if module == SGLANG_MODULE:
        return _engine("SGLang", "", argv, before + 2, python)
    if name in LLAMA:
        return _engine("llama-server", "", argv, before + 1, python)
    return None


def _after_options(words: tuple[str, ...]) -> tuple[str, ...]:
    """Without the interpreter's own options (-u, -I, -X dev) before a script or -m."""
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] not in ("-m", "-c"):
        at += 2 if words[at] in ("-X", "-W") else 1
    return words[at:]


def _engine(program: str, runtime: str, argv: tuple[str, ...], head: int, python: str) -> Recognised:
    flags = parse(argv[head:], SWITCHES)
    model = flags.long.get("model") or flags.long.get("model-path") or ""
    rest = flags.rest
    if not model and program == "llama-server":
        model = _after(rest, "-m") or flags.long.get("hf-repo") or _after(rest, "-hf") or ""
    elif not model and rest and not rest[0].startswith("-"):
        model, rest = rest[0], rest[1:]
        flags = Flags(flags.long, rest)
    return Recognised(program, runtime, argv[:head], python, str(model), flags)


def _after(words: tuple[str, ...], flag: str) -> str:
    at = words.index(flag) if flag in words else len(words)
    return words[at + 1] if at + 1 < len(words) else ""
