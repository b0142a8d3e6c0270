"""Which file of an image is the module, and what kind of module it is.

Every container of this type is one: what an image or its annotations say of themselves does not matter, only what the
file begins with.

Sources: WebAssembly core specification, "Binary Format: Modules"; component-model/design/mvp/Binary.md.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence

from common.errors import InvalidArgument
from common.linux.paths import open_in_root

MAX_MODULE_BYTES = 512 << 20
HEADER_BYTES = 8
_PART_BYTES = 1 << 20

_MAGIC = b"\0asm"
_VERSIONS = {b"\x01\x00\x00\x00": "core", b"\x0d\x00\x01\x00": "component"}
_ELF = b"\x7fELF"
_SCRIPT = b"#!"


class Kind(enum.StrEnum):
    """The two binary formats."""

    CORE = "core"
    COMPONENT = "component"


def kind_of(header: bytes) -> Kind:
    """Tell the kind of a module by its first 8 bytes.

    :raise InvalidArgument: it is none, and what would run it.
    """
    if header.startswith(_MAGIC):
        version = _VERSIONS.get(header[4:8])
        if version is None:
            raise InvalidArgument(
                f"it has a WebAssembly version that is not known: {header[4:8].hex() or 'it ends there'}"
            )
        return Kind(version)
    if not header:
        raise InvalidArgument("it is empty, not a WebAssembly module")
    found = "not a WebAssembly module"
    if header.startswith(_ELF):
        found = "a native program, not a WebAssembly module"
    elif header.startswith(_SCRIPT):
        found = "a script, not a WebAssembly module"
    raise InvalidArgument(
        f"it is {found}: the runtime handler of sandboxd's type runc runs it, this one (type wasm) runs modules"
    )


def open_module(root_fd: int, args: Sequence[str], cwd: str, env: Mapping[str, str]) -> tuple[int, Kind]:
    """Open the module that a process's arguments name, inside a root; return a descriptor, and its kind.

    As execvp(3) would find it, but the working directory counts as part of the path: modules are not executable files.

    :raise InvalidArgument: there is none, or it is not a module.
    """
    name = args[0]
    for path in _candidates(name, cwd, env):
        try:
            found = open_in_root(root_fd, path, os.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            reason = "a link that leads nowhere" if error.errno == errno.ELOOP else error.strerror
            raise InvalidArgument(f"it cannot be opened: {reason}") from error
        try:
            # To open a device or a FIFO does something already.
            if not stat.S_ISREG(os.fstat(found).st_mode):
                raise InvalidArgument("it is not a regular file")
            fd = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(found)
        try:
            if os.fstat(fd).st_size > MAX_MODULE_BYTES:
                raise _too_large()
            return fd, kind_of(os.pread(fd, HEADER_BYTES, 0))
        except BaseException:
            os.close(fd)
            raise
    raise InvalidArgument(f"there is no module {name}: no such file or directory in the container's root")


def module_parts(fd: int) -> Iterator[bytes]:
    """Give what a file holds, from its beginning, part by part.

    :raise InvalidArgument: it has become larger than a module may be.
    """
    offset = 0
    while part := os.pread(fd, _PART_BYTES, offset):
        offset += len(part)
        if offset > MAX_MODULE_BYTES:
            raise _too_large()
        yield part


def _too_large() -> InvalidArgument:
    return InvalidArgument(f"it is larger than {MAX_MODULE_BYTES >> 20} MiB")


def _candidates(name: str, cwd: str, env: Mapping[str, str]) -> Iterator[str]:
    yield os.path.join(cwd, name)
    if "/" not in name:
        for directory in env.get("PATH", "").split(":"):
            if directory.startswith("/"):
                yield os.path.join(directory, name)
