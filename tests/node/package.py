"""What a node gets of this checkout: its files as they lie here, and the package as an operator builds it."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.versions import PACKAGES, raise_record_versions
from tests.engine.images import DEMO_LAYOUT
from vmm.image.manifest import GuestImage

CHECKOUT = Path(__file__).resolve().parents[2]
OLDER, NEWER = "older", "newer"
_SOURCES = (*PACKAGES, "pyproject.toml", "README.md")


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


def wheels_archive() -> bytes:
    """Return a tar archive of two wheels: OLDER/*.whl is this checkout, NEWER/*.whl would write newer records.

    Raises RuntimeError with pip's words if one cannot be built.
    """
    buffer = io.BytesIO()
    with (
        tempfile.TemporaryDirectory(prefix="sandboxd-wheels-") as directory,
        tarfile.open(fileobj=buffer, mode="w") as archive,
    ):
        for version in (OLDER, NEWER):
            # Not in the checkout: setuptools would find there, and pack, what an earlier build has left.
            source = Path(directory, version)
            for name in _files(_SOURCES):
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(CHECKOUT / name, source / name)
            if version == NEWER:
                raise_record_versions(source)
            wheel = _build(source)
            archive.add(wheel, f"{version}/{wheel.name}")
    return buffer.getvalue()


def _files(parts: Sequence[str]) -> list[str]:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *parts],
        cwd=CHECKOUT,
        capture_output=True,
        check=True,
    )
    return [name for name in listing.stdout.decode().split("\0") if name and os.path.lexists(CHECKOUT / name)]


def _build(source: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(source / "dist"), str(source)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"no wheel of sandboxd can be built:\n{done.stdout}")
    return next((source / "dist").glob("*.whl"))
