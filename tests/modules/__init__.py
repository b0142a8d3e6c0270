"""WebAssembly modules for tests, demo and benchmarks: C and WebAssembly text, compiled into .cache/modules."""

import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent
BUILT = SOURCES.parents[1] / ".cache/modules"
# -Oz and no symbols: a test waits until the engine has compiled them.
CLANG = ("clang", "--target=wasm32-wasi", "-Oz", "-Wall", "-Werror", "-Wl,--strip-all")


def names() -> list[str]:
    """The names of all modules."""
    return sorted(path.stem for path in SOURCES.iterdir() if path.suffix in (".c", ".wat"))


@cache
def module(name: str) -> Path:
    """Return the compiled module of a name, compiling it if its source has changed.

    Raises FileNotFoundError if there is no such source, RuntimeError with the compiler's words if it does not compile.
    """
    source = next((path for path in (SOURCES / f"{name}.c", SOURCES / f"{name}.wat") if path.exists()), None)
    if source is None:
        raise FileNotFoundError(f"no module {name} in {SOURCES}")
    target = BUILT / f"{name}.wasm"
    # Changes of the flags above count as well.
    newest_s = max(path.stat().st_mtime for path in (source, Path(__file__)))
    if not target.exists() or target.stat().st_mtime < newest_s:
        BUILT.mkdir(parents=True, exist_ok=True)
        # Checkouts that share a cache may build at the same time.
        with tempfile.NamedTemporaryFile(dir=BUILT, suffix=".new", delete=False) as file:
            new = Path(file.name)
        try:
            _compile(source, new)
            new.chmod(0o644)
            new.replace(target)
        finally:
            new.unlink(missing_ok=True)
    return target


def _compile(source: Path, target: Path) -> None:
    if source.suffix == ".wat":
        # Knows components too, unlike the tools of Debian 12.
        from wasmtime import WasmtimeError, wat2wasm

        try:
            target.write_bytes(wat2wasm(source.read_text()))
        except WasmtimeError as error:
            raise RuntimeError(f"{source}: {error}") from None
        return
    command = [*CLANG, "-o", str(target), str(source)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RuntimeError("clang is missing: run scripts/install-packages test") from None
    if ended.returncode != 0:
        raise RuntimeError(f"{source} does not compile: {ended.stderr}")
