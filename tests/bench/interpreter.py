"""A Python of one's own: no other process shares its pages, so proportional memory is not flattered."""

import shutil
import sys
import sysconfig
from pathlib import Path

# What the daemon may import beyond the standard library.
PACKAGES = ("google", "grpc", "psutil", "structlog", "yaml", "_yaml", "typing_extensions.py")


def copy_interpreter(directory: Path) -> Path:
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
    for name in PACKAGES:
        source = installed / name
        if source.is_dir():
            shutil.copytree(source, target / name)
        elif source.exists():
            shutil.copyfile(source, target / name)
    return program
