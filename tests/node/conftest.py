"""Nodes for the tests of this directory; what is in `inside` runs in one (`Inside`), and only there."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.node import ON_NODE
from tests.node.machine import missing_programs
from tests.node.package import build_packages
from tests.node.template import Node, ready

collect_ignore = [] if ON_NODE else ["inside"]

REPORT = "/run/report.xml"
SILENCE_LIMIT_S = 900


class Inside(Protocol):
    """Runs pytest in the node; each failure, error and skip there fails the test here.

    Returns how many tests passed. `supervised` is for those that look at the service: with the drop-in for kernels
    before 6.15. `in_root_cgroup` is for suites that make trees of cgroups with controllers.
    """

    def __call__(self, *arguments: str, supervised: bool = False, in_root_cgroup: bool = False) -> int: ...


@pytest.fixture(scope="session")
def template() -> Path:
    """The saved node, built if it is not there; without what that takes these tests cannot run, and say why."""
    if os.geteuid() != 0:
        pytest.skip("a node is built by root")
    if missing := missing_programs():
        pytest.skip(f"no {', '.join(missing)}: run scripts/install-packages test")
    try:
        return ready()
    except FileNotFoundError as error:
        pytest.skip(f"{error.filename} is missing: run scripts/setup test")


@pytest.fixture(scope="module")
def node(template: Path) -> Iterator[Node]:
    """A clone of the template with this checkout in it, which the tests of a module share."""
    node = Node(template)
    yield node
    node.close()


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian packages of this checkout, in two versions (tests/node/package.py)."""
    directory = tmp_path_factory.mktemp("packages")
    build_packages(directory)
    return directory


@pytest.fixture(scope="module")
def package(node: Node, packages: Path) -> None:
    """The older version, installed on the node as an operator does it; the newer one lies beside it."""
    node.install_package(packages)


@pytest.fixture
def inside(node: Node) -> Inside:
    def run(*arguments: str, supervised: bool = False, in_root_cgroup: bool = False) -> int:
        pytest_arguments = [
            "-m", "pytest", "-v", "-p", "no:cacheprovider", f"--junitxml={REPORT}",
            # Emulated, all takes five to ten times as long.
            "-o", "timeout=900", "--tb=short", "--durations=5", *arguments,
        ]  # fmt: skip
        env = {"CI": "true", "SANDBOXD_SUPERVISED": "1" if supervised else ""}
        status = node.run_python(
            pytest_arguments, env=env, in_root_cgroup=in_root_cgroup, timeout_s=SILENCE_LIMIT_S
        )
        assert status == 0, f"pytest ended with {status} on the node"
        return _passed(node.run("cat", REPORT))

    return run


def _passed(report: str) -> int:
    """Count the tests of a JUnit report, in which none may have failed or been skipped."""
    total = 0
    for suite in ElementTree.fromstring(report).iter("testsuite"):
        counts = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
        assert counts["failures"] == counts["errors"] == counts["skipped"] == 0, counts
        total += counts["tests"]
    return total
