"""Counters, histograms and gauges, and how they are written: Prometheus's text format 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats. Written here because the usual library costs 3.8 MiB of a
daemon that weighs 27, and what it does beside this is not needed: threads, registries, TLS, other formats.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

Labels = tuple[str, ...]
"""The values of a sample's labels, in the order in which its family names them."""

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""The upper bounds of a histogram's buckets: from a call that answers from memory to a guest that does not boot."""

_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Counter:
    """A number that only grows, per combination of labels."""

    __slots__ = ("_labels", "_meaning", "_values", "name")

    def __init__(self, name: str, meaning: str, *labels: str) -> None:
        self.name = name
        self._meaning = meaning
        self._labels = labels
        self._values: dict[Labels, float] = {} if labels else {(): 0.0}

    def add(self, *values: str, amount: float = 1.0) -> None:
        self._values[values] = self._values.get(values, 0.0) + amount

    def lines(self) -> Iterator[str]:
        yield from family(self.name, "counter", self._meaning, self._labels, self._values)


class Histogram:
    """Durations in seconds, per combination of labels."""

    __slots__ = ("_counts", "_labels", "_meaning", "_sums", "name")

    def __init__(self, name: str, meaning: str, *labels: str) -> None:
        self.name = name
        self._meaning = meaning
        self._labels = labels
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def add(self, seconds: float, *values: str) -> None:
        counts = self._counts.get(values)
        if counts is None:
            counts = self._counts[values] = [0] * (len(SECONDS) + 1)
        counts[bisect_left(SECONDS, seconds)] += 1
        self._sums[values] = self._sums.get(values, 0.0) + seconds

    def lines(self) -> Iterator[str]:
        yield from _header(self.name, "histogram", self._meaning)
        bounds = (*map(_number, SECONDS), "+Inf")
        for values, counts in self._counts.items():
            total = 0
            for bound, count in zip(bounds, counts, strict=True):
                total += count
                labels = _braces((*self._labels, "le"), (*values, bound))
                yield f"{self.name}_bucket{labels} {total}"
            labels = _braces(self._labels, values)
            yield f"{self.name}_sum{labels} {_number(self._sums[values])}"
            yield f"{self.name}_count{labels} {total}"


def family(
    name: str, kind: str, meaning: str, labels: Iterable[str], samples: Mapping[Labels, float]
) -> Iterator[str]:
    """Yield the lines of a family of plain samples; `kind` is "counter" or "gauge"."""
    yield from _header(name, kind, meaning)
    for values, number in samples.items():
        yield f"{name}{_braces(tuple(labels), values)} {_number(number)}"


def _header(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"


def _braces(labels: Labels, values: Labels) -> str:
    pairs = zip(labels, values, strict=True)
    text = ",".join(f'{label}="{value.translate(_ESCAPES)}"' for label, value in pairs)
    return f"{{{text}}}" if text else ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
