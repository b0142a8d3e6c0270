"""The configuration of the kernel without modules."""

from collections import Counter

import pytest

from common.errors import Internal
from vmm.image.monolithic_kernel import CONFIG, check_configuration


def test_each_option_is_set_once() -> None:
    options = Counter(
        line.removeprefix("# ").partition("=")[0].split()[0]
        for line in CONFIG.read_text().splitlines()
        if line.startswith(("CONFIG_", "# CONFIG_"))
    )

    assert [name for name, count in options.items() if count > 1] == []


def test_nothing_is_a_module() -> None:
    assert "=m" not in CONFIG.read_text()


def test_an_option_that_the_source_does_not_take_is_named() -> None:
    wanted = "# why\nCONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\n"

    check_configuration(wanted, "CONFIG_A=y\nCONFIG_B=y\n")
    with pytest.raises(Internal, match=r"does not allow: CONFIG_B=y$"):
        check_configuration(wanted, "CONFIG_A=y\n# CONFIG_B is not set\n")
