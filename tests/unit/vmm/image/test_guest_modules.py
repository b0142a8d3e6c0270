"""What a program imports is collected and compiled, and nothing else."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

SCRIPT = Path(__file__).parents[4] / "vmm/image/guest_modules.py"
STDLIB = (sysconfig.get_path("stdlib"), f"{sysconfig.get_path('platstdlib')}/lib-dynload")


def write(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def collect(entry: str, source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", *map(str, (SCRIPT, entry, target, source, *STDLIB))]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_program_runs_without_its_sources(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    write(
        source,
        {
            "app/__init__.py": "",
            "app/__main__.py": "import app.used\n\ndef late():\n    import app.later\nlate()\nprint(app.used.NAME)\n",
            "app/used.py": "NAME = __file__\n",
            "app/later.py": "",
            "app/unused.py": "",
        },
    )

    done = collect("app.__main__", source, target)

    assert done.returncode == 0, done.stderr
    names = json.loads(done.stdout)
    assert {"app", "app.__main__", "app.used", "app.later", "os", "encodings.utf_8"} <= set(names)
    assert not {"app.unused", "unittest", "ssl"} & set(names)
    assert not list(target.rglob("*.py"))
    ran = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {str(target)!r}); import app.__main__",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == f"{target}/app/used.pyc\n"


def test_where_the_sources_lay_is_not_told(tmp_path: Path) -> None:
    for place in ("one", "another"):
        write(tmp_path / place, {"app.py": "import os\n"})
        collect("app", tmp_path / place, tmp_path / f"{place}.target")

    first, second = ((tmp_path / f"{place}.target/app.pyc").read_bytes() for place in ("one", "another"))
    assert first == second


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = collect("vmm.agent", tmp_path, tmp_path / "target")

    assert done.returncode != 0
    assert "there is no module vmm.agent" in done.stderr
