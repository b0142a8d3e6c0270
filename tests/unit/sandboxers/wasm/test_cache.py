"""What was compiled is found again, unless it is not what it was."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from common.errors import Internal
from sandboxers.wasm.cache import Cache, checksum_of


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(str(tmp_path / "cache"), 10_000)
    cache.prepare()
    return cache


def add(cache: Cache, key: str, content: bytes) -> None:
    fd = cache.new_file()
    os.write(fd, content)
    cache.add(key, fd, hashlib.sha256(content).hexdigest())
    os.close(fd)


def content(cache: Cache, key: str) -> bytes | None:
    path = cache.find(key)
    return Path(path).read_bytes() if path is not None else None


def test_what_was_added_is_found_and_nothing_else(cache: Cache) -> None:
    add(cache, "one", b"code")
    assert content(cache, "one") == b"code"
    assert cache.find("two") is None
    assert content(Cache(cache.directory), "one") == b"code", "another process"


def test_what_others_can_reach_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(Internal, match="0700"):
        Cache(str(tmp_path / "open"), 1).prepare()


@pytest.mark.parametrize("spoil", [b"", b"c0de", b"code and more"])
def test_a_spoiled_entry_is_not_there_and_can_be_made_again(cache: Cache, spoil: bytes) -> None:
    add(cache, "one", b"code")
    path = cache.find("one")
    assert path is not None
    Path(path).write_bytes(spoil)
    assert cache.find("one") is None
    add(cache, "one", b"code")
    assert content(cache, "one") == b"code"


def test_a_link_that_leads_elsewhere_is_not_followed(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "evil").write_bytes(b"evil")
    digest = hashlib.sha256(b"evil").hexdigest()
    os.symlink(tmp_path / "evil", f"{cache.directory}/{digest}.bin")
    os.symlink(f"{digest}.bin", f"{cache.directory}/one")
    assert cache.find("one") is None


def test_equal_content_is_there_once(cache: Cache) -> None:
    add(cache, "one", b"same")
    add(cache, "two", b"same")
    assert content(cache, "one") == content(cache, "two") == b"same"
    assert len([name for name in os.listdir(cache.directory) if name.endswith(".bin")]) == 1


def test_a_new_entry_takes_the_place_of_the_old_one(cache: Cache) -> None:
    add(cache, "one", b"old")
    add(cache, "one", b"new")
    assert content(cache, "one") == b"new"
    assert len(os.listdir(cache.directory)) == 2


def test_what_was_not_used_for_longest_goes_first(cache: Cache) -> None:
    for number, key in enumerate(("one", "two", "three")):
        add(cache, key, bytes([number]) * 3000)
        os.utime(f"{cache.directory}/{key}", (number, number), follow_symlinks=False)
    assert cache.find("one") is not None, "used again"
    add(cache, "four", b"4" * 3000)
    assert cache.find("two") is None
    assert all(cache.find(key) is not None for key in ("one", "three", "four"))


def test_one_that_is_larger_than_the_limit_stays_alone(cache: Cache) -> None:
    add(cache, "small", b"1")
    add(cache, "large", b"2" * 20_000)
    assert cache.find("small") is None
    assert cache.find("large") is not None
    assert len(os.listdir(cache.directory)) == 2


def test_what_was_being_added_when_somebody_died_is_removed(cache: Cache) -> None:
    os.close(cache.new_file())
    add(cache, "one", b"code")
    cache.prepare()
    assert content(cache, "one") == b"code"
    assert not [name for name in os.listdir(cache.directory) if name.startswith(".")]


def test_what_is_not_wanted_any_more_leaves_nothing(cache: Cache) -> None:
    fd = cache.new_file()
    cache.discard(fd)
    os.close(fd)
    assert os.listdir(cache.directory) == []


@pytest.mark.parametrize("key", ["", "../x", "a/b", ".hidden", "x" * 300, "a\0b"])
def test_keys_are_names(cache: Cache, key: str) -> None:
    with pytest.raises(Internal):
        cache.find(key)


def test_a_checksum_must_be_one(cache: Cache) -> None:
    fd = cache.new_file()
    with pytest.raises(Internal):
        cache.add("one", fd, "../../etc/passwd")
    cache.discard(fd)
    os.close(fd)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_a_checksum_is_of_the_whole_file(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    os.lseek(fd, 5, os.SEEK_SET)
    assert checksum_of(fd) == hashlib.sha256(b"x" * size).hexdigest()
    os.close(fd)


def test_what_an_entry_leads_to_changes_with_what_it_is(cache: Cache) -> None:
    assert cache.target("one") == ""
    add(cache, "one", b"code")
    first = cache.target("one")
    assert (Path(cache.directory) / first).read_bytes() == b"code"
    (Path(cache.directory) / first).unlink()
    assert (cache.find("one"), cache.target("one")) == (None, first)
    add(cache, "one", b"other code")
    assert cache.target("one") not in ("", first)
