"""Spans of operations and their steps, exported over OTLP/HTTP: needs the extra `sandboxd[otel]`.

An operation whose call bore a `traceparent` (W3C Trace Context) is a child of its caller's span. Spans are made when
an operation has ended and handed to a bounded queue that a thread of the SDK empties; what does not fit, because the
collector is slow or away, is dropped. No pod ever waits.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any, Final

from common.log import get_logger
from common.operations import Operation, observe_operations

_SERVICE: Final = "sandboxd"
_COMPLAINT: Final = "tracing.failed"

log = get_logger()


def export_spans(kind: str) -> None:
    """Export a span of every operation from now on; where that is not possible, say so and go on.

    :param kind: the isolation type, an attribute of every span.
    """
    _route_complaints()
    try:
        maker = SpanMaker(_tracer(kind))
    except ImportError as error:
        log.error("tracing.unavailable", error=error, fix="pip install 'sandboxd[otel]', or unset OTEL_*")
    except Exception as error:
        # Whatever the SDK makes of the environment, which is the operator's: pods are served without traces as well.
        log.error("tracing.unavailable", error=error, fix="change the variables OTEL_*, or unset them")
    else:
        observe_operations(maker.note)
        log.info("tracing.started")


def _tracer(kind: str) -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    attributes = {"service.name": os.environ.get("OTEL_SERVICE_NAME", _SERVICE), "sandboxd.type": kind}
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer(_SERVICE)


class SpanMaker:
    """Makes the spans of operations that have ended."""

    def __init__(self, tracer: Any) -> None:
        """:param tracer: OpenTelemetry's."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = tracer
        self._kind = SpanKind.SERVER
        self._in_context = set_span_in_context
        self._status = Status
        self._error = StatusCode.ERROR
        self._extract = TraceContextTextMapPropagator().extract

    def note(self, ended: Operation) -> None:
        """Make the spans of an operation and of its steps."""
        began_ns = ended.began_at_ns
        span = self._tracer.start_span(
            ended.action.value,
            context=self._extract(_carrier(ended.metadata)),
            kind=self._kind,
            attributes={f"sandboxd.{name}": value for name, value in ended.ids.items()},
            start_time=began_ns,
        )
        if span.is_recording():
            inside, before_ns = self._in_context(span), began_ns
            for step, at_ns in ended.steps:
                part = self._tracer.start_span(step, context=inside, start_time=before_ns)
                before_ns = began_ns + at_ns
                part.end(before_ns)
            if ended.error is not None:
                span.set_status(self._status(self._error, str(ended.error)))
        span.end(began_ns + ended.took_ns)


def _carrier(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    return {key: value for key, value in metadata if isinstance(value, str)}


class _Complaints(logging.Handler):
    """What the SDK has to say, as events of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        log.warning(_COMPLAINT, source=record.name, message=record.getMessage())


def _route_complaints() -> None:
    for name in ("opentelemetry", "urllib3", "requests"):
        logger = logging.getLogger(name)
        logger.propagate = False
        logger.setLevel(logging.WARNING)
        logger.addHandler(_Complaints())
