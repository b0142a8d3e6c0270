"""Each kernel feature that has a substitute can be forced off, so that tests go both ways everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.cgroup.processes import _kill_at_once
from common.errors import InvalidArgument
from common.linux import features
from common.linux.features import Feature, allowed
from common.linux.pidfd import parent_pid

Without = Callable[[str], None]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[Without]:
    def force_off(names: str) -> None:
        monkeypatch.setenv(features.VARIABLE, names)
        features.forced_off.cache_clear()

    yield force_off
    features.forced_off.cache_clear()


def test_what_is_not_named_is_allowed(without: Without) -> None:
    without("")
    assert all(map(allowed, Feature))
    without("pidfd-info  cgroup-kill")
    assert [feature for feature in Feature if not allowed(feature)] == [
        Feature.PIDFD_INFO,
        Feature.CGROUP_KILL,
    ]


def test_a_feature_that_does_not_exist_is_refused_with_those_that_do(without: Without) -> None:
    without("pidfd-infos")
    with pytest.raises(InvalidArgument, match=r"'pidfd-infos' .*pidfd-info, "):
        allowed(Feature.PIDFD_INFO)


def test_without_pidfd_info_a_pidfd_tells_nothing(without: Without) -> None:
    pidfd = os.pidfd_open(os.getpid())
    without("pidfd-info")
    assert parent_pid(pidfd) is None
    os.close(pidfd)


def test_without_cgroup_kill_the_file_is_not_written_to(without: Without, tmp_path: Path) -> None:
    (tmp_path / "cgroup.kill").touch()
    without("cgroup-kill")
    assert not _kill_at_once(str(tmp_path))
    without("")
    assert _kill_at_once(str(tmp_path))
    assert (tmp_path / "cgroup.kill").read_text() == "1"
