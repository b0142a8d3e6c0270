"""The shipped configuration of iSulad follows the rules by which iSulad reads it, and names our sockets."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from sandboxers.isolation import IsolationType, config_class_of

CHECKOUT = Path(__file__).parents[2]
DAEMON = json.loads((CHECKOUT / "configs/isulad/daemon.json").read_text())


def test_each_sandboxer_is_named_as_its_handler_and_served_at_its_socket() -> None:
    sandboxers = DAEMON["cri-sandboxers"]
    assert {key: entry["name"] for key, entry in sandboxers.items()} == {key: key for key in sandboxers}
    sockets = {config_class_of(kind)().socket for kind in IsolationType}
    assert {entry["address"] for entry in sandboxers.values()} <= sockets


def test_each_handler_has_a_runtime_of_four_parts() -> None:
    assert DAEMON["cri-runtimes"].keys() == DAEMON["cri-sandboxers"].keys()
    for runtime in DAEMON["cri-runtimes"].values():
        assert re.fullmatch(r"io\.containerd\.[a-z]+\.v\d", runtime)


def test_each_handler_has_a_runtime_class() -> None:
    classes = (CHECKOUT / "configs/kubernetes").glob("*.yaml")
    handlers = {yaml.safe_load(path.read_text()).get("handler") for path in classes}
    assert DAEMON["cri-sandboxers"].keys() <= handlers


def test_what_isulad_needs_to_have_sandboxers_at_all_is_on() -> None:
    assert DAEMON["enable-cri-v1"] is True
