"""What holds for every test: it leaves nothing behind, and in CI it is not skipped quietly."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from common.linux import procs
from tests.settling import PROMPT_S, late, settle

TESTS = Path(__file__).parent
IN_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")
TIERS = ("integration", "engine", "node", "vm", "chaos", "bench")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the tier that its directory stands for."""
    for item in items:
        parts = item.path.relative_to(TESTS).parts if item.path.is_relative_to(TESTS) else ()
        if parts and parts[0] in TIERS:
            item.add_marker(parts[0])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure in CI, unless the test is marked `may_skip`."""
    report = yield
    if (
        IN_CI
        and report.skipped
        and not hasattr(report, "wasxfail")
        and not item.get_closest_marker("may_skip")
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where every tier must run: {_reason(report.longrepr)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn the skip of a whole module into a failure in CI."""
    report = yield
    if IN_CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where every tier must run: {_reason(report.longrepr)}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell what tests left behind that went by itself, but late."""
    if late:
        terminalreporter.section(f"left behind for longer than {PROMPT_S:g} s")
        for line in late:
            terminalreporter.write_line(line)


def _reason(longrepr: Any) -> str:
    return str(longrepr[2] if isinstance(longrepr, tuple) else longrepr)


class _Holdings(NamedTuple):
    """What this process holds of the system, as text, so that a difference explains itself."""

    descriptors: frozenset[str]
    children: frozenset[str]
    mounts: frozenset[str]


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    """Fail a test after which this process has descriptors, children or mounts that it had not before.

    Fixtures of a wider scope are set up before the first look and do not count.
    """
    before = _holdings()
    yield
    if _leaks(before):
        gc.collect()
    if leaks := settle(lambda: _leaks(before)):
        pytest.fail("left behind:\n  " + "\n  ".join(leaks), pytrace=False)


def _leaks(before: _Holdings) -> list[str]:
    after = _holdings()
    return [
        f"{kind}: {thing}"
        for kind, old, new in zip(_Holdings._fields, before, after, strict=True)
        for thing in sorted(new - old)
    ]


def _holdings() -> _Holdings:
    # gRPC's event engine opens its pollers when first used and keeps them for the life of the process.
    grpc_loaded = "grpc._cython.cygrpc" in sys.modules
    descriptors = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
        if not (grpc_loaded and target in ("anon_inode:[eventpoll]", "anon_inode:[eventfd]")):
            descriptors.add(f"{fd} -> {target}")
    children: set[str] = set()
    for thread in os.listdir("/proc/self/task"):
        try:
            pids = Path(f"/proc/self/task/{thread}/children").read_text(encoding="ascii").split()
        except FileNotFoundError:
            continue
        children.update(f"{pid} {_command(pid)}" for pid in pids)
    # Not the mount's id, which changes, but where it is and what it is.
    mounts = {line.split(" ", 4)[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    return _Holdings(frozenset(descriptors), frozenset(children), frozenset(mounts))


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "?"


@pytest.fixture(scope="module")
def subreaper() -> Iterator[None]:
    """Orphans below this process become its children, as the daemon's do; later tests' engines keep theirs."""
    procs.set_child_subreaper()
    yield
    procs.set_child_subreaper(False)
