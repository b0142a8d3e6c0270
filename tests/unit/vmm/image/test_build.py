"""What an image is made of decides its name; what is missing on the machine is told before anything is done."""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from common.errors import FailedPrecondition
from vmm.image import root
from vmm.image.build import AGENT, KERNELS, Plan, build
from vmm.image.kernel import Kernel
from vmm.image.manifest import Ingredient
from vmm.image.packages import Archive, Package
from vmm.image.root import Agent
from vmm.image.tools import Tools

CHECKOUT = Path(__file__).parents[4]
CRUN = Ingredient("crun", "1.8.1-1", "0" * 64)


class UnobtainableKernel:
    """A kernel that takes what no machine has."""

    name = "unobtainable"
    programs: Mapping[str, str] = {"no-such-compiler": "compiler-deb", "/usr/include/no-such.h": "header-deb"}

    async def fetch(self, archive: Archive) -> list[Package]:
        raise NotImplementedError

    async def make(self, tools: Tools, archive: Archive, packages: list[Package], work: Path) -> Kernel:
        raise NotImplementedError


async def test_missing_programs_are_told_by_the_packages_that_have_them(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"apt-get install .*compiler-deb.* header-deb"):
        await build(Plan(tmp_path / "images", UnobtainableKernel()))

    assert not (tmp_path / "images").exists()


def agent(directory: Path, text: str) -> Agent:
    (directory / "app/inner").mkdir(parents=True, exist_ok=True)
    (directory / "app/inner/code.py").write_text(text)
    (directory / "README").write_text(str(directory))
    return Agent("app.inner.code", directory, ("app",))


def test_an_image_of_the_same_sources_has_the_same_name_wherever_they_lie(tmp_path: Path) -> None:
    one, other = (Plan(tmp_path, agent=agent(tmp_path / place, "same")) for place in ("one", "other"))

    assert one.key([CRUN]) == other.key([CRUN])


def test_anything_that_an_image_is_made_of_changes_its_name(tmp_path: Path) -> None:
    plan = Plan(tmp_path, agent=agent(tmp_path / "a", "text"))
    keys = [
        plan.key([CRUN]),
        plan.key([dataclasses.replace(CRUN, sha256="1" * 64)]),
        dataclasses.replace(plan, debug=True).key([CRUN]),
        dataclasses.replace(plan, kernel=KERNELS["monolithic"]).key([CRUN]),
        dataclasses.replace(plan, agent=agent(tmp_path / "b", "other text")).key([CRUN]),
    ]

    assert len(set(keys)) == len(keys)


def test_the_guest_has_the_protobuf_that_is_tested_with() -> None:
    with (CHECKOUT / "pyproject.toml").open("rb") as project:
        pins = tomllib.load(project)["project"]["optional-dependencies"]["dev"]

    name, version, _ = root.WHEEL
    assert f"{name}=={version}" in pins


def test_all_that_the_agent_is_made_of_is_there() -> None:
    assert [part for part in AGENT.parts if not (AGENT.directory / part).exists()] == []
