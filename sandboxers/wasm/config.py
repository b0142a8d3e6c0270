"""The configuration of the wasm sandboxer: every key that it reads, with its default and its meaning."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import absolute_path, option
from sandboxers.config import (
    EngineConfig,
    GarbageConfig,
    LogConfig,
    MetricsConfig,
    PodConfig,
    socket_option,
    state_dir_option,
    type_option,
)
from sandboxers.wasm.engines import EngineName


@dataclass(frozen=True, slots=True)
class ModulesConfig:
    """What runs the modules, and how they are compiled: once each, in a process of its own."""

    engine: EngineName = option(
        EngineName.WASMTIME,
        "'wasmtime' (the extra sandboxd[wasm]) or 'wasmedge' (its C library, libwasmedge).",
    )
    cache_dir: str = option(
        "/var/cache/sandboxd/wasm",
        "Where compiled modules are kept: native code, so a directory of root's alone, which outlasts the boot.",
        check=absolute_path,
    )
    cache_size_mib: int = option(
        1024,
        "How large the cache may become; what was not used for longest goes first. A module may take half of it.",
        minimum=2,
    )
    compile_timeout_s: float = option(
        120.0,
        "How long compiling one module may take before it is given up.",
        minimum=1.0,
        maximum=3600.0,
    )
    compile_memory_mib: int = option(
        4096, "How much address space compiling one module may take before it is given up.", minimum=256
    )


@dataclass(frozen=True, slots=True)
class WasmConfig:
    """Configuration of the wasm sandboxer. Every key is shown with its default; a key that is left out has
    that value, and an unknown one is an error."""

    type: str = type_option("wasm")
    socket: str = socket_option("wasm")
    state_dir: str = state_dir_option("wasm")
    log: LogConfig = LogConfig()
    engine: EngineConfig = EngineConfig()
    modules: ModulesConfig = ModulesConfig()
    pod: PodConfig = PodConfig()
    gc: GarbageConfig = GarbageConfig()
    metrics: MetricsConfig = MetricsConfig()
