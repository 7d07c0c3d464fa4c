"""The spans of OpenTelemetry: one for each request that is traced, made from its access record.

Only tracing.py imports this, and only where traces are asked for: the packages are an extra of sage.
"""

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.util.types import AttributeValue

from gateway.accesslog import MAX_PENDING, MAX_TEXT, Access
from gateway.tracing import Parent, Sampling, child_traceparent, new_trace_id, parse_traceparent
from sage_reconcile.version import __version__

# Paths whose work has a name in the semantic conventions for generative AI.
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


class _GivenIds(IdGenerator):
    """Ids that were chosen before the span is made, because the engine was told them."""

    trace_id = 0
    span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class Tracer:
    """Makes spans of access records. `processor` is the SDK's, which exports them."""

    def __init__(self, processor: SpanProcessor, sampling: Sampling, environ: Mapping[str, str]) -> None:
        self._sampling = sampling
        self._pending: list[tuple[Access, bytes, bytes]] = []
        self._ids = _GivenIds()
        own = {SERVICE_VERSION: __version__}
        named = environ.get("OTEL_SERVICE_NAME") or SERVICE_NAME in environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        )
        if not named:
            own[SERVICE_NAME] = "sage-gateway"
        # Whether a request is recorded was decided when its header went to the engine.
        self._provider = TracerProvider(ALWAYS_ON, Resource.create(own), False, id_generator=self._ids)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("sage.gateway", __version__)

    def begin(self, traceparent: bytes) -> bytes:
        """The traceparent that the engine gets, for the one that the client sent (b"" without)."""
        parent = parse_traceparent(traceparent)
        trace_id = parent.trace_id if parent is not None else new_trace_id()
        return child_traceparent(trace_id, self._sampling.decide(parent, trace_id))

    def add(self, record: Access, span: bytes, traceparent: bytes) -> None:
        """Takes a request that is over. `span` is what begin() gave for `traceparent`."""
        if span.endswith(b"1") and len(self._pending) < MAX_PENDING:
            self._pending.append((record, span, traceparent))

    def flush(self) -> None:
        """Makes the spans of what was added since."""
        pending, self._pending = self._pending, []
        for record, span, traceparent in pending:
            self._export(record, span, parse_traceparent(traceparent))

    def close(self) -> None:
        """Sends what is left. Blocks, for seconds if the collector does not answer."""
        self.flush()
        self._provider.shutdown()

    def _export(self, record: Access, span: bytes, parent: Parent | None) -> None:
        own = parse_traceparent(span)
        assert own is not None
        self._ids.trace_id, self._ids.span_id = int(own.trace_id, 16), int(own.span_id, 16)
        context = trace.set_span_in_context(trace.INVALID_SPAN)
        if parent is not None:
            flags = trace.TraceFlags(int(parent.is_sampled))
            before = trace.SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), True, flags)
            context = trace.set_span_in_context(trace.NonRecordingSpan(before))
        is_known = record.src == "engine" or record.path in _OPERATIONS
        made = self._tracer.start_span(
            f"{record.method} {record.path}" if is_known else record.method,
            context=context,
            kind=trace.SpanKind.SERVER,
            attributes=attributes_of(record),
            start_time=int(record.ts * 1e9),
        )
        if record.status >= 500 or (record.error and record.status < 400):
            made.set_status(trace.StatusCode.ERROR, record.error or None)
        made.end(int((record.ts + record.ms / 1000) * 1e9))


def otlp_tracer(sampling: Sampling, environ: Mapping[str, str]) -> Tracer:
    """A tracer that sends to the collector that OTEL_EXPORTER_OTLP_* names."""
    return Tracer(BatchSpanProcessor(OTLPSpanExporter()), sampling, environ)


def attributes_of(record: Access) -> dict[str, AttributeValue]:
    """By the semantic conventions for HTTP and generative AI; what they have no name for is `sage.*`."""
    found: dict[str, AttributeValue] = {
        "http.request.method": record.method,
        "url.path": _text(record.path),
        "http.response.status_code": record.status,
        "gen_ai.request.model": _text(record.model),
        "gen_ai.request.stream": record.stream,
        "sage.request_id": _text(record.request_id),
        "sage.src": record.src,
        "sage.retries": record.retries,
        "sage.queued_ms": record.queued_ms,
        "sage.held_ms": record.held_ms,
    }
    optional: dict[str, AttributeValue] = {
        "gen_ai.operation.name": _OPERATIONS.get(record.path, ""),
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.response.time_to_first_chunk": (record.first_byte_ms or 0.0) / 1000,
        "client.address": record.client,
        "error.type": record.error,
        "sage.backend": record.backend,
        "sage.key": record.key,
    }
    found.update((name, value) for name, value in optional.items() if value)
    return found


def _text(given: str) -> str:
    """What a client chose, cut, and without half surrogate pairs: which would cost the whole batch."""
    return given[:MAX_TEXT].encode("utf-8", "replace").decode()
