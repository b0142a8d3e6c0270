"""Configurations of networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import InvalidArgument, NotFound
from sandboxctl.embedded import cni
from sandboxctl.embedded.cni import Addresses, addresses_of, load_network, parse_network
from sandboxctl.embedded.plan import Port

PORTS = [Port(8080, 80)]


def plugins(config: dict[str, object]) -> list[str]:
    entries = config["plugins"]
    assert isinstance(entries, list)
    return [entry["type"] for entry in entries]


def test_the_bridge_maps_ports_itself() -> None:
    assert plugins(load_network("bridge", PORTS)) == ["bridge", "portmap"]


def test_one_that_maps_no_ports_gets_a_plugin_for_them(tmp_path: Path) -> None:
    path = tmp_path / "10-net.conf"
    path.write_text(json.dumps({"name": "net", "type": "ptp", "cniVersion": "0.4.0"}))
    assert plugins(load_network(str(path), [])) == ["ptp"]
    found = load_network(str(path), PORTS)
    assert plugins(found) == ["ptp", "portmap"]
    assert found["cniVersion"] == "0.4.0"


def test_one_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cni, "CONFIG_DIRECTORY", str(tmp_path))
    (tmp_path / "0.conflist").symlink_to("0.conflist")
    (tmp_path / "1.conflist").write_text("damaged")
    (tmp_path / "2.conflist").write_text(json.dumps({"name": "mine", "plugins": [{"type": "bridge"}]}))
    assert load_network("mine", [])["name"] == "mine"
    with pytest.raises(NotFound, match="there is no network 'other'"):
        load_network("other", [])


def test_a_file_in_the_working_directory_takes_no_networks_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.d").mkdir()
    monkeypatch.setattr(cni, "CONFIG_DIRECTORY", str(tmp_path / "net.d"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text(json.dumps({"name": "intruder", "type": "ptp"}))
    assert load_network("mine", [])["name"] == "intruder", "there is no other"
    (tmp_path / "net.d/1.conf").write_text(json.dumps({"name": "mine", "type": "bridge"}))
    assert load_network("mine", [])["name"] == "mine"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"name": "a", "plugins": []}',
        '{"name": "a", "type": "../../bin/sh"}',
        '{"name": 1, "type": "x"}',
    ],
)
def test_a_malformed_one(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^net\.conf: "):
        parse_network(text, "net.conf")


def test_addresses() -> None:
    result = {
        "ips": [{"address": "10.0.0.2/16"}, {"address": "fd00::2/64"}],
        "dns": {"nameservers": ["10.0.0.1"]},
    }
    assert addresses_of(result) == Addresses(("10.0.0.2", "fd00::2"), ("10.0.0.1",))
    assert addresses_of({}) == Addresses(())
