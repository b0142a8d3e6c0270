"""Unpacked images of which no pod is made: they stay, since the next pod may be, until `gc` is told to remove them."""

from __future__ import annotations

import contextlib
import os
import string

from common.errors import NotFound
from sandboxctl.embedded.image_store import IMAGES_DIR, image_directory
from sandboxctl.embedded.records import containers_of, load_record, locked, remove_tree
from sandboxers.embedded import embedded_pods

_REMOVED_PREFIX = ".removing-"


def find_unused_images() -> list[str]:
    """Return their directories.

    :raise FailedPrecondition, UnreadableRecord: of what some pod is made cannot be told.
    """
    used = set()
    for pod_id in embedded_pods():
        with contextlib.suppress(NotFound):  # it was removed meanwhile
            used |= {image_directory(container.digest) for container in containers_of(load_record(pod_id))}
    with contextlib.suppress(FileNotFoundError):
        return sorted({f"{IMAGES_DIR}/{name}" for name in os.listdir(IMAGES_DIR) if _is_ours(name)} - used)
    return []


async def remove_unused_images() -> list[str]:
    """Remove them, and return their directories; raises like `find_unused_images`, and OSError."""
    async with locked():
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(IMAGES_DIR):
                # Of a removal that was cut off; the image may have been unpacked anew since.
                if name.startswith(_REMOVED_PREFIX) and _is_ours(name):
                    remove_tree(f"{IMAGES_DIR}/{name}")
        unused = find_unused_images()
        removed = [f"{IMAGES_DIR}/{_REMOVED_PREFIX}{_digest_of(directory)}" for directory in unused]
        for directory, name in zip(unused, removed, strict=True):
            # At once, so that nobody takes half an image for a whole one.
            os.rename(directory, name)
    for name in removed:
        remove_tree(name)
    return unused


def _is_ours(name: str) -> bool:
    digest = _digest_of(name)
    return len(digest) == 64 and set(digest) <= set(string.hexdigits)


def _digest_of(path: str) -> str:
    return os.path.basename(path).removeprefix(_REMOVED_PREFIX)
