"""`make demo`: plan, apply and talk to two real models through the gateway, as a new user would by hand.

With --down it ends what it started. Uses nothing of sage but its command line and its HTTP.
"""

import argparse
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SAGE = ROOT / ".venv" / "bin" / "sage"
STACK = ROOT / "stacks" / "quickstart.yaml"
QUESTION = "What is the capital of France?"
SENTENCES = ("A cat sits on the mat.", "A kitten rests on a rug.", "The stock market fell today.")


def sage(*arguments: str | Path, check: bool = True) -> int:
    """Shows and runs one command line."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ sage {shlex.join(_short(word) for word in words)}", flush=True)
    status = subprocess.run([SAGE, *words], cwd=ROOT, check=False).returncode
    if check and status != 0:
        sys.exit(f"error: `sage {shlex.join(words)}` failed with status {status}; see above")
    return status


def _short(word: str) -> str:
    return os.path.relpath(word, ROOT) if word.startswith(str(ROOT)) else word


def gateway_port() -> int:
    """SAGE_GATEWAY_PORT, else 8000, else a free one when somebody else has that."""
    port = int(os.environ.get("SAGE_GATEWAY_PORT", "8000"))
    words = [SAGE, "gateway", "status", "--json"]
    status = subprocess.run(words, capture_output=True, text=True, check=False)
    running = re.search(r'"port":\s*(\d+)', status.stdout)
    if status.returncode == 0 and running:
        return int(running[1])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            probe.bind(("127.0.0.1", 0))
            print(f"\nport {port} is taken by another program, so the gateway gets {probe.getsockname()[1]}")
            return int(probe.getsockname()[1])
    return port


def talk(port: int) -> bool:
    """Asks both models by the openai SDK; whether the answer is the right one."""
    from openai import OpenAI

    key = os.environ.get("SAGE_API_KEYS", "none").partition(",")[0]
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key)
    print(f"\n# the openai SDK, base_url=http://127.0.0.1:{port}/v1", flush=True)
    print(f"you:   {QUESTION}")
    print("chat:  ", end="", flush=True)
    answer = ""
    messages: Any = [{"role": "user", "content": QUESTION}]
    stream = client.chat.completions.create(
        model="chat", messages=messages, temperature=0, max_tokens=24, stream=True
    )
    for event in stream:
        piece = event.choices[0].delta.content or "" if event.choices else ""
        answer += piece
        print(piece, end="", flush=True)
    print("\n")
    reply = client.embeddings.create(model="embed", input=list(SENTENCES))
    first, second, third = (item.embedding for item in reply.data)
    print(f"similarity of {SENTENCES[0]!r} and {SENTENCES[1]!r}: {_dot(first, second):.2f}")
    print(f"similarity of {SENTENCES[0]!r} and {SENTENCES[2]!r}: {_dot(first, third):.2f}")
    return "Paris" in answer and _dot(first, second) > _dot(first, third)


def _dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def show_an_edit() -> None:
    """Plans the stack with one more alias and another batch size: exactly that is what would happen."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix="edit-") as edit:
        edit.write(
            "engines:\n"
            "  - {name: chat, aliases: [gpt-4o-mini]}\n"
            "  - {name: embed, args: {max-batch-tokens: 4096}}\n"
        )
        edit.flush()
        print("\n# an edit: chat gets an alias (only the gateway notices), embed a setting (a new process)")
        sage("plan", STACK, "-f", edit.name)


def up() -> None:
    sage("plan", STACK)
    sage("apply", STACK, "--yes")
    port = gateway_port()
    sage("gateway", "start", "--port", str(port))
    is_right = talk(port)
    show_an_edit()
    sage("status")
    print(
        f"""
Both engines and the gateway go on running. Try:
  .venv/bin/sage status
  curl http://127.0.0.1:{port}/v1/models
  .venv/bin/sage logs chat
  cp stacks/quickstart.yaml sage.yaml && $EDITOR sage.yaml
  .venv/bin/sage plan && .venv/bin/sage apply
  .venv/bin/sage watch
  make demo-down"""
    )
    if not is_right:
        sys.exit("error: the models answered, but not rightly; see above")


def down() -> None:
    sage("gateway", "stop")
    sage("stop", "--stack", "quickstart", "--yes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--down", action="store_true", help="end what the demo started")
    down() if parser.parse_args().down else up()


if __name__ == "__main__":
    main()
