"""Optional OpenTelemetry traces: which requests belong to which trace.

The request path does no more than pass a `traceparent` on to the engine; spans.py makes the spans when
requests are over. Without OTEL_EXPORTER_OTLP_ENDPOINT nothing of OpenTelemetry is loaded; its other variables
(OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_BSP_*) count as usual.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from random import getrandbits
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.spans import Tracer

logger = logging.getLogger("gateway")

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_HEX = b"0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Parent:
    """Of a W3C traceparent: the ids as lower-case hex, and whether the caller records its trace."""

    trace_id: bytes
    span_id: bytes
    is_sampled: bool


def parse_traceparent(value: bytes) -> Parent | None:
    """The parent that a header names, or None where it says nothing that W3C Trace Context allows."""
    head = value[:55]
    dashes = head[2:3] + head[35:36] + head[52:53]
    if len(head) != 55 or dashes != b"---" or head.translate(None, _HEX) != dashes:
        return None
    version, trace_id, span_id, flags = head[:2], head[3:35], head[36:52], head[53:55]
    # Versions to come may have more after another dash.
    if version == b"ff" or (len(value) > 55 and (version == b"00" or value[55:56] != b"-")):
        return None
    if trace_id.strip(b"0") == b"" or span_id.strip(b"0") == b"":
        return None
    return Parent(trace_id, span_id, bool(int(flags, 16) & 1))


def new_trace_id() -> bytes:
    return b"%032x" % (getrandbits(128) or 1)


def child_traceparent(trace_id: bytes, is_sampled: bool) -> bytes:
    """The header for an engine: a new span of a trace."""
    return b"00-%b-%016x-0%d" % (trace_id, getrandbits(64) or 1, is_sampled)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which requests are recorded: as the parent says where that is asked, else `ratio` (0 to 1) of them."""

    ratio: float = 1.0
    asks_parent: bool = True

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Sampling":
        """By OTEL_TRACES_SAMPLER and _ARG. What is not understood counts as not set, and is told."""
        name = environ.get("OTEL_TRACES_SAMPLER") or "parentbased_always_on"
        kind = name.removeprefix("parentbased_")
        given = environ.get("OTEL_TRACES_SAMPLER_ARG") or "1"
        ratios = {"always_on": "1", "always_off": "0", "traceidratio": given}
        try:
            return cls(min(1.0, max(0.0, float(ratios[kind]))), name != kind)
        except (KeyError, ValueError):
            logger.warning("OTEL_TRACES_SAMPLER or its _ARG is not understood: every request is traced")
            return cls()

    def decide(self, parent: Parent | None, trace_id: bytes) -> bool:
        if parent is not None and self.asks_parent:
            return parent.is_sampled
        # By bits of the id, as the SDKs do: every service that has the same ratio decides alike.
        return int(trace_id[16:], 16) < self.ratio * 2**64


def create_tracer(environ: Mapping[str, str]) -> "Tracer | None":
    """The tracer that the environment asks for, or None. The log says why there is none though asked for."""
    is_disabled = environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if is_disabled or not any(environ.get(name) for name in ENDPOINTS):
        return None
    try:
        from gateway.spans import otlp_tracer
    except ImportError:
        logger.warning("no traces: pip install 'sage-reconcile[otel]', or unset OTEL_EXPORTER_OTLP_ENDPOINT")
        return None
    return otlp_tracer(Sampling.from_environ(environ), environ)
