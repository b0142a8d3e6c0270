"""Unpacked images by digest: unpacked once, by umoci, then shared by all containers, which never write to them.

<directory>/<digest>/rootfs          what the layers unpack to
<directory>/<digest>/config.json     the image's configuration, as it came
<directory>/.unpacking/              an image on its way; nobody's when the lock is free
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Final

from common.errors import InvalidArgument, NotFound
from common.process.exits import ExitWatcher
from common.process.spawn import CAPTURE, run
from sandboxctl.embedded.image_layout import ImageConfig
from sandboxctl.embedded.image_source import (
    STAGED_NAME,
    SourceImage,
    is_image,
    open_image,
    split_reference,
    stage,
)
from sandboxctl.embedded.lock import locked_file

IMAGES_DIR: Final = "/var/lib/sandboxd/images"
_UNPACK_TIMEOUT_S = 600.0
_SYNC_TIMEOUT_S = 120.0
_LONGEST_COMPLAINT = 300
_LARGEST_IMAGE_BYTES = 64 << 30
"""Of the layers as they are and unpacked together; much less where less is free."""


@dataclass(frozen=True, slots=True)
class Image:
    """A root file system that nobody may write to, and how it wants to be run. `digest` is empty for a directory that
    was named as such."""

    name: str
    rootfs: str
    config: ImageConfig
    digest: str = ""


def image_directory(digest: str, directory: str = IMAGES_DIR) -> str:
    """Return where the image of a digest is, if it is unpacked."""
    return f"{directory}/{digest.removeprefix('sha256:')}"


class ImageStore:
    """The unpacked images of this machine."""

    def __init__(
        self,
        watcher: ExitWatcher,
        directory: str = IMAGES_DIR,
        blocking: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """:param blocking: entered for what takes long without the event loop."""
        self._watcher = watcher
        self._directory = directory
        self._blocking = blocking

    async def get(self, reference: str, *, foreign: bool = False) -> Image:
        """Return the image that "PATH" or "PATH:NAME" stands for, unpacked if it is not yet.

        :param foreign: whether it may be for another kind of machine than this, as modules of WebAssembly are.
        :raise InvalidArgument: it is damaged or for another architecture; nothing of it is kept then.
        :raise NotFound: there is no such image, or no program that unpacks it.
        """
        path, name = split_reference(reference)
        path = os.path.abspath(path)
        if not is_image(path):
            if name:
                raise InvalidArgument(
                    f"{path} is a root file system and has no images in it: leave :{name} out"
                )
            return Image(path, path, ImageConfig())
        with ExitStack() as stack:
            with self._blocking():
                source = stack.enter_context(open_image(path, name, foreign))
            place = image_directory(source.digest, self._directory)
            if not os.path.exists(place):
                await self._unpack(source, place)
        return Image(source.name, f"{place}/rootfs", source.config, source.digest)

    async def _unpack(self, source: SourceImage, place: str) -> None:
        os.makedirs(self._directory, 0o700, exist_ok=True)
        async with locked_file(f"{self._directory}/.lock"):
            if os.path.exists(place):
                return
            unpacking = f"{self._directory}/.unpacking"
            # Of somebody who was killed: whoever has the lock is the only one at work.
            shutil.rmtree(unpacking, ignore_errors=True)
            try:
                with self._blocking():
                    stage(source, f"{unpacking}/layout", self._room_bytes())
                # In a directory of its own: a layer that removes ".." takes it along (umoci 0.4.7).
                os.makedirs(f"{unpacking}/nest/image", 0o700)
                await self._run_umoci(source, f"{unpacking}/layout", f"{unpacking}/nest/image/rootfs")
                with open(f"{unpacking}/nest/image/config.json", "xb") as file:
                    file.write(source.config_text)
                await self._sync(unpacking)
                os.rename(f"{unpacking}/nest/image", place)
            finally:
                shutil.rmtree(unpacking, ignore_errors=True)

    def _room_bytes(self) -> int:
        status = os.statvfs(self._directory)
        return min(_LARGEST_IMAGE_BYTES, status.f_bavail * status.f_frsize)

    async def _run_umoci(self, source: SourceImage, layout: str, rootfs: str) -> None:
        command = ["umoci", "raw", "unpack", "--image", f"{layout}:{STAGED_NAME}", rootfs]
        try:
            done = await run(
                command, watcher=self._watcher, stdout=CAPTURE, stderr=CAPTURE, timeout_s=_UNPACK_TIMEOUT_S
            )
        except NotFound:
            raise NotFound("umoci, which unpacks images, is missing: apt-get install umoci") from None
        if done.status.code != 0 or not os.path.isdir(rootfs):
            raise InvalidArgument(f"{source.files.name} cannot be unpacked: {_complaint(done.stderr)}")

    async def _sync(self, directory: str) -> None:
        # An image that a power failure has emptied would be taken for whole for ever.
        command = ["sync", "--file-system", directory]
        await run(command, watcher=self._watcher, timeout_s=_SYNC_TIMEOUT_S)


def _complaint(output: bytes) -> str:
    """The last line of umoci's output, without its decoration."""
    lines = output.decode(errors="replace").strip().splitlines() or ["no reason was given"]
    return lines[-1].strip().lstrip("⨯•").strip()[:_LONGEST_COMPLAINT]
