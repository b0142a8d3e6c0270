from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AnnounceRequest(_message.Message):
    __slots__ = ("protocol", "agent_version", "kernel_release", "boot_id", "cpus", "memory_bytes", "clock_ns", "clock_source", "exec_ns", "ready_ns")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    KERNEL_RELEASE_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CLOCK_NS_FIELD_NUMBER: _ClassVar[int]
    CLOCK_SOURCE_FIELD_NUMBER: _ClassVar[int]
    EXEC_NS_FIELD_NUMBER: _ClassVar[int]
    READY_NS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    agent_version: str
    kernel_release: str
    boot_id: str
    cpus: int
    memory_bytes: int
    clock_ns: int
    clock_source: str
    exec_ns: int
    ready_ns: int
    def __init__(self, protocol: _Optional[int] = ..., agent_version: _Optional[str] = ..., kernel_release: _Optional[str] = ..., boot_id: _Optional[str] = ..., cpus: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., clock_ns: _Optional[int] = ..., clock_source: _Optional[str] = ..., exec_ns: _Optional[int] = ..., ready_ns: _Optional[int] = ...) -> None: ...

class ConfigureRequest(_message.Message):
    __slots__ = ("sandbox_id", "hostname", "hosts", "resolv_conf", "sysctls", "shm_size_bytes", "entropy", "clock_ns", "interfaces", "routes", "neighbours", "shares", "shared_pid_namespace")
    class SysctlsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    RESOLV_CONF_FIELD_NUMBER: _ClassVar[int]
    SYSCTLS_FIELD_NUMBER: _ClassVar[int]
    SHM_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_FIELD_NUMBER: _ClassVar[int]
    CLOCK_NS_FIELD_NUMBER: _ClassVar[int]
    INTERFACES_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOURS_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    SHARED_PID_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    sandbox_id: str
    hostname: str
    hosts: str
    resolv_conf: str
    sysctls: _containers.ScalarMap[str, str]
    shm_size_bytes: int
    entropy: bytes
    clock_ns: int
    interfaces: _containers.RepeatedCompositeFieldContainer[Interface]
    routes: _containers.RepeatedCompositeFieldContainer[Route]
    neighbours: _containers.RepeatedCompositeFieldContainer[Neighbour]
    shares: _containers.RepeatedCompositeFieldContainer[MountShareRequest]
    shared_pid_namespace: bool
    def __init__(self, sandbox_id: _Optional[str] = ..., hostname: _Optional[str] = ..., hosts: _Optional[str] = ..., resolv_conf: _Optional[str] = ..., sysctls: _Optional[_Mapping[str, str]] = ..., shm_size_bytes: _Optional[int] = ..., entropy: _Optional[bytes] = ..., clock_ns: _Optional[int] = ..., interfaces: _Optional[_Iterable[_Union[Interface, _Mapping]]] = ..., routes: _Optional[_Iterable[_Union[Route, _Mapping]]] = ..., neighbours: _Optional[_Iterable[_Union[Neighbour, _Mapping]]] = ..., shares: _Optional[_Iterable[_Union[MountShareRequest, _Mapping]]] = ..., shared_pid_namespace: _Optional[bool] = ...) -> None: ...

class SetClockRequest(_message.Message):
    __slots__ = ("clock_ns",)
    CLOCK_NS_FIELD_NUMBER: _ClassVar[int]
    clock_ns: int
    def __init__(self, clock_ns: _Optional[int] = ...) -> None: ...

class SetClockResponse(_message.Message):
    __slots__ = ("drift_ns", "source")
    DRIFT_NS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    drift_ns: int
    source: str
    def __init__(self, drift_ns: _Optional[int] = ..., source: _Optional[str] = ...) -> None: ...

class Interface(_message.Message):
    __slots__ = ("mac", "name", "mtu", "addresses", "routes", "neighbours")
    MAC_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MTU_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOURS_FIELD_NUMBER: _ClassVar[int]
    mac: str
    name: str
    mtu: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    routes: _containers.RepeatedCompositeFieldContainer[Route]
    neighbours: _containers.RepeatedCompositeFieldContainer[Neighbour]
    def __init__(self, mac: _Optional[str] = ..., name: _Optional[str] = ..., mtu: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ..., routes: _Optional[_Iterable[_Union[Route, _Mapping]]] = ..., neighbours: _Optional[_Iterable[_Union[Neighbour, _Mapping]]] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("destination", "gateway", "interface", "source", "scope", "metric", "on_link")
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    INTERFACE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    ON_LINK_FIELD_NUMBER: _ClassVar[int]
    destination: str
    gateway: str
    interface: str
    source: str
    scope: int
    metric: int
    on_link: bool
    def __init__(self, destination: _Optional[str] = ..., gateway: _Optional[str] = ..., interface: _Optional[str] = ..., source: _Optional[str] = ..., scope: _Optional[int] = ..., metric: _Optional[int] = ..., on_link: _Optional[bool] = ...) -> None: ...

class Neighbour(_message.Message):
    __slots__ = ("address", "mac", "interface")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    INTERFACE_FIELD_NUMBER: _ClassVar[int]
    address: str
    mac: str
    interface: str
    def __init__(self, address: _Optional[str] = ..., mac: _Optional[str] = ..., interface: _Optional[str] = ...) -> None: ...

class RemoveInterfaceRequest(_message.Message):
    __slots__ = ("mac",)
    MAC_FIELD_NUMBER: _ClassVar[int]
    mac: str
    def __init__(self, mac: _Optional[str] = ...) -> None: ...

class MountShareRequest(_message.Message):
    __slots__ = ("tag", "read_only")
    TAG_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    tag: str
    read_only: bool
    def __init__(self, tag: _Optional[str] = ..., read_only: _Optional[bool] = ...) -> None: ...

class UnmountShareRequest(_message.Message):
    __slots__ = ("tag",)
    TAG_FIELD_NUMBER: _ClassVar[int]
    tag: str
    def __init__(self, tag: _Optional[str] = ...) -> None: ...

class FindDiskRequest(_message.Message):
    __slots__ = ("serial",)
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    serial: str
    def __init__(self, serial: _Optional[str] = ...) -> None: ...

class FindDiskResponse(_message.Message):
    __slots__ = ("path", "major", "minor")
    PATH_FIELD_NUMBER: _ClassVar[int]
    MAJOR_FIELD_NUMBER: _ClassVar[int]
    MINOR_FIELD_NUMBER: _ClassVar[int]
    path: str
    major: int
    minor: int
    def __init__(self, path: _Optional[str] = ..., major: _Optional[int] = ..., minor: _Optional[int] = ...) -> None: ...

class OnlineRequest(_message.Message):
    __slots__ = ("cpus", "memory_bytes")
    CPUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    cpus: int
    memory_bytes: int
    def __init__(self, cpus: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class OnlineResponse(_message.Message):
    __slots__ = ("cpus", "memory_bytes")
    CPUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    cpus: int
    memory_bytes: int
    def __init__(self, cpus: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class StatsResponse(_message.Message):
    __slots__ = ("clock_ns", "memory_total_bytes", "memory_available_bytes", "cpu_busy_ns", "agent_memory_bytes")
    CLOCK_NS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_BUSY_NS_FIELD_NUMBER: _ClassVar[int]
    AGENT_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    clock_ns: int
    memory_total_bytes: int
    memory_available_bytes: int
    cpu_busy_ns: int
    agent_memory_bytes: int
    def __init__(self, clock_ns: _Optional[int] = ..., memory_total_bytes: _Optional[int] = ..., memory_available_bytes: _Optional[int] = ..., cpu_busy_ns: _Optional[int] = ..., agent_memory_bytes: _Optional[int] = ...) -> None: ...

class StreamEnd(_message.Message):
    __slots__ = ("id", "length")
    ID_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    id: str
    length: int
    def __init__(self, id: _Optional[str] = ..., length: _Optional[int] = ...) -> None: ...
