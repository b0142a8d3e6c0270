"""An OCI bundle: the directory with a container's config.json and rootfs (OCI runtime-spec bundle.md).

An engine's bundle is half trusted: it is root's, but nothing in it may lead elsewhere.
"""

from __future__ import annotations

import json
import os
import stat

from common.errors import InvalidArgument, NotFound
from common.oci.spec import Spec, parse_spec

_MAX_SPEC_BYTES = 16 << 20
CONFIG_FILE = "config.json"


def read_spec(bundle: str) -> Spec:
    """Return the checked spec of a bundle.

    :raise InvalidArgument: the bundle or its spec is malformed, or a link leads elsewhere.
    :raise NotFound: there is none.
    """
    if not os.path.isabs(bundle) or os.path.normpath(bundle) != bundle or "\0" in bundle:
        raise InvalidArgument(f"the bundle's path must be absolute and without '..': {bundle[:200]!r}")
    path = f"{bundle}/{CONFIG_FILE}"
    try:
        if not stat.S_ISDIR(os.lstat(bundle).st_mode):
            raise InvalidArgument(f"the bundle {bundle} is not a directory (symbolic links are not followed)")
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"the bundle has no {error.filename}") from None
    except OSError as error:
        raise InvalidArgument(f"cannot open {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidArgument(f"{path} is not a regular file")
    with open(fd, "rb") as file:
        text = file.read(_MAX_SPEC_BYTES + 1)
    if len(text) > _MAX_SPEC_BYTES:
        raise InvalidArgument(f"{path} is larger than {_MAX_SPEC_BYTES >> 20} MiB")
    return parse_spec(text, path)


def find_rootfs(bundle: str, spec: Spec) -> str:
    """Return the path of the directory that the spec names as the root file system.

    :raise InvalidArgument: it names none, or it is no directory.
    """
    root = spec.get("root")
    path = root.get("path") if isinstance(root, dict) else None
    if not isinstance(path, str) or not path or ".." in path.split("/"):
        raise InvalidArgument(f"the spec of {bundle} names no usable root.path: {path!r}")
    rootfs = os.path.normpath(os.path.join(bundle, path))
    try:
        mode = os.lstat(rootfs).st_mode
    except FileNotFoundError:
        raise InvalidArgument(f"the rootfs directory {rootfs} does not exist") from None
    if not stat.S_ISDIR(mode):
        raise InvalidArgument(f"the rootfs {rootfs} is not a directory (symbolic links are not followed)")
    return rootfs


def write_spec(directory: str, spec: Spec) -> None:
    """Write the spec of a new bundle of ours. Raises OSError."""
    fd = os.open(f"{directory}/{CONFIG_FILE}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(json.dumps(spec, separators=(",", ":")).encode())
