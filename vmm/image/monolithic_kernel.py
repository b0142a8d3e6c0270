"""A kernel without modules, compiled from Debian's source with no more than guests need: it boots in half the time."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Final

from common.errors import Internal
from vmm.image.kernel import Kernel, check_elf
from vmm.image.packages import Archive, Package
from vmm.image.tools import Tools

CONFIG: Final = Path(__file__).with_name("kernel.config")

_METAPACKAGE: Final = "linux-source"
_PREFIX: Final = "linux-source-"
_KEY_CHARACTERS: Final = 16

# The kernel carries who compiled it where and when.
_ENVIRONMENT: Final = {
    "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
    "KBUILD_BUILD_USER": "sandboxd",
    "KBUILD_BUILD_HOST": "sandboxd",
    "KBUILD_BUILD_VERSION": "1",
}


class MonolithicKernel:
    """Compiled once per source package and configuration, and kept with the downloads."""

    name = "monolithic"
    programs: Final = {
        "bc": "bc",
        "bison": "bison",
        "flex": "flex",
        "gcc": "build-essential",
        "make": "build-essential",
        "xz": "xz-utils",
        "/usr/include/gelf.h": "libelf-dev",
    }

    async def fetch(self, archive: Archive) -> list[Package]:
        """Return the one package."""
        return await archive.fetch([await archive.member(_METAPACKAGE, _PREFIX)])

    async def make(self, tools: Tools, archive: Archive, packages: list[Package], work: Path) -> Kernel:
        """Compile it, or take what was compiled from the same source and configuration."""
        key = hashlib.sha256(packages[0].sha256.encode() + CONFIG.read_bytes()).hexdigest()[:_KEY_CHARACTERS]
        kept = archive.directory / f"monolithic-{key}"
        if not kept.exists():
            await self._compile(tools, archive, packages, work, kept)
        file = work / "vmlinux"
        shutil.copyfile(kept / "vmlinux", file)
        return Kernel(file, (kept / "release").read_text())

    async def _compile(
        self, tools: Tools, archive: Archive, packages: list[Package], work: Path, kept: Path
    ) -> None:
        tools.say(f"unpacking the source of {packages[0].name}")
        await archive.unpack(packages, work)
        await tools.run("tar", "-C", work, "-xf", work / f"usr/src/{packages[0].name}.tar.xz")
        source = work / packages[0].name
        make = ("make", "-C", source, f"-j{os.cpu_count()}")
        await tools.run(*make, "tinyconfig", env=_ENVIRONMENT)
        config = source / ".config"
        await tools.run(
            source / "scripts/kconfig/merge_config.sh", "-m", "-O", source, config, CONFIG, cwd=source
        )
        await tools.run(*make, "olddefconfig", env=_ENVIRONMENT)
        check_configuration(CONFIG.read_text(), config.read_text())
        tools.say("compiling the kernel (eight minutes on two processors)")
        await tools.run(*make, "vmlinux", env=_ENVIRONMENT, output=work / "log")
        release = (await tools.run(*make, "-s", "kernelrelease", env=_ENVIRONMENT)).decode().strip()
        new = archive.directory / f"{kept.name}.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        await tools.run("strip", "--strip-all", "-o", new / "vmlinux", source / "vmlinux")
        check_elf(new / "vmlinux")
        (new / "release").write_text(release)
        shutil.copyfile(config, new / "config")
        new.rename(kept)


def check_configuration(wanted: str, got: str) -> None:
    """Raise Internal naming what was asked for and is not in a kernel's configuration, for want of something else."""
    options = set(got.splitlines())
    lost = [line for line in wanted.splitlines() if line.startswith("CONFIG_") and line not in options]
    if lost:
        raise Internal(f"this kernel's source does not allow: {', '.join(lost)}")
