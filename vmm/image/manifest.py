"""What a guest image consists of and was made from: one JSON file beside the files that it names by their digest.

The files are never written twice: an image that is built again brings new ones beside them and turns the manifest,
so that what runs from the old ones goes on. Whoever starts guests loads the manifest once and verifies it once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from common.errors import FailedPrecondition, NotFound, SandboxdError

VERSION: Final = 1
ARCHITECTURE: Final = "x86_64"
DEFAULT_PATH: Final = "/var/lib/sandboxd/guest/cloud.json"
_BLOB: Final = re.compile(r"(vmlinux|ramdisk|root)-[0-9a-f]{64}")
ROOT_DEVICE: Final = "/dev/vda"
"""Where every hypervisor puts the root: the first disk."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A file of the image: its name beside the manifest, its size and its digest."""

    file: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Ingredient:
    """A package or wheel that something was taken from."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an image is. `ramdisk` is None for a kernel that needs none."""

    name: str
    architecture: str
    kernel: Blob
    kernel_release: str
    kernel_modules: tuple[str, ...]
    kernel_arguments: tuple[str, ...]
    ramdisk: Blob | None
    root: Blob
    root_file_system: str
    init: tuple[str, ...]
    agent: str
    agent_sha256: str
    python: str
    python_modules: tuple[str, ...]
    ingredients: tuple[Ingredient, ...]

    def to_json(self) -> str:
        """Return the manifest's text."""
        return json.dumps({"version": VERSION, **dataclasses.asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a manifest's text. Raises ValueError, KeyError or TypeError if it is none of this version."""
        data = json.loads(text)
        if not isinstance(data, dict) or data.pop("version", None) != VERSION:
            raise ValueError(f"not a manifest of version {VERSION}")
        ramdisk = data["ramdisk"]
        data |= {
            "kernel": Blob(**data["kernel"]),
            "ramdisk": None if ramdisk is None else Blob(**ramdisk),
            "root": Blob(**data["root"]),
            "ingredients": tuple(Ingredient(**each) for each in data["ingredients"]),
            **{
                key: tuple(data[key])
                for key in ("kernel_modules", "kernel_arguments", "init", "python_modules")
            },
        }
        return cls(**data)


@dataclass(frozen=True, slots=True)
class GuestImage:
    """A manifest and where its files are."""

    manifest: Manifest
    directory: Path

    @property
    def kernel(self) -> Path:
        """The kernel, an ELF file that is entered through PVH."""
        return self.directory / self.manifest.kernel.file

    @property
    def ramdisk(self) -> Path | None:
        """The initial RAM disk, or None."""
        blob = self.manifest.ramdisk
        return None if blob is None else self.directory / blob.file

    @property
    def root(self) -> Path:
        """The root file system, for the guest's first block device, read-only."""
        return self.directory / self.manifest.root.file

    def command_line(self, arguments: Sequence[str] = ()) -> str:
        """Return the kernel's command line with what a hypervisor adds; nothing in it tells one guest from another."""
        init, *init_arguments = self.manifest.init
        root = [f"root={ROOT_DEVICE}", f"rootfstype={self.manifest.root_file_system}", "ro"]
        own = [*root, *self.manifest.kernel_arguments, f"init={init}"]
        return " ".join([*own, *arguments, "--", *init_arguments])

    def verify(self) -> None:
        """Read all files and compare their digests. Raises FailedPrecondition naming one that differs."""
        for blob in self.blobs():
            path = self.directory / blob.file
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != blob.sha256:
                raise FailedPrecondition(
                    f"guest image file {path} is not what its manifest says: {build_hint(path)}"
                )

    def blobs(self) -> list[Blob]:
        """All files of the image."""
        manifest = self.manifest
        return [blob for blob in (manifest.kernel, manifest.ramdisk, manifest.root) if blob is not None]

    def _check(self) -> None:
        for blob in self.blobs():
            path = self.directory / blob.file
            # Beside the manifest and nowhere else, whatever it says.
            if os.path.basename(blob.file) != blob.file:
                raise FailedPrecondition(f"guest image file {blob.file!r} is not a name")
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                raise NotFound(f"guest image file {path} is missing: {build_hint(path)}") from None
            if size != blob.size_bytes:
                raise FailedPrecondition(
                    f"guest image file {path} is not what its manifest says: {build_hint(path)}"
                )


def build_hint(path: str | os.PathLike[str]) -> str:
    """Say how to build an image anew that has this file: with the Python that runs us, which a node has as well."""
    return f"build it with `{sys.executable} -m vmm.image build --directory {os.path.dirname(path)}`"


def load(path: str | os.PathLike[str]) -> GuestImage:
    """Return the image that a manifest file describes, its files present with their sizes; `verify` reads them.

    Raises NotFound or FailedPrecondition that say what is missing or wrong, and how to build it.
    """
    path = Path(path)
    try:
        manifest = Manifest.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"there is no guest image {path}: {build_hint(path)}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise FailedPrecondition(f"guest image {path} is not usable ({error}): {build_hint(path)}") from None
    if manifest.architecture != os.uname().machine:
        raise FailedPrecondition(
            f"guest image {path} is for {manifest.architecture}, this machine is {os.uname().machine}"
        )
    image = GuestImage(manifest, path.parent)
    image._check()
    return image


def prune(directory: Path) -> list[Path]:
    """Remove, and return, images that no `alias` stands for any more, and the files that none of those left needs.

    Guests that run from them have them open. Nothing else in the directory is touched.
    """
    current = {path.resolve() for path in directory.glob("*.json") if path.is_symlink()}
    needed: set[str] = set()
    removed: list[Path] = []
    for path in directory.glob("*.json"):
        # What is not understood, such as another version's, keeps what it names.
        if path.resolve() in current or not _is_image(path):
            needed.update(found[0] for found in _BLOB.finditer(path.read_text(errors="replace")))
        else:
            removed.append(path)
    unneeded = (
        path for path in directory.iterdir() if _BLOB.fullmatch(path.name) and path.name not in needed
    )
    removed.extend(unneeded)
    for path in removed:
        path.unlink()
    return sorted(removed)


def _is_image(path: Path) -> bool:
    try:
        load(path)
    except SandboxdError:
        return False
    return True


def add_blob(directory: Path, source: Path, kind: str) -> Blob:
    """Move a file into the image's directory, under the name of its content."""
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    blob = Blob(f"{kind}-{digest}", source.stat().st_size, digest)
    source.chmod(0o444)
    os.replace(source, directory / blob.file)
    return blob


def write(directory: Path, manifest: Manifest, alias: str) -> None:
    """Put a manifest into the image's directory, and turn a name that stays the same, `alias`, to it."""
    new = directory / f".{manifest.name}.new"
    new.write_text(manifest.to_json(), encoding="utf-8")
    new.replace(directory / f"{manifest.name}.json")
    link(directory, manifest.name, alias)


def link(directory: Path, name: str, alias: str) -> None:
    """Turn the file `alias`.json to the manifest of a name."""
    new = directory / f".{alias}.new"
    new.unlink(missing_ok=True)
    new.symlink_to(f"{name}.json")
    new.replace(directory / f"{alias}.json")
