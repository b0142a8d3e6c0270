"""What `sandboxctl run` needs of a node beside its daemons, as findings of `sandboxctl doctor`."""

from __future__ import annotations

import os

from sandboxctl.embedded.cni import BRIDGE, PLUGIN_DIRECTORIES
from sandboxers.doctor import Examination, Finding, Severity

_SUBJECT = "sandboxctl run"


async def examine_embedded(examination: Examination) -> list[Finding]:
    """Look for what unpacks images and for what makes networks; pods run without either, of other kinds."""
    version = await examination.version("umoci")
    if version is None:
        images = Finding(
            Severity.NOTE,
            _SUBJECT,
            "no umoci, which unpacks images: only root file systems can be run",
            "apt-get install umoci",
        )
    else:
        images = Finding(Severity.OK, _SUBJECT, version)
    place = next((path for path in PLUGIN_DIRECTORIES if os.access(f"{path}/{BRIDGE}", os.X_OK)), None)
    if place is None:
        networks = Finding(
            Severity.NOTE,
            _SUBJECT,
            "no CNI plugins: pods have the host's network or none",
            "apt-get install containernetworking-plugins iptables",
        )
    else:
        networks = Finding(Severity.OK, _SUBJECT, f"CNI plugins in {place}")
    return [images, networks]
