"""A Python of one's own: no other process shares its pages, so proportional memory is not flattered."""

import ctypes.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.engine.images import CHECKOUT

# What the daemon may import beyond the standard library, and what a fork server does; as patterns.
PACKAGES = ("google", "grpc", "psutil", "structlog", "yaml", "_yaml", "typing_extensions.py")
WASMTIME = ("wasmtime", "wasmtime-*.dist-info")
WASMEDGE = CHECKOUT / ".cache/wasmedge"


def copy_interpreter(directory: Path, *, packages: tuple[str, ...] = PACKAGES) -> Path:
    """Copy the interpreter and the daemon's dependencies into `directory`; returns the program to run."""
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    program = directory / "bin/python"
    program.parent.mkdir(parents=True)
    shutil.copyfile(base.resolve(), program)
    program.chmod(0o755)
    (directory / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    installed = Path(sysconfig.get_path("platlib"))
    target = directory / installed.relative_to(sys.prefix)
    target.mkdir(parents=True)
    for source in (path for pattern in packages for path in installed.glob(pattern)):
        if source.is_dir():
            shutil.copytree(source, target / source.name)
        else:
            shutil.copyfile(source, target / source.name)
    return program


def copy_interpreter_with_wasmedge(directory: Path) -> Path:
    """Copy the interpreter into `directory` so that it can load WasmEdge; returns the program to run.

    Without a libwasmedge of the system, it is that of scripts/fetch-runtimes with the libc that this needs.
    """
    program = copy_interpreter(directory)
    if ctypes.util.find_library("wasmedge") is None:
        libraries = [str(WASMEDGE / "libraries"), *_system_libraries()]
        # fmt: off
        subprocess.run([
            "patchelf", "--set-interpreter", str((WASMEDGE / "loader").resolve()),
            "--force-rpath", "--set-rpath", ":".join(libraries), str(program),
        ], check=True)
        # fmt: on
    return program


def _system_libraries() -> list[str]:
    """Where the system has what is not among the newer libraries."""
    triplet = sysconfig.get_config_var("MULTIARCH")
    return [f"/usr/lib/{triplet}", f"/lib/{triplet}"]
