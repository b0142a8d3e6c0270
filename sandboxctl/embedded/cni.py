"""Pod networks by the plugins of CNI, which are programs: one call each, in the order of a configuration.

Source: CNI specification 1.0.0 (containernetworking/cni, SPEC.md), sections 1 to 4.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from common.errors import Internal, InvalidArgument, NotFound
from common.process.exits import ExitWatcher
from common.process.spawn import CAPTURE, CLEAN_ENVIRONMENT, run
from sandboxctl.embedded.plan import Port

INTERFACE: Final = "eth0"
PLUGIN_DIRECTORIES: Final = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")
CONFIG_DIRECTORY: Final = "/etc/cni/net.d"
BRIDGE: Final = "bridge"
_VERSION = "1.0.0"
_TIMEOUT_S = 60.0

BRIDGE_NETWORK: Final[dict[str, Any]] = {
    "cniVersion": _VERSION,
    "name": "sandboxd",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "sandboxd0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.87.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}
"""What `--network bridge` stands for: a bridge of our own, from which connections to elsewhere are masqueraded."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """What a pod got: its addresses, without prefix lengths, and the name servers that the network knows."""

    addresses: tuple[str, ...]
    dns_servers: tuple[str, ...] = ()
    dns_searches: tuple[str, ...] = ()


class Network:
    """A network that pods can be attached to. `config` is a configuration list as JSON-able data."""

    def __init__(self, config: Mapping[str, Any], watcher: ExitWatcher) -> None:
        self._config = config
        self._watcher = watcher
        self._plugins: Sequence[Mapping[str, Any]] = config["plugins"]

    async def attach(self, pod_id: str, netns: str, ports: Sequence[Port]) -> dict[str, Any]:
        """Attach a pod, and return the result as the last plugin tells it; all or nothing.

        :raise NotFound: a plugin is not installed.
        :raise InvalidArgument: a plugin refuses, in its own words.
        """
        result: dict[str, Any] = {}
        try:
            for plugin in self._plugins:
                text = await self._call("ADD", plugin, pod_id, netns, ports, result)
                result = _parse_result(text, plugin["type"])
        except BaseException:
            await self.detach(pod_id, netns, ports, result)
            raise
        return result

    async def detach(
        self, pod_id: str, netns: str, ports: Sequence[Port], result: Mapping[str, Any]
    ) -> list[str]:
        """Detach a pod, also one that was attached only in part; return what could not be done."""
        failures = []
        for plugin in reversed(self._plugins):
            try:
                await self._call("DEL", plugin, pod_id, netns, ports, result)
            except (InvalidArgument, NotFound, Internal) as error:
                failures.append(str(error))
        return failures

    async def _call(
        self,
        command: str,
        plugin: Mapping[str, Any],
        pod_id: str,
        netns: str,
        ports: Sequence[Port],
        result: Mapping[str, Any],
    ) -> bytes:
        kind = plugin["type"]
        config = {**plugin, "name": self._config["name"], "cniVersion": self._config["cniVersion"]}
        if (config.pop("capabilities", None) or {}).get("portMappings"):
            config["runtimeConfig"] = {"portMappings": [_port_mapping(port) for port in ports]}
        if result:
            config["prevResult"] = result
        environment = {
            **CLEAN_ENVIRONMENT,
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod_id,
            "CNI_NETNS": netns,
            "CNI_IFNAME": INTERFACE,
            "CNI_PATH": ":".join(PLUGIN_DIRECTORIES),
            "CNI_ARGS": "IgnoreUnknown=1",
        }
        done = await run(
            [_find_plugin(kind)],
            watcher=self._watcher,
            input=json.dumps(config).encode(),
            stdout=CAPTURE,
            stderr=CAPTURE,
            env=environment,
            timeout_s=_TIMEOUT_S,
        )
        if done.status.code != 0:
            raise InvalidArgument(
                f"the network {self._config['name']!r}: CNI plugin {kind} refuses {command}: {_reason(done.stdout)}"
            )
        return done.stdout


def load_network(name: str, ports: Sequence[Port]) -> dict[str, Any]:
    """Return the checked configuration list of a network: "bridge", a file, or the name of one in `CONFIG_DIRECTORY`.

    Where ports are wanted and none of its plugins maps them, `portmap` is added.
    :raise NotFound, InvalidArgument: there is none, or it is malformed.
    """
    config = BRIDGE_NETWORK if name == BRIDGE else _read(name)
    plugins = list(config["plugins"])
    if ports and not any((plugin.get("capabilities") or {}).get("portMappings") for plugin in plugins):
        plugins.append({"type": "portmap", "capabilities": {"portMappings": True}})
    return {**config, "plugins": plugins}


def addresses_of(result: Mapping[str, Any]) -> Addresses:
    """Return what a result says of the pod's addresses."""
    ips = result.get("ips") or []
    dns = result.get("dns") or {}
    return Addresses(
        tuple(str(entry.get("address", "")).partition("/")[0] for entry in ips if isinstance(entry, dict)),
        tuple(map(str, dns.get("nameservers") or ())),
        tuple(map(str, dns.get("search") or ())),
    )


def parse_network(text: str, where: str) -> dict[str, Any]:
    """Return a configuration list, also for a single plugin's configuration. Raises InvalidArgument."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{where}: not JSON: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("name"), str):
        raise InvalidArgument(f"{where}: no CNI configuration: it has no name")
    if "plugins" not in config:
        config = {"name": config["name"], "cniVersion": config.get("cniVersion"), "plugins": [config]}
    plugins = config["plugins"]
    if not isinstance(plugins, list) or not plugins:
        raise InvalidArgument(f"{where}: no CNI configuration: it has no plugins")
    for plugin in plugins:
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        if not isinstance(kind, str) or "/" in kind or not isinstance(plugin.get("capabilities") or {}, dict):
            raise InvalidArgument(f"{where}: a plugin has no usable type")
    return {**config, "cniVersion": config.get("cniVersion") or _VERSION}


def _read(name: str) -> dict[str, Any]:
    # What is in the working directory takes no network's place.
    candidates = [name] if "/" in name else [*_named_files(name), name]
    for path in candidates:
        try:
            with open(path, encoding="utf-8") as file:
                return parse_network(file.read(), path)
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"{path}: cannot be read: {error}") from None
    raise NotFound(
        f"there is no network {name[:200]!r}: give host, none, bridge, or the file of a CNI configuration,"
        f" by its path or by the network's name in {CONFIG_DIRECTORY}"
    )


def _named_files(name: str) -> list[str]:
    """The files in the directory that say that they are this network."""
    found = []
    try:
        entries = sorted(os.listdir(CONFIG_DIRECTORY))
    except (FileNotFoundError, NotADirectoryError):
        return []
    for entry in entries:
        path = f"{CONFIG_DIRECTORY}/{entry}"
        if entry.endswith((".conflist", ".conf", ".json")):
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    text = file.read()
                if parse_network(text, path)["name"] == name:
                    found.append(path)
            except (InvalidArgument, OSError):
                continue  # somebody else's, and not the one that is asked for
    return found


def _find_plugin(kind: str) -> str:
    for directory in PLUGIN_DIRECTORIES:
        if os.access(path := f"{directory}/{kind}", os.X_OK):
            return path
    raise NotFound(
        f"the CNI plugin {kind} is in none of {', '.join(PLUGIN_DIRECTORIES)}:"
        " apt-get install containernetworking-plugins, or use --network host or none"
    )


def _port_mapping(port: Port) -> dict[str, Any]:
    mapping: dict[str, Any] = {
        "hostPort": port.host_port,
        "containerPort": port.container_port,
        "protocol": port.protocol,
    }
    return {**mapping, "hostIP": port.host_ip} if port.host_ip else mapping


def _parse_result(text: bytes, kind: str) -> dict[str, Any]:
    try:
        result = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Internal(f"CNI plugin {kind} answers with something that is not JSON: {error}") from None
    if not isinstance(result, dict):
        raise Internal(f"CNI plugin {kind} answers with something that is no result")
    return result


def _reason(output: bytes) -> str:
    try:
        error = json.loads(output)
        return f"{error.get('msg', '')} {error.get('details', '')}".strip()
    except (ValueError, RecursionError, AttributeError):
        return output.decode(errors="replace").strip()[:300] or "it gives no reason"
