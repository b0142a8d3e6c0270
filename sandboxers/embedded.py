"""Which pods and containers have `sandboxctl run` for their engine, as its records tell: nobody else knows them.

<EMBEDDED_DIR>/<pod>/pod.json                  the pod exists as long as this record does
<EMBEDDED_DIR>/<pod>/bundles/<container>/      a container's bundle
<EMBEDDED_DIR>/.daemons/<type>/config.yaml     a daemon that serves such pods alone
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

EMBEDDED_DIR: Final = "/run/sandboxd/embedded"
RECORD_FILE: Final = "pod.json"
BUNDLES: Final = "bundles"
DAEMONS: Final = ".daemons"
DAEMON_CONFIG_FILE: Final = "config.yaml"


def embedded_pods(directory: str = EMBEDDED_DIR) -> list[str]:
    """Return the ids of the pods on record."""
    return [name for name in _names(directory) if is_embedded(name, directory)]


def is_embedded(pod_id: str, directory: str = EMBEDDED_DIR) -> bool:
    """Tell whether a pod is on record here."""
    return os.path.exists(f"{directory}/{pod_id}/{RECORD_FILE}")


def embedded_containers(directory: str = EMBEDDED_DIR) -> list[str]:
    """Return the ids of the containers of these pods."""
    return [
        container for pod in embedded_pods(directory) for container in _names(f"{directory}/{pod}/{BUNDLES}")
    ]


def embedded_daemons(directory: str = EMBEDDED_DIR) -> list[str]:
    """Return the configuration files of the daemons that run for such pods alone."""
    paths = (
        f"{directory}/{DAEMONS}/{name}/{DAEMON_CONFIG_FILE}" for name in _names(f"{directory}/{DAEMONS}")
    )
    return [path for path in paths if os.path.exists(path)]


def _names(directory: str) -> Iterator[str]:
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return
    yield from (name for name in names if not name.startswith("."))
