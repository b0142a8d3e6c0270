"""The text form of mounts as snapshotters give it: types, flags and overlay layers. No system calls."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from common.errors import InvalidArgument
from common.linux.flags import (
    MS_BIND,
    MS_DIRSYNC,
    MS_I_VERSION,
    MS_LAZYTIME,
    MS_MANDLOCK,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_NOSYMFOLLOW,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_RELATIME,
    MS_REMOUNT,
    MS_SHARED,
    MS_SILENT,
    MS_SLAVE,
    MS_STRICTATIME,
    MS_SYNCHRONOUS,
    MS_UNBINDABLE,
)

# mount(8): option to (flags it sets, flags it clears).
_FLAGS: Final[dict[str, tuple[int, int]]] = {
    "defaults": (0, 0),
    "ro": (MS_RDONLY, 0),
    "rw": (0, MS_RDONLY),
    "nosuid": (MS_NOSUID, 0),
    "suid": (0, MS_NOSUID),
    "nodev": (MS_NODEV, 0),
    "dev": (0, MS_NODEV),
    "noexec": (MS_NOEXEC, 0),
    "exec": (0, MS_NOEXEC),
    "sync": (MS_SYNCHRONOUS, 0),
    "async": (0, MS_SYNCHRONOUS),
    "remount": (MS_REMOUNT, 0),
    "mand": (MS_MANDLOCK, 0),
    "nomand": (0, MS_MANDLOCK),
    "dirsync": (MS_DIRSYNC, 0),
    "nosymfollow": (MS_NOSYMFOLLOW, 0),
    "symfollow": (0, MS_NOSYMFOLLOW),
    "noatime": (MS_NOATIME, 0),
    "atime": (0, MS_NOATIME),
    "nodiratime": (MS_NODIRATIME, 0),
    "diratime": (0, MS_NODIRATIME),
    "relatime": (MS_RELATIME, 0),
    "norelatime": (0, MS_RELATIME),
    "strictatime": (MS_STRICTATIME, 0),
    "nostrictatime": (0, MS_STRICTATIME),
    "lazytime": (MS_LAZYTIME, 0),
    "nolazytime": (0, MS_LAZYTIME),
    "iversion": (MS_I_VERSION, 0),
    "noiversion": (0, MS_I_VERSION),
    "silent": (MS_SILENT, 0),
    "loud": (0, MS_SILENT),
    "bind": (MS_BIND, 0),
    "rbind": (MS_BIND | MS_REC, 0),
}

_PROPAGATION: Final[dict[str, int]] = {
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "shared": MS_SHARED,
    "rshared": MS_SHARED | MS_REC,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | MS_REC,
    "unbindable": MS_UNBINDABLE,
    "runbindable": MS_UNBINDABLE | MS_REC,
}

_REFUSED: Final[dict[str, str]] = {
    "loop": "loop devices are not set up here; give a block device or let the engine attach one",
    "remount": "a new mount cannot be a remount",
}


@dataclass(frozen=True, slots=True)
class MountSpec:
    """One mount as a snapshotter gives it; `target` is a path inside the root, "" for the root itself."""

    type: str
    source: str
    options: tuple[str, ...] = ()
    target: str = ""


@dataclass(frozen=True, slots=True)
class ParsedOptions:
    """Mount options sorted by what the kernel wants them as.

    `flags` and each entry of `propagation` are MS_* bits, `data` is the string for the file system,
    `uidmap`/`gidmap` are "container:host:length[,…]" or None.
    """

    flags: int
    propagation: tuple[int, ...]
    data: str
    uidmap: str | None
    gidmap: str | None

    @property
    def is_bind(self) -> bool:
        return bool(self.flags & MS_BIND)

    @property
    def is_idmapped(self) -> bool:
        return self.uidmap is not None or self.gidmap is not None


def parse_options(options: Sequence[str]) -> ParsedOptions:
    """Sort mount options; unknown ones are for the file system. A later flag overrides an earlier one.

    Raises InvalidArgument naming an option that cannot be served or is malformed. Source: mount(8), and for
    uidmap/gidmap the remapping snapshotters of containerd.
    """
    flags = 0
    propagation: list[int] = []
    data: list[str] = []
    mappings: dict[str, str] = {}
    for option in options:
        name, separator, value = option.partition("=")
        if name in _REFUSED:
            raise InvalidArgument(f"mount option {option!r} is not supported: {_REFUSED[name]}")
        if name.startswith(("X-", "x-")):
            raise InvalidArgument(f"mount option {option!r} is not supported: it is for a mount program")
        if "\0" in option:
            raise InvalidArgument(f"mount option {option!r} contains a null byte")
        if option in _FLAGS:
            sets, clears = _FLAGS[option]
            flags = (flags | sets) & ~clears
        elif option in _PROPAGATION:
            propagation.append(_PROPAGATION[option])
        elif separator and name in ("uidmap", "gidmap"):
            if not _is_id_mapping(value):
                raise InvalidArgument(
                    f"mount option {option!r} is not of the form {name}=container:host:length"
                )
            mappings[name] = value
        elif option:
            data.append(option)
    return ParsedOptions(
        flags, tuple(propagation), ",".join(data), mappings.get("uidmap"), mappings.get("gidmap")
    )


def split_lowerdirs(data: str) -> tuple[list[str], list[str]]:
    """Take the options of an overlay apart into its lower layers and the other options.

    Colons and commas that a backslash escapes belong to their path. Raises InvalidArgument for data-only
    layers. Source: Documentation/filesystems/overlayfs.rst.
    """
    layers: list[str] = []
    others: list[str] = []
    for option in _split(data, ","):
        name, _, value = option.partition("=")
        if name == "lowerdir":
            parts = _split(value, ":")
            if "" in parts[1:-1]:
                raise InvalidArgument("data-only layers of an overlay are not supported")
            layers.extend(_unescaped(part) for part in parts if part)
        elif option:
            others.append(option)
    return layers, others


def compact_lowerdirs(data: str) -> tuple[str | None, str]:
    """Shorten the options of an overlay: return the directory its layers share and options relative to it.

    The directory is None, and the options are unchanged, when the layers share none but `/`.
    """
    layers, others = split_lowerdirs(data)
    if not layers or not all(os.path.isabs(layer) for layer in layers):
        return None, data
    shared = os.path.commonpath([os.path.dirname(layer.rstrip("/")) for layer in layers])
    if shared == "/":
        return None, data
    relative = ":".join(_escape(os.path.relpath(layer, shared)) for layer in layers)
    return shared, ",".join([*others, f"lowerdir={relative}"])


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def _split(text: str, separator: str) -> list[str]:
    """Split where no backslash stands before the separator; the backslashes stay."""
    parts = [""]
    characters = iter(text)
    for character in characters:
        if character == separator:
            parts.append("")
        else:
            parts[-1] += character + (next(characters, "") if character == "\\" else "")
    return parts


def _unescaped(text: str) -> str:
    characters = iter(text)
    return "".join(next(characters, "") if c == "\\" else c for c in characters)


def _is_id_mapping(value: str) -> bool:
    """Tell whether it is "container:host:length", or several of these behind commas."""
    triples = [entry.split(":") for entry in value.split(",")]
    return all(
        len(t) == 3 and all(n.isdecimal() and n.isascii() and len(n) <= 10 for n in t) for t in triples
    )
