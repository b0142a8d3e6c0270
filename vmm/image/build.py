"""Build a guest image: packages are fetched, the kernel unpacked, the root laid out and packed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import FailedPrecondition, SandboxdError
from vmm.image import loader, manifest, root
from vmm.image.cloud_kernel import CloudKernel
from vmm.image.kernel import KernelSource
from vmm.image.manifest import Ingredient, Manifest
from vmm.image.monolithic_kernel import MonolithicKernel
from vmm.image.packages import Archive
from vmm.image.tools import Tools

# And the Debian packages that they are in.
PROGRAMS: Final = {"apt-get": "apt", "dpkg-deb": "dpkg", "mkfs.erofs": "erofs-utils"}
KERNELS: Final[dict[str, KernelSource]] = {kind.name: kind for kind in (CloudKernel(), MonolithicKernel())}
AGENT: Final = root.Agent(
    "vmm.agent.__main__",
    Path(__file__).resolve().parents[2],
    ("common", "proto", "vmm/__init__.py", "vmm/protocol.py", "vmm/agent"),
    at_start=("vmm.agent.agent", "common.transport.vsock"),
    stdlib="vmm/agent/stdlib",
    wheel="vmm/agent/protobuf",
)
_KEY_CHARACTERS: Final = 12


@dataclass(frozen=True, slots=True)
class Plan:
    """What to build and where; with `debug` there is a shell on the console, with `refresh` packages are the newest."""

    directory: Path
    kernel: KernelSource = KERNELS["cloud"]
    agent: root.Agent = AGENT
    debug: bool = False
    refresh: bool = False

    @property
    def flavour(self) -> str:
        """The kind of image, for people: the beginning of its manifest's name."""
        parts = [self.kernel.name]
        if self.agent != AGENT:
            parts.append(self.agent.module)
        if self.debug:
            parts.append("debug")
        return "-".join(parts)

    def key(self, ingredients: Sequence[Ingredient]) -> str:
        """Return what tells an image made of these ingredients from any other."""
        here = Path(__file__).parent
        builder = root.digest(here, sorted(path.name for path in here.iterdir() if path.is_file()))
        parts = (self.flavour, self.agent.module, self.agent.digest(), builder, ingredients)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:_KEY_CHARACTERS]


async def build(plan: Plan) -> Path:
    """Build an image and return its manifest's path. Raises errors of `common.errors` that name what failed."""
    _check_programs({**PROGRAMS, **plan.kernel.programs})
    plan.directory.mkdir(parents=True, exist_ok=True)
    tools = Tools()
    try:
        with (plan.directory / "lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tools.say(f"waiting for another build in {plan.directory}")
                fcntl.flock(lock, fcntl.LOCK_EX)
            # Here, so that what is ready is moved rather than copied; a build that was killed leaves it.
            work = plan.directory / "work"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            try:
                return await _build(plan, tools, work)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    finally:
        tools.close()


async def _build(plan: Plan, tools: Tools, work: Path) -> Path:
    downloads = plan.directory / "downloads"
    archive = Archive(tools, downloads, refresh=plan.refresh)
    kernel_packages = await plan.kernel.fetch(archive)
    root_packages = await archive.fetch(root.PACKAGES)
    debug_packages = await archive.fetch(root.DEBUG_PACKAGES) if plan.debug else []
    wheel = await root.fetch_wheel(tools, downloads)
    packages = [*kernel_packages, *root_packages, *debug_packages, wheel]
    ingredients = [Ingredient(package.name, package.version, package.sha256) for package in packages]
    name = f"{plan.flavour}-{plan.key(ingredients)}"
    path = plan.directory / f"{name}.json"
    with contextlib.suppress(SandboxdError):
        manifest.load(path)
        manifest.link(plan.directory, name, plan.flavour)
        return path

    (work / "kernel").mkdir()
    kernel = await plan.kernel.make(tools, archive, kernel_packages, work / "kernel")
    init = root.DEBUG_INIT if plan.debug else root.INIT
    ramdisk = work / "ramdisk"
    if kernel.modules:
        ramdisk.write_bytes(
            loader.ramdisk(kernel.modules, root=manifest.ROOT_DEVICE, file_system=root.FILE_SYSTEM, init=init)
        )

    tools.say("laying out the root file system")
    await archive.unpack([*root_packages, *debug_packages], work / "debian")
    sources = root.Sources(work / "debian", wheel.path, plan.agent, plan.debug)
    tree, python_modules = await root.assemble(tools, sources, work)
    await root.pack(tools, tree, work / "root.erofs")

    made = Manifest(
        name=name,
        architecture=manifest.ARCHITECTURE,
        kernel=manifest.add_blob(plan.directory, kernel.file, "vmlinux"),
        kernel_release=kernel.release,
        kernel_modules=tuple(module.name for module in kernel.modules),
        kernel_arguments=kernel.arguments,
        ramdisk=manifest.add_blob(plan.directory, ramdisk, "ramdisk") if kernel.modules else None,
        root=manifest.add_blob(plan.directory, work / "root.erofs", "root"),
        root_file_system=root.FILE_SYSTEM,
        init=(init, *root.INIT_ARGUMENTS),
        agent=plan.agent.module,
        agent_sha256=plan.agent.digest(),
        python=root.PYTHON,
        python_modules=tuple(python_modules),
        ingredients=tuple(ingredients),
    )
    manifest.write(plan.directory, made, plan.flavour)
    tools.say(f"{path} is ready")
    return path


def _check_programs(programs: Mapping[str, str]) -> None:
    lacking = sorted(
        {
            package
            for program, package in programs.items()
            if not (os.path.exists(program) if program.startswith("/") else shutil.which(program))
        }
    )
    if lacking:
        raise FailedPrecondition(f"this needs Debian packages: run `apt-get install {' '.join(lacking)}`")
