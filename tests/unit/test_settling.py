"""What is left behind fails a test if it stays, and is told if it goes late."""

from collections.abc import Callable, Iterator

import pytest

from tests.settling import async_settle, late, settle


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What is told of these tests, and not at the end of the run."""
    others = late.copy()
    late.clear()
    yield late
    late[:] = others


def going(looks: int) -> Callable[[], list[str]]:
    """A look at what goes after a number of looks."""
    left = [["a process"]] * looks
    return lambda: left.pop() if left else []


def test_what_stays_is_returned_and_not_told_as_late(told: list[str]) -> None:
    assert settle(lambda: {"b", "a"}, limit_s=0.05, prompt_s=0.0) == ["a", "b"]
    assert told == []


def test_what_goes_promptly_is_not_told(told: list[str]) -> None:
    assert settle(going(3)) == []
    assert told == []


async def test_what_goes_late_is_told_with_the_test(told: list[str]) -> None:
    assert settle(going(3), prompt_s=0.0) == []
    assert await async_settle(going(3), prompt_s=0.0) == []
    assert len(told) == 2
    for line in told:
        assert "test_what_goes_late_is_told_with_the_test" in line
        assert line.endswith("s: a process")
