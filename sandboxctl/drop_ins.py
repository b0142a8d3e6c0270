"""What containerd and Kubernetes must be told so that pods of a type run here: a drop-in and a RuntimeClass.

`scripts/generate-configs` writes them to configs/, for the defaults of every type.
"""

from __future__ import annotations

from typing import NamedTuple

from sandboxers.isolation import IsolationType

_HEAD = """\
# Drop-in for containerd >= 2.0.6: pods of the handler "{handler}" {what}.
# Copy it to /etc/containerd/conf.d/, see that /etc/containerd/config.toml has
#     imports = ["/etc/containerd/conf.d/*.toml"]
# and restart containerd. Running pods of other handlers are not touched.
version = 3

[proxy_plugins.{type}]
  type = "sandbox"
  # `socket` in configs/{type}.yaml. A plain path, without a scheme.
  address = "{socket}"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{handler}]
"""
_FEATURES = """\
  # Never executed to start anything. This type is the only one whose runtime containerd asks for its
  # features; without the options below it would {without}.
  runtime_type = "io.containerd.runc.v2"
  sandboxer = "{type}"

  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{handler}.options]
    BinaryName = "/usr/bin/crun"
    SystemdCgroup = false
"""
_MACHINE = """\
  # Never executed to start anything, but it must be found: `containerd-shim-sandboxd-v1`, installed with sandboxd,
  # on containerd's PATH. No table of options may follow: containerd would fail to read it for this type.
  runtime_type = "io.containerd.sandboxd.v1"
  sandboxer = "{type}"
  # A privileged container gets the devices of its virtual machine, not those of the node.
  privileged_without_host_devices = true
"""
_RUNTIME_CLASS = """\
# Pods with `runtimeClassName: {handler}` {class_what}.
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata:
  name: {handler}
# The name of the runtime in configs/containerd/sandboxd-{type}.toml.
handler: {handler}
"""
_QEMU_OVERHEAD = """\
# What a pod needs besides its containers, in the pod's cgroup: 96 MiB of the guest for its kernel and agent
# (`size.guest_overhead_mib` in configs/qemu.yaml), 132 MiB of QEMU as measured by `make bench-qemu` under emulation,
# 4 MiB of virtiofsd and the vsock daemon.
overhead:
  podFixed:
    memory: 232Mi
    cpu: 50m
"""


class _Handler(NamedTuple):
    """A type as containerd and Kubernetes know it: the handler's name, and what is said of it in the two files."""

    handler: str
    what: str
    class_what: str
    runtime: str
    without: str = ""
    overhead: str = ""


_HANDLERS = {
    IsolationType.RUNC: _Handler(
        "sandboxd",
        "are run by sandboxd instead of a shim",
        "are run by the runc sandboxer of sandboxd",
        _FEATURES,
        "offer neither user namespaces nor recursive read-only mounts",
    ),
    IsolationType.WASM: _Handler(
        "sandboxd-wasm",
        "are WebAssembly modules, run by sandboxd",
        "are run by the wasm sandboxer of sandboxd",
        _FEATURES,
        "not offer recursive read-only mounts",
    ),
    IsolationType.QEMU: _Handler(
        "sandboxd-qemu",
        "run in virtual machines of their own",
        "run in virtual machines of their own",
        _MACHINE,
        overhead=_QEMU_OVERHEAD,
    ),
}


def handler_name(kind: IsolationType) -> str:
    """Return what containerd's runtime and Kubernetes' RuntimeClass of a type are called."""
    return _HANDLERS[kind].handler


def drop_in(kind: IsolationType, socket: str) -> str:
    """Return containerd's drop-in for a type whose daemon listens on `socket`."""
    handler = _HANDLERS[kind]
    return (_HEAD + handler.runtime).format(type=kind.value, socket=socket, **handler._asdict())


def runtime_class(kind: IsolationType) -> str:
    """Return Kubernetes' RuntimeClass for a type."""
    handler = _HANDLERS[kind]
    return _RUNTIME_CLASS.format(type=kind.value, **handler._asdict()) + handler.overhead
