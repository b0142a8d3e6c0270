"""The command line: what is loaded, what a wrong one gets, and how failures end."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxctl.commands import SUMMARIES
from sandboxctl.daemons import CONFIG_DIRECTORY_VARIABLE
from sandboxctl.main import main, make_parser


@pytest.mark.parametrize("verb", SUMMARIES)
def test_each_verb_has_a_module_with_help_that_fits_80_columns(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: sandboxctl {verb}")
    assert max(map(len, lines)) <= 80


def test_there_is_no_module_without_a_verb() -> None:
    spec = importlib.util.find_spec("sandboxctl.commands")
    assert spec is not None and spec.submodule_search_locations
    modules = {path.stem for path in Path(spec.submodule_search_locations[0]).glob("*.py")}
    assert modules - {"__init__"} == set(SUMMARIES)


def test_a_verb_loads_no_other_one_and_help_loads_none(tmp_path: Path) -> None:
    script = (
        "import sys; from sandboxctl.main import main\n"
        f"try: main(['--config', {str(tmp_path / 'none')!r}, *sys.argv[1:]])\n"
        "except SystemExit: pass\n"
        "verbs = [name for name in sys.modules if name.startswith('sandboxctl.commands.')]\n"
        "print('LOADED', *[name.rpartition('.')[2] for name in verbs])\n"
        "print('GRPC', 'grpc' in sys.modules)"
    )
    for words, loaded in (["--help"], []), (["ps"], ["ps"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *words], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-2:] == [" ".join(["LOADED", *loaded]), "GRPC False"]


@pytest.mark.parametrize(
    ("words", "spared"),
    [
        (["completion", "bash"], {"grpc", "sandboxctl.embedded.engine", "sandboxctl.embedded.pod_run"}),
        (["doctor"], {"grpc", "sandboxers.vm.sandbox", "sandboxers.host.sandbox", "sandboxers.wasm.backend"}),
    ],
)
def test_what_is_not_needed_is_not_waited_for(words: list[str], spared: set[str], tmp_path: Path) -> None:
    script = "import sys; from sandboxctl.main import main; main(sys.argv[1:]); print(*sys.modules)"
    environment = {**os.environ, CONFIG_DIRECTORY_VARIABLE: str(tmp_path)}
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert not spared & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("words", [[], ["nosuch"], ["ps", "--nosuch"], ["inspect"]])
def test_a_wrong_command_line_ends_with_2_and_says_what_is_wrong(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--config", "{}", "ps"], ["ps", "--config", "{}"]])
def test_a_failure_is_one_line_and_1_and_options_may_stand_before_or_after_the_verb(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "none.yaml")
    assert main([word.format(missing) for word in words]) == 1
    assert capsys.readouterr().err == f"sandboxctl: {missing}: no such file\n"


def test_files_before_and_after_the_verb_do_not_forget_the_flag_before_it(tmp_path: Path) -> None:
    parser, _ = make_parser()
    parsed = parser.parse_args(["--json", "--config", "a", "ps"])
    assert (parsed.as_json, parsed.config_files) == (True, ["a"])


def test_a_reader_that_has_seen_enough_causes_no_noise(short_path: Path) -> None:
    config = short_path / "c.yaml"
    config.write_text(f"state_dir: {short_path}/state\n")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "sandboxctl", "--config", str(config), "ps"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
