"""Users and groups as a container names them, looked up in its own /etc/passwd and /etc/group.

Source: OCI image-spec config.md, "User"; passwd(5), group(5). The files are the image's, or what containers have
made of them, hence hostile: links do not leave the root file system, and only so much of a file is read.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from common.errors import InvalidArgument
from common.linux.paths import open_in_root
from sandboxctl.ids import parse_id

_MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Account:
    """Who runs a process; `groups` are the further ones."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def find_account(rootfs: str, user: str) -> Account:
    """Return who "user", "uid", "user:group" or "uid:gid" is in a root file system; "" is root.

    :raise InvalidArgument: it does not know this name.
    """
    name, _, group = (user or "0").partition(":")
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        passwd, groups = _read(root, "etc/passwd", 7), _read(root, "etc/group", 4)
    finally:
        os.close(root)
    by_name = next((fields for fields in passwd if fields[0] == name), None)
    entry = by_name or next(
        (fields for fields in passwd if parse_id(name) is not None and fields[2] == name), None
    )
    uid = parse_id(entry[2]) if entry is not None else parse_id(name)
    if uid is None:
        raise InvalidArgument(f"the container knows no user {name[:60]!r}: it is not in its /etc/passwd")
    if group:
        gid = next((parse_id(fields[2]) for fields in groups if fields[0] == group), parse_id(group))
        if gid is None:
            raise InvalidArgument(f"the container knows no group {group[:60]!r}: it is not in its /etc/group")
        return Account(uid, gid)
    gid = parse_id(entry[3]) if entry is not None else 0
    further = []
    for fields in groups:
        number = parse_id(fields[2])
        if entry is not None and number is not None and number != gid and entry[0] in fields[3].split(","):
            further.append(number)
    return Account(uid, gid or 0, tuple(further))


def _read(root: int, path: str, fields: int) -> list[list[str]]:
    try:
        fd = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return []
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        # What the kernel makes up has no size: a link may lead to its messages, which reading takes away.
        if not stat.S_ISREG(found.st_mode) or not found.st_size:
            return []
        try:
            text = file.read(min(found.st_size, _MAX_FILE_BYTES)).decode(errors="replace")
        except OSError:
            return []
    lines = (line.split(":") for line in text.splitlines() if not line.startswith("#"))
    return [line for line in lines if len(line) >= fields]
