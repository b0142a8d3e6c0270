"""Users and groups of an image."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.errors import InvalidArgument
from sandboxctl.accounts import Account, find_account

PASSWD = "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/:/bin/sh\nbroken\n# comment:x:1:1::/:\nhuge:x:99999999999:1::/:\n"
GROUP = "root:x:0:\nweb:x:34:\nlogs:x:40:other,web\nbad:x:-1:web\n"


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return tmp_path


@pytest.mark.parametrize(
    ("user", "account"),
    [
        ("", Account(0, 0)),
        ("web", Account(33, 34, (40,))),
        ("33", Account(33, 34, (40,))),
        ("web:logs", Account(33, 40)),
        ("web:77", Account(33, 77)),
        ("1000", Account(1000, 0)),
        ("1000:1000", Account(1000, 1000)),
    ],
)
def test_by_name_and_number(rootfs: Path, user: str, account: Account) -> None:
    assert find_account(str(rootfs), user) == account


@pytest.mark.parametrize(
    "user", ["nobody", "web:nogroup", "-1", "99999999999", "huge", "1 ", "0" * 11 + "9" * 20, "9" * 5000]
)
def test_who_is_unknown(rootfs: Path, user: str) -> None:
    with pytest.raises(InvalidArgument, match="the container knows no"):
        find_account(str(rootfs), user)


def test_an_image_without_accounts(tmp_path: Path) -> None:
    assert find_account(str(tmp_path), "5:6") == Account(5, 6)
    with pytest.raises(InvalidArgument):
        find_account(str(tmp_path), "web")


def test_links_do_not_leave_the_image(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "passwd"
    outside.write_text("intruder:x:0:0::/:\n")
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to(outside)
    with pytest.raises(InvalidArgument):
        find_account(str(rootfs), "intruder")


def test_what_is_no_file_is_not_waited_for(rootfs: Path) -> None:
    (rootfs / "etc/passwd").unlink()
    os.mkfifo(rootfs / "etc/passwd")
    assert find_account(str(rootfs), "1") == Account(1, 0)
