"""Whether traces are wanted, by the variables that OpenTelemetry's own SDKs read; loads nothing to find out.

https://opentelemetry.io/docs/specs/otel/protocol/exporter and .../configuration/sdk-environment-variables.
"""

from __future__ import annotations

from collections.abc import Mapping

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Tell whether spans are to be exported: a collector is named, and nothing switches the export off."""
    return (
        any(environment.get(name) for name in ENDPOINTS)
        and environment.get("OTEL_SDK_DISABLED", "").lower() != "true"
        and environment.get("OTEL_TRACES_EXPORTER", "otlp") != "none"
    )
