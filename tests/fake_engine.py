"""A tiny real engine: OpenAI HTTP over the standard library, with every way to misbehave that tests need.

Run as `python tests/fake_engine.py --port N --model NAME [options]`; unknown options are ignored, so that
any `args` may be passed. It imports nothing of sage.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser()
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, required=True)
    p.add_argument("--model", default="fake")
    p.add_argument("--dim", type=int, default=8)
    p.add_argument("--answer", default="The capital of France is Paris.")
    p.add_argument("--answer-file", help="the answer, as long as this file exists")
    p.add_argument("--listen-delay", type=float, default=0.0, help="seconds before the port opens")
    p.add_argument("--ready-delay", type=float, default=0.0, help="seconds in which generation answers 503")
    p.add_argument("--request-delay", type=float, default=0.0, help="seconds that every generation takes")
    p.add_argument("--chunk-delay", type=float, default=0.0, help="seconds between streamed events")
    p.add_argument("--exit-at-start", type=int, help="exit with this code before listening")
    p.add_argument("--exit-message", default="", help="printed to stderr before --exit-at-start")
    p.add_argument("--exit-after", type=float, help="exit with code 3 after these seconds")
    p.add_argument("--die-on-request", action="store_true", help="the first generation kills the process")
    p.add_argument("--die-on-request-number", type=int, help="the n-th generation kills the process")
    p.add_argument("--die-after-events", type=int, help="kill the process after so many streamed events")
    p.add_argument("--never-ready", action="store_true", help="/health says 200, generation hangs")
    p.add_argument("--error-status", type=int, help="every generation answers this status")
    p.add_argument("--hang-file", help="while this file exists, every request hangs, /health too")
    p.add_argument("--stall-file", help="while this file exists, generation hangs; GET requests answer")
    p.add_argument("--refuse-file", help="while this file exists, every generation answers 500")
    p.add_argument("--start-file", help="while this file exists, a new engine does not open its port")
    p.add_argument("--slow-health-file", help="while this file exists, /health hangs; all else answers")
    p.add_argument("--wakes-broken", action="store_true", help="after /wake_up, generation answers 500")
    p.add_argument("--no-models", action="store_true", help="/v1/models answers 500")
    p.add_argument("--no-chat", action="store_true", help="no chat template: chat answers 400")
    p.add_argument("--print-bytes", type=int, default=0, help="write so much output at start, in lines")
    p.add_argument("--children", type=int, default=0, help="worker processes to start")
    p.add_argument("--dies-with-children", action="store_true", help="ends when one of its workers does")
    p.add_argument("--stubborn-children", action="store_true", help="workers ignore SIGTERM, in own sessions")
    p.add_argument("--ignore-sigterm", action="store_true")
    p.add_argument("--enable-lora", action="store_true", help="adapters may be loaded, as vLLM does it")
    p.add_argument("--lora-refusal", help="every adapter is refused with these words")
    p.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    p.add_argument("--counter-file", help="one line is appended at every start")
    p.add_argument("--fail-starts", type=int, default=0, help="exit 1 while --counter-file has so few lines")
    return p.parse_known_args()[0]


ARGS = parse()
STARTED = time.monotonic()
STATE = {"generations": 0, "running": 0, "tokens": 0, "asleep": 0}
ADAPTERS: dict[str, str] = {}
LOCK = threading.Lock()


def vector(text: str, dim: int) -> list[float]:
    raw = hashlib.sha256(text.encode()).digest() * (dim // 8 + 1)
    values = [int.from_bytes(raw[4 * i : 4 * i + 4], "big") / 2**32 for i in range(dim)]
    norm = sum(v * v for v in values) ** 0.5
    return [v / norm for v in values]


def said() -> str:
    if ARGS.answer_file and os.path.exists(ARGS.answer_file):
        with open(ARGS.answer_file, encoding="utf-8") as file:
            return file.read()
    return str(ARGS.answer)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Else the body, written after the head, waits 40 ms for a delayed acknowledgement.
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        print(f"{self.command} {self.path}", file=sys.stderr, flush=True)

    def hang(self, path: str | None = None) -> None:
        path = path or ARGS.hang_file
        while path and os.path.exists(path):
            time.sleep(0.05)

    def reply(self, status: int, body: object, kind: str = "application/json") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.send_header("x-engine-pid", str(os.getpid()))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.hang()
        if self.path == "/health":
            if ARGS.slow_health_file and os.path.exists(ARGS.slow_health_file):
                print("slow health", flush=True)
                self.hang(ARGS.slow_health_file)
            self.reply(200, {})
        elif self.path == "/v1/models" and ARGS.no_models:
            self.reply(500, {"error": {"message": "no cache to list", "type": "server_error"}})
        elif self.path == "/v1/models":
            entry = {"id": ARGS.model, "object": "model", "root": os.environ.get("FAKE_ROOT", ARGS.model)}
            adapters = [
                {"id": n, "object": "model", "root": p, "parent": ARGS.model} for n, p in ADAPTERS.items()
            ]
            self.reply(200, {"object": "list", "data": [entry, *adapters]})
        elif self.path == "/metrics":
            text = (
                f"vllm:num_requests_running {STATE['running']}\n"
                f"vllm:generation_tokens_total {STATE['tokens']}\n"
            )
            self.reply(200, text.encode(), "text/plain")
        elif self.path == "/is_sleeping":
            self.reply(200, {"is_sleeping": bool(STATE["asleep"])})
        elif self.path == "/env":
            self.reply(200, dict(os.environ))
        elif self.path == "/argv":
            self.reply(200, sys.argv)
        else:
            self.reply(404, {"error": {"message": "no such path", "type": "not_found"}})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path in ("/sleep?level=1", "/wake_up"):
            STATE["asleep"] = int(self.path != "/wake_up")
            ARGS.error_status = 500 if ARGS.wakes_broken else ARGS.error_status
            self.reply(200, {})
            return
        if self.path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            self.adapt(json.loads(body))
            return
        self.hang()
        with LOCK:
            STATE["generations"] += 1
            STATE["running"] += 1
            count = STATE["generations"]
        try:
            if self.headers.get("content-type", "").startswith("multipart/"):
                self.transcribe(body)
            else:
                self.generate(json.loads(body), body, count)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with LOCK:
                STATE["running"] -= 1

    def adapt(self, request: dict[str, str]) -> None:
        """What vLLM answers to requests that load and unload adapters."""
        name, path = request["lora_name"], request.get("lora_path", "")
        is_allowed = ARGS.enable_lora and os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == "True"
        if not is_allowed:
            self.reply(404, {"detail": "Not Found"})
        elif self.path == "/v1/unload_lora_adapter" and name not in ADAPTERS:
            self.refuse(404, f"The lora adapter '{name}' cannot be found.")
        elif self.path == "/v1/unload_lora_adapter":
            del ADAPTERS[name]
            self.reply(200, f"Success: LoRA adapter '{name}' removed successfully.".encode(), "text/plain")
        elif name in ADAPTERS:
            self.refuse(400, f"The lora adapter '{name}' has already been loaded.")
        elif ARGS.lora_refusal or not os.path.exists(os.path.join(path, "adapter_model.safetensors")):
            self.refuse(404, ARGS.lora_refusal or f"Loading lora {name} failed: No adapter found for {path}")
        else:
            ADAPTERS[name] = path
            self.reply(200, f"Success: LoRA adapter '{name}' added successfully.".encode(), "text/plain")

    def refuse(self, status: int, message: str) -> None:
        self.reply(status, {"error": {"message": message, "type": "NotFoundError", "code": status}})

    def generate(self, request: dict[str, object], raw: bytes, count: int) -> None:
        if ARGS.die_on_request or count == ARGS.die_on_request_number:
            print("fatal: unsupported head_dim 16", file=sys.stderr, flush=True)
            os._exit(9)
        if ARGS.never_ready:
            time.sleep(3600)
        if STATE["asleep"]:
            self.reply(500, {"error": {"message": "EngineCore is asleep", "type": "engine_error"}})
            return
        is_refusing = bool(ARGS.refuse_file) and os.path.exists(ARGS.refuse_file)
        if status := 500 if is_refusing else ARGS.error_status:
            self.reply(status, {"error": {"message": "engine says no", "type": "engine_error"}})
            return
        if time.monotonic() - STARTED < ARGS.ready_delay:
            self.reply(503, {"error": {"message": "loading", "type": "unavailable"}})
            return
        if request.get("model") not in (ARGS.model, *ADAPTERS):
            self.reply(400, {"error": {"message": f"unknown model {request.get('model')}", "type": "x"}})
            return
        if ARGS.no_chat and self.path == "/v1/chat/completions":
            self.reply(400, {"error": {"message": "this model has no chat template", "type": "x"}})
            return
        if ARGS.stall_file:
            self.hang(ARGS.stall_file)
        time.sleep(ARGS.request_delay)
        STATE["tokens"] += 1
        if self.path == "/v1/embeddings":
            self.embed(request)
        elif self.path == "/v1/responses":
            self.respond(raw)
        elif request.get("stream"):
            options = request.get("stream_options")
            self.stream(has_usage=isinstance(options, dict) and bool(options.get("include_usage")))
        else:
            answer = said()
            message = {"role": "assistant", "content": answer}
            choice = {"index": 0, "message": message, "text": answer, "finish_reason": "stop"}
            self.reply(
                200,
                {
                    "id": "chatcmpl-1",
                    "object": "chat.completion",
                    "created": 1,
                    "model": request.get("model"),
                    "choices": [choice],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
                    "echo": {"path": self.path, "body": raw.decode(), "headers": dict(self.headers)},
                },
            )

    def transcribe(self, body: bytes) -> None:
        if b'name="model"\r\n\r\n' + ARGS.model.encode() + b"\r\n" in body:
            self.reply(200, {"text": ARGS.answer, "usage": {"type": "duration", "seconds": 1}})
        else:
            self.reply(400, {"error": {"message": "unknown model in the form", "type": "x"}})

    def respond(self, raw: bytes) -> None:
        text = {"type": "output_text", "text": ARGS.answer, "annotations": []}
        message = {
            "type": "message",
            "id": "m",
            "role": "assistant",
            "status": "completed",
            "content": [text],
        }
        self.reply(
            200,
            {
                "id": "resp-1",
                "object": "response",
                "created_at": 1,
                "status": "completed",
                "model": ARGS.model,
                "output": [message],
                "parallel_tool_calls": False,
                "tool_choice": "auto",
                "tools": [],
                "usage": {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2},
                "echo": {"path": self.path, "body": raw.decode(), "headers": dict(self.headers)},
            },
        )

    def embed(self, request: dict[str, object]) -> None:
        if not request.get("input"):
            self.reply(400, {"error": {"message": "no input", "type": "invalid_request_error"}})
            return
        texts = request["input"] if isinstance(request["input"], list) else [request["input"]]
        data = []
        for index, text in enumerate(texts):
            value: object = vector(str(text), ARGS.dim)
            if request.get("encoding_format") == "base64":
                value = base64.b64encode(struct.pack(f"<{ARGS.dim}f", *value)).decode()  # type: ignore[misc]
            data.append({"object": "embedding", "index": index, "embedding": value})
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        self.reply(200, {"object": "list", "model": ARGS.model, "data": data, "usage": usage})

    def stream(self, has_usage: bool) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        words = ARGS.answer.split(" ")
        for count, word in enumerate([*words, *([""] if has_usage else []), None]):
            if count == ARGS.die_after_events:
                os._exit(9)
            choice = {"index": 0, "delta": {"content": f"{word} "}, "text": f"{word} ", "finish_reason": None}
            event = {"id": "c", "object": "chat.completion.chunk", "model": ARGS.model, "choices": [choice]}
            if word == "" and count == len(words):
                usage = {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1}
                event = {**event, "choices": [], "usage": usage}
            line = b"data: [DONE]\n\n" if word is None else f"data: {json.dumps(event)}\n\n".encode()
            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            self.wfile.flush()
            time.sleep(ARGS.chunk_delay)
        self.wfile.write(b"0\r\n\r\n")


def start_children() -> None:
    command = [sys.executable, os.path.abspath(__file__), "--port", "0", "--worker"]
    if ARGS.stubborn_children:
        command.append("--ignore-sigterm")
    for _ in range(ARGS.children):
        child = subprocess.Popen(command, start_new_session=ARGS.stubborn_children)
        if ARGS.dies_with_children:
            threading.Thread(target=die_with, args=(child,), daemon=True).start()


def die_with(child: "subprocess.Popen[bytes]") -> None:
    child.wait()
    print("fatal: a worker died", file=sys.stderr, flush=True)
    os._exit(1)


def main() -> None:
    if ARGS.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if ARGS.worker:
        while True:
            time.sleep(60)
    print(f"fake engine: pid {os.getpid()} model {ARGS.model} port {ARGS.port}", flush=True)
    if ARGS.counter_file:
        with open(ARGS.counter_file, "a+", encoding="utf-8") as file:
            file.write("start\n")
            file.seek(0)
            if len(file.readlines()) <= ARGS.fail_starts:
                sys.exit("fake engine: not this time")
    if ARGS.exit_at_start is not None:
        print(ARGS.exit_message or "fake engine: told to exit", file=sys.stderr, flush=True)
        sys.exit(ARGS.exit_at_start)
    for number in range(ARGS.print_bytes // 64):
        print(f"{number:063}", flush=True)
    start_children()
    if ARGS.exit_after is not None:
        threading.Timer(ARGS.exit_after, lambda: os._exit(3)).start()
    time.sleep(ARGS.listen_delay)
    while ARGS.start_file and os.path.exists(ARGS.start_file):
        time.sleep(0.05)
    server = ThreadingHTTPServer((ARGS.host, ARGS.port), Handler)
    server.daemon_threads = True
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
