"""Mount options sort into flags, propagation and data; overlay layers survive being taken apart."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidArgument
from common.linux import flags
from common.linux.mount_options import compact_lowerdirs, parse_options, split_lowerdirs

PATHS = st.lists(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1), min_size=1
)


def escaped(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def test_flags_propagation_and_data_go_their_own_ways() -> None:
    parsed = parse_options(["rbind", "ro", "nosuid", "rprivate", "size=4k", "index=off", ""])
    assert parsed.flags == flags.MS_BIND | flags.MS_REC | flags.MS_RDONLY | flags.MS_NOSUID
    assert parsed.propagation == (flags.MS_PRIVATE | flags.MS_REC,)
    assert parsed.data == "size=4k,index=off"
    assert parsed.is_bind
    assert not parsed.is_idmapped


def test_a_later_flag_overrides_an_earlier_one() -> None:
    assert parse_options(["ro", "noexec", "rw"]).flags == flags.MS_NOEXEC


def test_id_mappings_are_taken_out_of_the_data() -> None:
    parsed = parse_options(["uidmap=0:1000:10,10:5000:5", "gidmap=0:2000:10", "volatile"])
    assert (parsed.uidmap, parsed.gidmap, parsed.data) == ("0:1000:10,10:5000:5", "0:2000:10", "volatile")
    assert parsed.is_idmapped


@pytest.mark.parametrize(
    "option",
    ["loop", "loop=/dev/loop0", "remount", "X-mount.mkdir", "uidmap=", "gidmap=0:0", "uidmap=a:b:c", "a\0b"],
)
def test_an_option_that_cannot_be_served_is_named_in_the_refusal(option: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_options(["ro", option])
    assert repr(option)[1:-1] in str(caught.value)


@given(PATHS)
def test_layers_with_any_characters_are_split_as_they_were_joined(names: list[str]) -> None:
    layers = [f"/{name}" for name in names]
    data = "index=off,lowerdir=" + ":".join(map(escaped, layers)) + ",upperdir=/u"
    assert split_lowerdirs(data) == (layers, ["index=off", "upperdir=/u"])


@given(PATHS)
def test_compacted_layers_name_the_same_directories(names: list[str]) -> None:
    names = [name for name in names if name not in (".", "..")] or ["x"]
    layers = [f"/var/lib/snapshots/{name}" for name in names]
    directory, data = compact_lowerdirs("workdir=/w,lowerdir=" + ":".join(map(escaped, layers)))
    assert directory == "/var/lib/snapshots"
    relative, others = split_lowerdirs(data)
    assert [os.path.join(directory, path) for path in relative] == layers
    assert others == ["workdir=/w"]


def test_layers_that_share_only_the_root_are_left_alone() -> None:
    assert compact_lowerdirs("lowerdir=/a:/b") == (None, "lowerdir=/a:/b")


def test_data_only_layers_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="data-only"):
        split_lowerdirs("lowerdir=/a::/b")
