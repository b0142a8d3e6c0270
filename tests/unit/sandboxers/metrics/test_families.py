"""Prometheus's text format."""

from __future__ import annotations

from sandboxers.metrics.families import SECONDS, Counter, Histogram, family


def test_a_counter_without_labels_is_there_from_the_beginning() -> None:
    counter = Counter("x_total", "What x is.")
    assert list(counter.lines()) == ["# HELP x_total What x is.", "# TYPE x_total counter", "x_total 0"]
    counter.add(amount=2.5)
    assert list(counter.lines())[-1] == "x_total 2.5"


def test_labels_are_escaped() -> None:
    counter = Counter("x_total", "x", "a", "b")
    counter.add("1", 'quote " backslash \\ line\n')
    counter.add("1", 'quote " backslash \\ line\n')
    assert list(counter.lines())[2:] == ['x_total{a="1",b="quote \\" backslash \\\\ line\\n"} 2']


def test_buckets_hold_what_is_no_longer_than_their_bound_and_all_below() -> None:
    histogram = Histogram("x_seconds", "x", "m")
    for seconds in (0.0005, 0.001, 0.002, 61.0):
        histogram.add(seconds, "get")
    lines = list(histogram.lines())
    assert lines[2:5] == [
        'x_seconds_bucket{m="get",le="0.001"} 2',
        'x_seconds_bucket{m="get",le="0.0025"} 3',
        'x_seconds_bucket{m="get",le="0.005"} 3',
    ]
    assert lines[-3:] == [
        'x_seconds_bucket{m="get",le="+Inf"} 4',
        'x_seconds_sum{m="get"} 61.0035',
        'x_seconds_count{m="get"} 4',
    ]
    assert len(lines) == 2 + len(SECONDS) + 3


def test_a_family_of_gauges() -> None:
    assert list(family("g", "gauge", "g", ("state",), {("running",): 3})) == [
        "# HELP g g",
        "# TYPE g gauge",
        'g{state="running"} 3',
    ]
