"""The isolation types by name: which module makes pods of a type, and which class is its configuration.

The value of the enum is the type's name everywhere: package, configuration file, systemd unit, and `type` in
the configuration. A type's modules are imported only by the daemon that serves it.
"""

from __future__ import annotations

import enum
from typing import Any, Protocol

from common import config
from common.errors import InvalidArgument
from sandboxers.config import EngineConfig, GarbageConfig, LogConfig, MetricsConfig, PodConfig


class IsolationType(enum.StrEnum):
    """How pods are kept apart."""

    RUNC = "runc"
    WASM = "wasm"
    QEMU = "qemu"


class DaemonConfig(Protocol):
    """What every type's configuration has."""

    @property
    def socket(self) -> str: ...
    @property
    def state_dir(self) -> str: ...
    @property
    def log(self) -> LogConfig: ...
    @property
    def pod(self) -> PodConfig: ...
    @property
    def engine(self) -> EngineConfig: ...
    @property
    def gc(self) -> GarbageConfig: ...
    @property
    def metrics(self) -> MetricsConfig: ...


def load_config(path: str) -> tuple[IsolationType, DaemonConfig]:
    """Return the type that a configuration file selects, and the checked configuration; nothing else is loaded.

    :raise NotFound: there is no such file.
    :raise InvalidArgument: a key is unknown or mistyped, or the type is not one of `IsolationType`.
    """
    name = config.read_key(path, "type", IsolationType.RUNC.value)
    try:
        kind = IsolationType(name)
    except ValueError:
        known = ", ".join(kind.value for kind in IsolationType)
        raise InvalidArgument(f"{path}: type: {name!r} is not an isolation type (known: {known})") from None
    return kind, config.load(config_class_of(kind), path)


def config_class_of(kind: IsolationType) -> type[Any]:
    """Return a type's configuration class, loading nothing else of it."""
    match kind:
        case IsolationType.RUNC:
            from sandboxers.runc.config import RuncConfig

            return RuncConfig
        case IsolationType.QEMU:
            from sandboxers.qemu.config import QemuConfig

            return QemuConfig
        case IsolationType.WASM:
            from sandboxers.wasm.config import WasmConfig

            return WasmConfig


def sandboxer_of(kind: IsolationType) -> Any:
    """Return a type's sandboxer class, loading its modules."""
    match kind:
        case IsolationType.RUNC:
            from sandboxers.runc.sandboxer import RuncSandboxer

            return RuncSandboxer
        case IsolationType.QEMU:
            from sandboxers.qemu.sandboxer import QemuSandboxer

            return QemuSandboxer
        case IsolationType.WASM:
            from sandboxers.wasm.sandboxer import WasmSandboxer

            return WasmSandboxer


def examine_of(kind: IsolationType) -> Any:
    """Return what asks the node for a type: a coroutine function of its configuration and an `Examination`."""
    match kind:
        case IsolationType.RUNC:
            from sandboxers.runc.doctor import examine

            return examine
        case IsolationType.QEMU:
            from sandboxers.qemu.doctor import examine as examine_qemu

            return examine_qemu
        case IsolationType.WASM:
            from sandboxers.wasm.doctor import examine as examine_wasm

            return examine_wasm
