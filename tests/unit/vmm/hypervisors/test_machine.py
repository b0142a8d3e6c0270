"""Descriptions of devices: what a guest could not find by its name is refused at once."""

from __future__ import annotations

import pytest

from common.errors import InvalidArgument
from common.identifiers import UNIX_PATH_MAX_BYTES, directory_name
from vmm.hypervisors.machine import LONGEST_MEMBER, Disk, NetworkInterface, Share


@pytest.mark.parametrize("device_id", ["", "../x", "a/b", "a b", "a,b", "-a", "x" * 21])
def test_a_name_that_a_guest_could_not_find_is_refused(device_id: str) -> None:
    with pytest.raises(InvalidArgument):
        Disk(device_id, "/disk")
    with pytest.raises(InvalidArgument):
        NetworkInterface(device_id, "52:54:00:00:00:01", 3)


def test_names_may_be_as_long_as_guests_can_read() -> None:
    assert Disk("x" * 20, "/disk").device_id == "x" * 20
    assert Share("x" * 36, "/dir").device_id == "x" * 36
    with pytest.raises(InvalidArgument, match="36"):
        Share("x" * 37, "/dir")


def test_sockets_fit_into_a_directory_that_was_named_for_them() -> None:
    parent = "/run/sandboxd/qemu"
    path = f"{parent}/{directory_name(parent, 'x' * 76, LONGEST_MEMBER)}/{LONGEST_MEMBER}"
    assert len(path) <= UNIX_PATH_MAX_BYTES
