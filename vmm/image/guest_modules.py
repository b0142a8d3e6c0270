"""Collect and compile what a Python program imports; run by the guest's own interpreter, as bytecode is its own.

    python guest_modules.py ENTRY TARGET SEARCH_DIR...

ENTRY is a module; it, all that it imports and `EXTRA` go below TARGET: Python modules compiled, without their
sources, extension modules as they are. Prints the modules' names as JSON.
"""

from __future__ import annotations

import importlib.machinery
import json
import modulefinder
import py_compile
import shutil
import sys
from pathlib import Path
from typing import Any

# Imported by the interpreter itself, by name, or by what the program is given to decode.
EXTRA = (
    "codecs",
    "encodings.ascii",
    "encodings.latin_1",
    "encodings.utf_8",
    "encodings.idna",
    "io",
    "os",
    "runpy",
)
# Imported behind `if __name__ == "__main__"`, in functions for developers, or where others do as well: the standard
# library tries these and goes on without them.
EXCLUDED = (
    "_bz2", "_curses", "_hashlib", "_lzma", "_ssl", "bz2", "curses", "distutils", "doctest", "lib2to3", "lzma", "pdb",
    "pydoc", "readline", "ssl", "test", "tkinter", "unittest",
)  # fmt: skip


def main(entry: str, target: Path, search: list[str]) -> None:
    """Fill `target`; an error of the program's syntax ends this with it."""
    finder = modulefinder.ModuleFinder(path=search, excludes=list(EXCLUDED))
    for name in (entry, *EXTRA):
        try:
            finder.import_hook(name)
        except ImportError:
            sys.exit(f"there is no module {name} in {', '.join(search)}")
    collected = []
    modules: dict[str, Any] = finder.modules
    for name, module in sorted(modules.items()):
        if module.__file__ is not None:
            collect(name, Path(module.__file__), target, package=module.__path__ is not None)
            collected.append(name)
    print(json.dumps(collected))


def collect(name: str, source: Path, target: Path, *, package: bool) -> None:
    """Put one module where an interpreter finds it that searches `target`."""
    parts = name.split(".")
    place = target.joinpath(*parts, "__init__") if package else target.joinpath(*parts)
    place.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".py":
        py_compile.compile(
            str(source),
            cfile=f"{place}.pyc",
            dfile=f"/{name}.py",
            doraise=True,
            # The image cannot change: nothing is compared when the module is imported.
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
    else:
        shutil.copyfile(source, f"{place}{importlib.machinery.EXTENSION_SUFFIXES[-1]}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
