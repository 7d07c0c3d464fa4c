"""Traces: which header the engine gets, and the span that tells of it."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gateway.accesslog import MAX_TEXT, Access
from gateway.spans import Tracer
from gateway.tracing import Sampling, child_traceparent, create_tracer, new_trace_id, parse_traceparent

TRACE, SPAN = b"0af7651916cd43dd8448eb211c80319c", b"b7ad6b7169203331"
GIVEN = b"00-" + TRACE + b"-" + SPAN + b"-01"


def record(**more: object) -> Access:
    known: dict[str, object] = {
        "ts": 1700000000.0,
        "request_id": "r-1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "model": "m",
        "status": 200,
        "ms": 1500.0,
    }
    return Access(**{**known, **more})  # type: ignore[arg-type]


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> Iterator[Tracer]:
    made = Tracer(SimpleSpanProcessor(exporter), Sampling(), {})
    yield made
    made.close()


def only(exporter: InMemorySpanExporter) -> ReadableSpan:
    [span] = exporter.get_finished_spans()
    return span


def test_a_span_is_what_the_engine_was_told(tracer: Tracer, exporter: InMemorySpanExporter) -> None:
    to_engine = tracer.begin(GIVEN)
    tracer.add(
        record(
            prompt_tokens=3,
            completion_tokens=4,
            backend="e#0",
            key="team",
            client="10.0.0.1",
            stream=True,
            first_byte_ms=250.0,
            queued_ms=5.0,
            retries=1,
        ),
        to_engine,
        GIVEN,
    )
    assert exporter.get_finished_spans() == ()
    tracer.flush()
    span, told = only(exporter), parse_traceparent(to_engine)
    assert told is not None
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}".encode() == told.trace_id == TRACE
    assert f"{span.context.span_id:016x}".encode() == told.span_id != SPAN
    assert f"{span.parent.span_id:016x}".encode() == SPAN
    assert (span.name, span.kind) == ("POST /v1/chat/completions", SpanKind.SERVER)
    assert (span.start_time, span.end_time) == (1700000000 * 10**9, 1700000001 * 10**9 + 5 * 10**8)
    assert span.status.status_code is StatusCode.UNSET
    assert span.resource.attributes["service.name"] == "sage-gateway"
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "url.path": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "gen_ai.request.stream": True,
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.response.time_to_first_chunk": 0.25,
        "client.address": "10.0.0.1",
        "sage.request_id": "r-1",
        "sage.src": "engine",
        "sage.backend": "e#0",
        "sage.key": "team",
        "sage.retries": 1,
        "sage.queued_ms": 5.0,
        "sage.held_ms": 0.0,
    }


def test_without_a_parent_a_trace_begins(tracer: Tracer, exporter: InMemorySpanExporter) -> None:
    to_engine = tracer.begin(b"")
    tracer.add(record(), to_engine, b"")
    tracer.flush()
    span = only(exporter)
    assert span.parent is None
    assert span.context is not None
    assert f"{span.context.trace_id:032x}".encode() == to_engine[3:35]


def test_a_caller_that_does_not_record_gets_no_span(tracer: Tracer, exporter: InMemorySpanExporter) -> None:
    given = GIVEN[:-1] + b"0"
    to_engine = tracer.begin(given)
    assert to_engine.startswith(b"00-" + TRACE)
    assert to_engine.endswith(b"-00")
    tracer.add(record(), to_engine, given)
    tracer.flush()
    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"status": 503, "src": "sage", "error": "no_ready_backend"}, StatusCode.ERROR),
        ({"status": 200, "error": "engine_lost"}, StatusCode.ERROR),
        ({"status": 404, "src": "sage", "error": "model_not_found"}, StatusCode.UNSET),
    ],
)
def test_what_failed(
    tracer: Tracer, exporter: InMemorySpanExporter, more: dict[str, object], code: StatusCode
) -> None:
    tracer.add(record(**more), tracer.begin(b""), b"")
    tracer.flush()
    assert only(exporter).status.status_code is code
    assert (only(exporter).attributes or {})["error.type"] == more["error"]


def test_paths_that_clients_make_up_are_no_names(tracer: Tracer, exporter: InMemorySpanExporter) -> None:
    tracer.add(record(path="/made/up", status=404, src="sage"), tracer.begin(b""), b"")
    tracer.flush()
    assert only(exporter).name == "POST"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"nonsense",
        GIVEN[:-1],
        GIVEN + b"0",
        GIVEN + b"-more",
        GIVEN.upper(),
        GIVEN.replace(b"-", b"_"),
        b"ff" + GIVEN[2:],
        b"00-" + b"0" * 32 + b"-" + SPAN + b"-01",
        b"00-" + TRACE + b"-" + b"0" * 16 + b"-01",
        b"00-" + TRACE[:-1] + b"--" + SPAN + b"-01",
        b"00-" + TRACE[:-1] + b"\xe9-" + SPAN + b"-01",
        b"\x00" * 55,
    ],
)
def test_a_header_that_is_none(value: bytes) -> None:
    assert parse_traceparent(value) is None


def test_a_header_of_a_version_to_come() -> None:
    parent = parse_traceparent(b"01" + GIVEN[2:] + b"-what is new")
    assert parent is not None
    assert (parent.trace_id, parent.is_sampled) == (TRACE, True)
    assert parse_traceparent(b"01" + GIVEN[2:] + b"x") is None


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_no_header_is_too_odd(value: bytes) -> None:
    parsed = parse_traceparent(value)
    assert parsed is None or len(parsed.trace_id) == 32


@settings(deadline=None)
@given(st.booleans())
def test_what_is_passed_on_is_a_header(is_sampled: bool) -> None:
    trace_id = new_trace_id()
    parsed = parse_traceparent(child_traceparent(trace_id, is_sampled))
    assert parsed is not None
    assert (parsed.trace_id, parsed.is_sampled) == (trace_id, is_sampled)


LOW, HIGH = b"0" * 31 + b"1", b"f" * 32


@pytest.mark.parametrize(
    ("name", "argument", "decisions"),
    [
        # A recorded parent, one that is not recorded, a new trace with a low id, one with a high id.
        ("", "", (True, False, True, True)),
        ("always_off", "", (False, False, False, False)),
        ("parentbased_always_off", "", (True, False, False, False)),
        ("parentbased_traceidratio", "0.5", (True, False, True, False)),
        ("traceidratio", "0.5", (False, True, True, False)),
        ("traceidratio", "half", (True, False, True, True)),
        ("jaeger_remote", "", (True, False, True, True)),
    ],
)
def test_sampling(name: str, argument: str, decisions: tuple[bool, ...]) -> None:
    sampling = Sampling.from_environ({"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": argument})
    recorded = parse_traceparent(b"00-" + HIGH + b"-" + SPAN + b"-01")
    unrecorded = parse_traceparent(b"00-" + LOW + b"-" + SPAN + b"-00")
    cases = [(recorded, HIGH), (unrecorded, LOW), (None, LOW), (None, HIGH)]
    assert tuple(sampling.decide(*case) for case in cases) == decisions


@contextmanager
def collector(got: list[ExportTraceServiceRequest]) -> Iterator[str]:
    """An OTLP collector; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_collector_gets_the_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[ExportTraceServiceRequest] = []
    with collector(got) as address:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
        monkeypatch.setenv("NO_PROXY", "*")
        tracer = create_tracer(os.environ)
        assert tracer is not None
        # Half of a surrogate pair, and a text without end: what clients may send as a model.
        tracer.add(record(model="\ud800" + "x" * 10_000), tracer.begin(GIVEN), GIVEN)
        tracer.close()
    [sent] = got
    attributes = {one.key: one.value.string_value for one in sent.resource_spans[0].resource.attributes}
    assert attributes["service.name"] == "mine"
    [span] = sent.resource_spans[0].scope_spans[0].spans
    assert span.trace_id.hex().encode() == TRACE
    [model] = [one.value.string_value for one in span.attributes if one.key == "gen_ai.request.model"]
    assert model == "?" + "x" * (MAX_TEXT - 1)


@pytest.mark.parametrize(
    "environ", [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}]
)
def test_no_traces_unless_asked_for(environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    assert create_tracer(environ) is None
    assert caplog.messages == []


def test_without_the_packages_the_log_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # None in its place is how Python itself keeps a module from being imported.
    monkeypatch.delitem(sys.modules, "gateway.spans")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert create_tracer({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}) is None
    assert caplog.messages == [
        "no traces: pip install 'sage-reconcile[otel]', or unset OTEL_EXPORTER_OTLP_ENDPOINT"
    ]
