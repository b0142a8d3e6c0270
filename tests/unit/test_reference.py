"""The reference is made of what the code knows of itself, and is complete."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from common.config import describe
from sandboxctl.main import make_parser
from sandboxers.isolation import IsolationType, config_class_of

GENERATOR = Path(__file__).parents[2] / "scripts/generate-reference"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("reference")
    subprocess.run([sys.executable, GENERATOR, directory], check=True)
    return directory


@pytest.mark.parametrize("kind", list(IsolationType))
def test_every_key_of_every_type_stands_in_it_with_its_meaning(pages: Path, kind: IsolationType) -> None:
    page = (pages / f"sandboxd-{kind.value}.yaml.md").read_text(encoding="utf-8")
    for key in describe(config_class_of(kind)):
        assert f"\n`{key.path}` ({key.kind}; default: " in page
        assert f"\n:   {key.meaning}\n" in page


def test_every_verb_stands_in_it_with_its_options(pages: Path) -> None:
    page = (pages / "sandboxctl.md").read_text(encoding="utf-8")
    _, verbs = make_parser()
    assert verbs
    for verb, parser in verbs.items():
        assert f"\n## sandboxctl {verb}\n" in page
        for action in parser.complete()._actions:
            assert not action.help or all(f"`{option}" in page for option in action.option_strings)
