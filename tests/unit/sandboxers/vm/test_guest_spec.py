"""Specs that were written for the host, rewritten for a guest."""

from typing import Any

import pytest

from common.errors import InvalidArgument
from sandboxers.vm.guest_spec import BindMount, BlockDevice, find_binds, find_block_devices, rewrite_for_guest


def spec(**parts: Any) -> dict[str, Any]:
    return {"root": {"path": "rootfs"}, "process": {"args": ["sh"]}, "mounts": [], "linux": {}, **parts}


def mount(destination: str, kind: str, source: str = "", *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def test_bind_mounts_are_found_however_they_are_written() -> None:
    mounts = [
        mount("/proc", "proc", "proc"),
        mount("/a", "bind", "/host/a", "rbind", "ro"),
        mount("/b", "none", "/host/b", "bind"),
        mount("/c", "bind", "/host/c", "rbind", "rro"),
        mount("/dev/shm", "tmpfs", "shm"),
    ]
    assert find_binds(spec(mounts=mounts)) == [
        BindMount(1, "/host/a", read_only=True),
        BindMount(2, "/host/b"),
        BindMount(3, "/host/c", read_only=True, recursively=True),
    ]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (mount("/a", "bind", "relative"), "source"),
        (mount("/a", "bind", "/a/../../etc"), "source"),
        (mount("/a", "bind", "/a", "rshared"), "Bidirectional"),
        (mount("/a", "nfs", "server:/a"), "nfs"),
        ({"destination": "/a"}, "type"),
    ],
)
def test_a_mount_that_a_guest_cannot_have_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        find_binds(spec(mounts=[wrong]))


def test_block_devices_are_found_and_common_characters_pass() -> None:
    devices = [
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
        {"path": "/dev/disk", "type": "b", "major": 8, "minor": 16},
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229},
    ]
    assert find_block_devices(spec(linux={"devices": devices})) == [BlockDevice(1, "/dev/disk", 8, 16)]


@pytest.mark.parametrize(
    "device",
    [
        {"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232},
        {"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0},
        {"path": 7, "type": "b", "major": 8, "minor": 16},
        {"path": "/dev/sda", "type": "b", "major": "8", "minor": 16},
    ],
)
def test_a_device_of_the_host_is_refused(device: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        find_block_devices(spec(linux={"devices": [device]}))


def test_sources_devices_and_their_rules_become_the_guests() -> None:
    disk = {"path": "/dev/disk", "type": "b", "major": 8, "minor": 16}
    rules = [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "b", "major": 8, "minor": 16, "access": "rw"},
        {"allow": True, "type": "c", "major": 8, "minor": 16, "access": "r"},
    ]
    original = spec(
        mounts=[mount("/a", "bind", "/host/a", "rbind", "rslave", "ro")],
        linux={
            "devices": [disk],
            "resources": {"devices": rules, "hugepageLimits": [{}], "memory": {"limit": 1}},
        },
        hooks={"prestart": [{"path": "/bin/true"}]},
    )
    dropped = rewrite_for_guest(original, {0: "/run/share/0"}, {0: (254, 32)})
    assert dropped == ["linux.resources.hugepageLimits", "hooks"]
    assert original["mounts"] == [mount("/a", "bind", "/run/share/0", "rbind")]
    assert (disk["major"], disk["minor"]) == (254, 32)
    assert [(rule.get("major"), rule.get("minor")) for rule in rules] == [(None, None), (254, 32), (8, 16)]
    assert original["linux"]["resources"]["memory"] == {"limit": 1}
    assert original["root"] == {"path": "rootfs"}


@pytest.mark.parametrize("key", ["uidMappings", "gidMappings"])
def test_a_user_namespace_is_refused(key: str) -> None:
    with pytest.raises(InvalidArgument, match="user namespace"):
        rewrite_for_guest(spec(linux={key: [{"size": 1}]}), {}, {})
