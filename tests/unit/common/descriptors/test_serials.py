"""Serial numbers do not repeat, whoever gives them out and however he ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.descriptors.serials import Serials


def test_daemons_that_follow_each_other_never_give_out_the_same(tmp_path: Path) -> None:
    path = str(tmp_path / "serials")
    given: list[int] = []
    for count in (1, 3, 5000, 0, 10_000, 1):
        serials = Serials(path)
        given += [serials.next() for _ in range(count)]
    assert len(set(given)) == len(given)
    assert given == sorted(given)
    assert (tmp_path / "serials").stat().st_mode & 0o777 == 0o600


def test_what_was_handed_back_counts_though_the_file_is_gone(tmp_path: Path) -> None:
    path = str(tmp_path / "serials")
    assert Serials(path, above=99).next() == 100
    assert Serials(path).next() > 100


@pytest.mark.parametrize("content", ["", "junk", "-5", "12 14", "9" * 4])
def test_a_damaged_file_is_no_obstacle(tmp_path: Path, content: str) -> None:
    (tmp_path / "serials").write_text(content)
    first = Serials(str(tmp_path / "serials")).next()
    assert Serials(str(tmp_path / "serials")).next() > first


def test_where_nothing_can_be_written_they_are_given_out_all_the_same(tmp_path: Path) -> None:
    serials = Serials(str(tmp_path / "nowhere/serials"))
    given = [serials.next() for _ in range(10_000)]
    assert len(set(given)) == len(given)


def test_without_a_file_they_begin_at_one() -> None:
    serials = Serials("")
    assert [serials.next() for _ in range(3)] == [1, 2, 3]
