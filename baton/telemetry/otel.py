"""Exports timelines as OpenTelemetry spans over OTLP/HTTP, after they have ended: recording them costs nothing extra.

A request is one trace across router and nodes. The router's span of the whole request is the root, or a child of the
client's span if the client sent a `traceparent`; each node adds its spans below it. Without an endpoint, OpenTelemetry
is not even imported. The SDK sends spans from a bounded queue in a thread of its own, and drops them when that is full.
"""

import logging
import os
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from baton.errors import ConfigError
from baton.telemetry import traceparent
from baton.telemetry.timeline import Event, Timeline, Value
from baton.telemetry.traceparent import TraceParent

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

_FLUSH_MS = 2000
_SCOPE = "baton"


class SpanExporter:
    """The exporter of one process. A TimelineBook calls `export` with each timeline that has ended."""

    def __init__(self, endpoint: str, attributes: Mapping[str, str]) -> None:
        """`attributes` (with a `role`) describe this process. ConfigError for a bad URL, or without OpenTelemetry."""
        if not endpoint.startswith(("http://", "https://")):
            raise ConfigError(f"--otlp-endpoint: {endpoint!r} is not a URL: write it as http://collector:4318")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        except ImportError:
            raise ConfigError(
                "spans need OpenTelemetry: pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
            ) from None
        for name in ("opentelemetry", "urllib3"):
            logging.getLogger(name).setLevel(logging.ERROR)  # or they would warn of a missing collector every 5 s
        url = f"{endpoint.rstrip('/').removesuffix('/v1/traces')}/v1/traces"
        self._processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=url))
        self._resource = Resource.create({"service.name": f"baton-{attributes['role']}", **attributes})
        self._scope = InstrumentationScope(_SCOPE)
        self._role = attributes["role"]

    def export(self, timeline: Timeline) -> None:
        """Queue the spans of a timeline that has ended, if its trace is sampled."""
        own = traceparent.parse(timeline.traceparent)
        if own is None or not own.sampled:
            return
        shift_s = time.time() - time.monotonic()
        is_root = bool(timeline.name)  # its `traceparent` is that of its own span; nodes' spans go below it
        above = traceparent.parse(timeline.parent) if is_root else own
        context = _context(own.trace_id, own.span_id if is_root else secrets.randbits(63) + 1)
        facts: dict[str, Value] = {"request_id": timeline.request_id, **timeline.attributes}
        if timeline.error:
            facts["error.code"] = timeline.error
        whole = Event(timeline.name or self._role, timeline.began_s, timeline.ended_s, facts)
        self._queue(whole, context, above, shift_s, failed=bool(timeline.error), serves=True)
        below = TraceParent(own.trace_id, context.span_id, sampled=True)
        for event in timeline.events():
            child = _context(own.trace_id, secrets.randbits(63) + 1)
            self._queue(event, child, below, shift_s, failed="error" in event.attributes)

    def close(self) -> None:
        """Send queued spans, for 2 s at most, and stop."""
        self._processor.force_flush(_FLUSH_MS)
        self._processor.shutdown()  # type: ignore[no-untyped-call]

    def _queue(
        self,
        event: Event,
        context: "SpanContext",
        above: TraceParent | None,
        shift_s: float,
        *,
        failed: bool,
        serves: bool = False,
    ) -> None:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanKind, Status, StatusCode

        span: ReadableSpan = ReadableSpan(
            name=event.name,
            context=context,
            parent=None if above is None else _context(above.trace_id, above.span_id, is_remote=serves),
            resource=self._resource,
            attributes={f"baton.{name}": value for name, value in event.attributes.items()},
            kind=SpanKind.SERVER if serves else SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
            start_time=_ns(event.start_s + shift_s),
            end_time=_ns(event.end_s + shift_s),
            instrumentation_scope=self._scope,
        )
        self._processor.on_end(span)


def exporter(endpoint: str, attributes: Mapping[str, str]) -> SpanExporter | None:
    """Return an exporter, or None if neither `endpoint` nor OTEL_EXPORTER_OTLP_ENDPOINT names a collector."""
    endpoint = endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    return SpanExporter(endpoint, attributes) if endpoint else None


def _context(trace_id: int, span_id: int, *, is_remote: bool = False) -> "SpanContext":
    from opentelemetry.trace import SpanContext, TraceFlags

    return SpanContext(trace_id, span_id, is_remote, TraceFlags(TraceFlags.SAMPLED))


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
