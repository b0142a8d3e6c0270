"""What containerd and Kubernetes are told of a type."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml

from sandboxctl.drop_ins import drop_in, handler_name, runtime_class
from sandboxers.isolation import IsolationType, config_class_of

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize("kind", list(IsolationType))
def test_the_committed_files_are_current(kind: IsolationType) -> None:
    text = drop_in(kind, config_class_of(kind)().socket)
    assert (CONFIGS / f"containerd/sandboxd-{kind.value}.toml").read_text() == text, "run `make configs`"
    manifest = (CONFIGS / f"kubernetes/runtimeclass-{handler_name(kind)}.yaml").read_text()
    assert manifest == runtime_class(kind), "run `make configs`"


@pytest.mark.parametrize("kind", list(IsolationType))
def test_the_socket_is_the_daemons_and_the_names_fit_together(kind: IsolationType) -> None:
    config = tomllib.loads(drop_in(kind, "/elsewhere/api.sock"))
    assert config["proxy_plugins"] == {kind.value: {"type": "sandbox", "address": "/elsewhere/api.sock"}}
    (name, runtime), *others = config["plugins"]["io.containerd.cri.v1.runtime"]["containerd"][
        "runtimes"
    ].items()
    assert (runtime["sandboxer"], others) == (kind.value, [])
    manifest = yaml.safe_load(runtime_class(kind))
    assert manifest["handler"] == manifest["metadata"]["name"] == name
