"""Calls of plugins, which are programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.process.exits import ExitWatcher
from sandboxctl.embedded import cni
from sandboxctl.embedded.cni import Network, parse_network


@pytest.mark.parametrize("capabilities", ["null", "{}", '{"portMappings": false}'])
async def test_a_plugin_without_capabilities(
    watcher: ExitWatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capabilities: str
) -> None:
    monkeypatch.setattr(cni, "PLUGIN_DIRECTORIES", (str(tmp_path),))
    (tmp_path / "echo").write_text("#!/bin/sh\nexec cat\n")
    (tmp_path / "echo").chmod(0o755)
    text = f'{{"name": "net", "plugins": [{{"type": "echo", "capabilities": {capabilities}}}]}}'
    network = Network(parse_network(text, "net.conf"), watcher)
    told = await network.attach("pod", "/netns", [])
    assert told == {"type": "echo", "name": "net", "cniVersion": "1.0.0"}
    assert await network.detach("pod", "/netns", [], {}) == []
