"""Making a container's cgroup and its limits, where no OCI runtime does so.

Sources: OCI runtime-spec config-linux.md "Control groups"; the kernel's cgroup-v1 documents and cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from common.cgroup.files import read_text, write_text
from common.cgroup.locate import UNIFIED, Cgroup
from common.errors import AlreadyExists, InvalidArgument

_V2_CONTROLLERS = ("cpu", "memory", "pids", "cpuset", "io")
_V2_NEEDED = {"cpu", "memory", "pids"}


def make_cgroup(cgroup: Cgroup) -> None:
    """Make a container's cgroup, with the parents that are missing.

    :raise AlreadyExists: processes live in it already.
    """
    for controller in _controllers(cgroup):
        directory = cgroup.directory(controller)
        if directory is None:
            continue
        if (
            not _make(cgroup, controller, directory)
            and (read_text(f"{directory}/cgroup.procs") or "").strip()
        ):
            raise AlreadyExists(f"cgroup {cgroup.path} holds the processes of another container")
        if controller == "cpuset":
            _inherit_cpuset(cgroup)


def join_cgroup(cgroup: Cgroup) -> None:
    """Move this process into a cgroup that exists. Raises OSError with the path."""
    for controller in _controllers(cgroup):
        directory = cgroup.directory(controller)
        if directory is not None:
            write_text(f"{directory}/cgroup.procs", "0")


def apply_limits(cgroup: Cgroup, resources: Mapping[str, Any]) -> None:
    """Apply `linux.resources` of a specification, as far as it is about memory, CPU, PIDs and unified keys.

    :raise InvalidArgument: a limit is malformed, or the kernel refuses it.
    """
    settings = _v2_settings(resources) if cgroup.unified else _v1_settings(resources)
    for controller, name, value in settings:
        directory = cgroup.directory(controller)
        if directory is None:
            raise InvalidArgument(f"cgroup {cgroup.path} has no {controller} controller for {name}")
        try:
            write_text(f"{directory}/{name}", value)
        except FileNotFoundError as error:
            if "memsw" in name:
                continue  # this kernel does not account swap, so there is none to limit
            raise InvalidArgument(f"cgroup {cgroup.path} has no {name}, so no limit {value}") from error
        except OSError as error:
            raise InvalidArgument(
                f"cgroup {cgroup.path}: cannot set {name} to {value}: {error.strerror}"
            ) from error


def _controllers(cgroup: Cgroup) -> list[str]:
    return [UNIFIED] if cgroup.unified else sorted(cgroup.controllers - {UNIFIED})


def _make(cgroup: Cgroup, controller: str, directory: str) -> bool:
    """Make one directory of a cgroup; tell whether it was not there before."""
    if cgroup.unified:
        _delegate(os.path.dirname(directory))
    try:
        os.mkdir(directory, 0o755)
        return True
    except FileExistsError:
        return False
    except FileNotFoundError:
        pass
    for path in _lineage(cgroup.path):
        if (made := cgroup.directory_of(controller, path)) is not None:
            if cgroup.unified:
                _delegate(os.path.dirname(made))
            with contextlib.suppress(FileExistsError):
                os.mkdir(made, 0o755)
    return True


def _lineage(path: str) -> list[str]:
    parts = path.strip("/").split("/")
    return ["/" + "/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def _delegate(directory: str) -> None:
    """Let the children of a v2 cgroup have the controllers (cgroup-v2.rst, "Enabling and Disabling")."""
    given = set((read_text(f"{directory}/cgroup.subtree_control") or "").split())
    if given >= _V2_NEEDED:
        return
    for controller in set((read_text(f"{directory}/cgroup.controllers") or "").split()) - given:
        if controller in _V2_CONTROLLERS:
            write_text(f"{directory}/cgroup.subtree_control", f"+{controller}")


def _inherit_cpuset(cgroup: Cgroup) -> None:
    """Give a v1 cpuset, which begins empty and takes no process so, what its parent has (cpusets.rst)."""
    leaf = cgroup.directory_of("cpuset", cgroup.path)
    assert leaf is not None
    for name in ("cpuset.cpus", "cpuset.mems"):
        _inherit(leaf, name)


def _inherit(directory: str, name: str) -> str:
    text = (read_text(f"{directory}/{name}") or "").strip()
    if not text and os.path.exists(f"{directory}/cgroup.procs"):
        text = _inherit(os.path.dirname(directory), name)
        write_text(f"{directory}/{name}", text)
    return text


def _v1_settings(resources: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    memory, cpu = _section(resources, "memory"), _section(resources, "cpu")
    limit, swap = _number(memory, "limit"), _number(memory, "swap")
    if swap is not None and limit is not None:
        # The limit with swap may never be below the other one: make room, set both, in an order that always works.
        yield "memory", "memory.memsw.limit_in_bytes", "-1"
    if limit is not None:
        yield "memory", "memory.limit_in_bytes", str(limit)
    if swap is not None:
        yield "memory", "memory.memsw.limit_in_bytes", str(swap)
    if (reservation := _number(memory, "reservation")) is not None:
        yield "memory", "memory.soft_limit_in_bytes", str(reservation)
    if shares := _number(cpu, "shares"):
        yield "cpu", "cpu.shares", str(shares)
    if period := _number(cpu, "period"):
        yield "cpu", "cpu.cfs_period_us", str(period)
    if quota := _number(cpu, "quota"):
        yield "cpu", "cpu.cfs_quota_us", str(quota)
    for name in ("cpus", "mems"):
        if value := _text(cpu, name):
            yield "cpuset", f"cpuset.{name}", value
    yield from _pids(resources)


def _v2_settings(resources: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    memory, cpu = _section(resources, "memory"), _section(resources, "cpu")
    limit, swap = _number(memory, "limit"), _number(memory, "swap")
    if swap is not None:
        # In a specification swap includes memory, in v2 it does not.
        beyond = swap if swap < 0 else swap - max(limit or 0, 0)
        yield "memory", "memory.swap.max", _or_max(beyond)
    if limit is not None:
        yield "memory", "memory.max", _or_max(limit)
    if (reservation := _number(memory, "reservation")) is not None:
        yield "memory", "memory.low", _or_max(reservation)
    if shares := _number(cpu, "shares"):
        # 2..262144 to 1..10000, as OCI runtimes do.
        yield "cpu", "cpu.weight", str(1 + (min(max(shares, 2), 262144) - 2) * 9999 // 262142)
    quota, period = _number(cpu, "quota"), _number(cpu, "period")
    if quota or period:
        yield "cpu", "cpu.max", f"{_or_max(quota or -1)} {period or 100000}"
    for name in ("cpus", "mems"):
        if value := _text(cpu, name):
            yield "cpuset", f"cpuset.{name}", value
    yield from _pids(resources)
    for name, value in _section(resources, "unified").items():
        if "/" in name or not isinstance(value, str):
            raise InvalidArgument(f"{name!r} is not a file of a cgroup")
        yield name.partition(".")[0], name, value


def _pids(resources: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    if limit := _number(_section(resources, "pids"), "limit"):
        yield "pids", "pids.max", _or_max(limit)


def _section(resources: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = resources.get(name) or {}
    if not isinstance(section, dict):
        raise InvalidArgument(f"resources.{name} must be an object")
    return section


def _number(section: Mapping[str, Any], name: str) -> int | None:
    value = section.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise InvalidArgument(f"the limit {name} must be a number, not {value!r}")
    return value


def _text(section: Mapping[str, Any], name: str) -> str:
    value = section.get(name) or ""
    if not isinstance(value, str):
        raise InvalidArgument(f"the limit {name} must be a string, not {value!r}")
    return value


def _or_max(value: int) -> str:
    return "max" if value < 0 else str(value)
