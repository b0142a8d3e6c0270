"""What a node gets of this checkout: its files as they lie here, and the packages as an operator builds them."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.versions import raise_record_versions
from tests.engine.images import DEMO_LAYOUT
from vmm.image.manifest import GuestImage

CHECKOUT = Path(__file__).resolve().parents[2]
OLDER, NEWER = "older", "newer"
PACKAGES = Path("/opt/node/packages")
"""Where both versions lie on a node."""

# That of scripts/build-node's Debian: files for others would be unpacked by an emulated processor, for nothing.
PYTHON_VERSION = "3.13"


def checkout_archive(parts: Sequence[str]) -> bytes:
    """Return a tar archive of what git knows below these paths, or would add."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in _files(parts):
            archive.add(CHECKOUT / name, name)
    return buffer.getvalue()


def engine_archive(images: Sequence[GuestImage]) -> bytes:
    """Return a tar archive of what tests with an engine and virtual machines look for in a checkout, but programs."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(DEMO_LAYOUT, DEMO_LAYOUT.relative_to(CHECKOUT))
        for image in images:
            name = image.manifest.name
            link = tarfile.TarInfo(f".cache/guest/{name.rpartition('-')[0]}.json")
            link.type, link.linkname = tarfile.SYMTYPE, f"{name}.json"
            archive.addfile(link)
            files = [image.directory / f"{name}.json", image.kernel, image.root]
            for path in [*files, *([image.ramdisk] if image.ramdisk else [])]:
                archive.add(path, f".cache/guest/{path.name}")
    return buffer.getvalue()


def package_of(directory: Path) -> Path:
    """The package in the directory of a version; those of further types are not for nodes."""
    return next(directory.glob("sandboxd_*.deb"))


def directory_archive(directory: Path) -> bytes:
    """Return a tar archive of what is in a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(directory, ".")
    return buffer.getvalue()


def build_packages(directory: Path) -> None:
    """Build two versions: OLDER/*.deb is this checkout, NEWER/*.deb would write newer records.

    Raises RuntimeError with the words of what failed.
    """
    older, newer = directory / OLDER, directory / NEWER
    newer.mkdir()
    _run(str(CHECKOUT / "scripts/build-deb"), "--python", PYTHON_VERSION, str(older))
    package = package_of(older)
    with tempfile.TemporaryDirectory(prefix="sandboxd-package-") as tree:
        _run("dpkg-deb", "--raw-extract", str(package), tree)
        raise_record_versions(Path(tree, "usr/lib/sandboxd/lib/python3/site-packages"))
        control = Path(tree, "DEBIAN/control")
        version = package.name.split("_")[1]
        control.write_text(control.read_text().replace(version, f"{version}+newer"))
        _run("dpkg-deb", "--build", "--root-owner-group", "-Znone", tree, str(newer))


def _files(parts: Sequence[str]) -> list[str]:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *parts],
        cwd=CHECKOUT,
        capture_output=True,
        check=True,
    )
    return [name for name in listing.stdout.decode().split("\0") if name and os.path.lexists(CHECKOUT / name)]


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}")
