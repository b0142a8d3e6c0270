"""The files that a pod's containers share: /etc/hostname, /etc/hosts and /etc/resolv.conf.

For proxied sandboxes nobody else makes them (engine contract section 5).
"""

from __future__ import annotations

import os

from sandboxers.pod_config import PodConfig


def write_pod_files(pod: PodConfig, directory: str) -> dict[str, str]:
    """Write the files into a new directory and return {destination in the container: path}."""
    os.mkdir(directory, 0o755)
    for name, text in pod_file_texts(pod).items():
        with open(f"{directory}/{name}", "x", encoding="utf-8", errors="surrogateescape") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
    return pod_files(directory)


def pod_file_texts(pod: PodConfig) -> dict[str, str]:
    """Return {name below /etc: text}; what the pod does not say is as on the host."""
    return {
        "hostname": (pod.hostname or os.uname().nodename) + "\n",
        "hosts": _host_file("/etc/hosts"),
        "resolv.conf": resolv_conf(pod) or _host_file("/etc/resolv.conf"),
    }


def pod_files(directory: str) -> dict[str, str]:
    """Return {destination in the container: path} of the files that write_pod_files() makes."""
    return {f"/etc/{name}": f"{directory}/{name}" for name in ("hostname", "hosts", "resolv.conf")}


def resolv_conf(pod: PodConfig) -> str:
    """Return the resolv.conf of a pod with DNS settings of its own, or "" (resolv.conf(5))."""
    lines = []
    if pod.dns_searches:
        lines.append(f"search {' '.join(pod.dns_searches)}")
    lines += [f"nameserver {server}" for server in pod.dns_servers]
    if pod.dns_options:
        lines.append(f"options {' '.join(pod.dns_options)}")
    return "".join(f"{line}\n" for line in lines)


def _host_file(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return ""
