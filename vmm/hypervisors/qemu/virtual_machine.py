"""One QEMU machine with its helpers (`VirtualMachine`).

<directory>/machine.json            what a new daemon needs
            monitor.sock            QMP
            console.log             what the guest has written to its console
            <role>.log              messages of a process: qemu, vsock, share-<id>
            vsock, vsock.backend    the daemon's sockets for the host and for QEMU, where the kernel has no vhost-vsock
            share<slot>.sock        a virtiofsd's
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from common.completion import Completion
from common.errors import DeadlineExceeded, Internal, SandboxdError, Unavailable
from common.failpoints import Failpoint, failpoint
from common.log import get_logger
from common.process.exits import ExitStatus
from common.records import read_record, write_record
from common.states import advance
from common.transport.streams import listen_unix
from vmm.hypervisors.hypervisor import ExitReason, GuestExit, OnExit
from vmm.hypervisors.machine import BootConfig, Device, NetworkInterface, Place
from vmm.hypervisors.processes import DriverParts, MachineProcesses
from vmm.hypervisors.qemu.backends import Backends, Equipment, tap_name
from vmm.hypervisors.qemu.command_line import Files, command_line
from vmm.hypervisors.qemu.devices import Wiring, qdev_id_of
from vmm.hypervisors.qemu.ending import QEMU, Ending
from vmm.hypervisors.qemu.monitor import COMMAND_LIMIT_S, Monitor
from vmm.hypervisors.qemu.prerequisites import check_installed, find_program
from vmm.hypervisors.qemu.qmp import Event
from vmm.hypervisors.qemu.slots import Slots
from vmm.hypervisors.record import RECORD_FILE, MachineRecord
from vmm.hypervisors.states import TRANSITIONS, MachineState, Trigger

_MONITOR_SOCKET = "monitor.sock"

# The kernel refuses one that another machine of this host has (vhost_vsock: EADDRINUSE); among so many none does.
_FIRST_CID = 1 << 16
_CID_END = (1 << 32) - 1

_START_LIMIT_S = 30.0
# A killed process is gone in milliseconds, unless it gets no time to be.
_KILL_LIMIT_S = 30.0
_RECOVER_LIMIT_S = 2.0
_DETACH_LIMIT_S = 10.0

log = get_logger()


class QemuMachine:
    """One machine (`VirtualMachine`)."""

    __slots__ = (
        "_backends",
        "_completion",
        "_ending",
        "_equipment",
        "_logs",
        "_monitor",
        "_on_exit",
        "_place",
        "_processes",
        "_slots",
        "_state",
        "_unplugged",
        "_vsock",
    )

    def __init__(self, equipment: Equipment, place: Place, parts: DriverParts) -> None:
        self._equipment = equipment
        self._place = place
        self._logs = parts.logs
        self._processes = MachineProcesses(parts, place, self._on_end, self._on_gone)
        self._monitor: Monitor | None = None
        self._state = MachineState.NEW
        self._slots = Slots(0)
        self._on_exit: OnExit | None = None
        self._completion: Completion[GuestExit] = Completion()
        self._ending = Ending()
        self._unplugged: dict[str, asyncio.Future[None]] = {}
        self._backends = Backends(equipment, place, self._processes)
        self._vsock = self._backends.vsock_address(secrets.randbelow(_CID_END - _FIRST_CID) + _FIRST_CID)

    @property
    def vsock(self) -> str:
        """The address of its vsock ports."""
        return self._vsock

    @property
    def console_path(self) -> str:
        """The file with what the guest has lately written to its console."""
        return self._path("console.log")

    @property
    def exit(self) -> GuestExit | None:
        """How it has ended, or None."""
        return self._completion.value

    def devices(self) -> frozenset[str]:
        """Return the ids of the late devices that it has."""
        return frozenset(self._slots.occupants)

    def pids(self) -> dict[str, int]:
        """Return its live processes by their role."""
        return self._processes.pids()

    # -- from start to end ---------------------------------------------------------------------------

    async def start(self, boot: BootConfig, devices: Sequence[Device], on_exit: OnExit) -> None:
        """Start it with these late devices, or leave nothing behind."""
        check_installed(self._equipment.programs, boot, devices, vhost_vsock=self._equipment.vhost_vsock)
        self._advance(Trigger.START)
        self._slots = Slots(boot.slots)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._abandon)
            self._record()
            failpoint(Failpoint.MACHINE_RECORDED)
            try:
                await self._launch(boot, devices)
                if self._ending.first_role:
                    raise Unavailable("it has ended already")
            except (Unavailable, Internal) as error:
                # A closed monitor: QEMU has ended, or is about to.
                if not self._ending.first_role and not isinstance(error, Unavailable):
                    raise
                raise Internal(f"the machine did not start: {await self._story()}") from None
            self._advance(Trigger.COME_UP)
            for device in devices:
                self._slots.settle(device.device_id)
            self._record()
            failpoint(Failpoint.MACHINE_STARTED)
            self._on_exit = on_exit
            undo.pop_all()

    async def stop(self, timeout_s: float) -> None:
        """Give a guest that was asked to end `timeout_s`; then end it by force."""
        if self._state in (MachineState.NEW, MachineState.ENDED):
            return
        self._ending.is_stopping = True
        failpoint(Failpoint.MACHINE_STOPPING)
        if timeout_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._processes.ended(QEMU)
        self._processes.kill()
        await self._processes.gone(_KILL_LIMIT_S)
        failpoint(Failpoint.MACHINE_STOPPED)

    async def wait(self) -> GuestExit:
        """Return the end as soon as there is one."""
        return await self._completion.wait()

    async def recover(self, on_exit: OnExit) -> bool:
        """Take up what an earlier daemon has started in this directory."""
        try:
            record, is_of_this_boot = read_record(self._path(RECORD_FILE), MachineRecord)
        except FileNotFoundError:
            return False
        self._vsock = record.vsock
        self._slots = Slots.from_record(record.slots, record.devices)
        self._advance(Trigger.START)
        missing = set(self._processes.adopt(record.processes) if is_of_this_boot else record.processes)
        if not record.started:
            await self._abandon()
            message = "sandboxd died while it started"
            self._completion.set(GuestExit(ExitReason.HYPERVISOR_ENDED, message, time.time_ns()))
            return False
        # A process that was not released has died with the daemon; a device that is gone has taken its own along.
        if record.reason or missing - self._slots.unsettled_roles():
            await self._end_processes()
            self._remove_sockets()
            self._end(self._end_on_record(record, missing))
            return False
        self._advance(Trigger.COME_UP)
        self._on_exit = on_exit
        self._logs.watch(self.console_path)
        try:
            await self._reconcile()
        except SandboxdError as error:
            # Frozen, perhaps: whoever needs its monitor later tries again.
            log.warning("machine.not_answering", directory=self._place.directory, error=error)
        return True

    def _end_on_record(self, record: MachineRecord, missing: set[str]) -> GuestExit:
        if record.reason:
            return GuestExit(ExitReason(record.reason), record.message, record.exited_at_ns)
        words = self._processes.words(QEMU)
        message = f"{', '.join(sorted(missing))} ended while no sandboxd watched" + (
            f": {words}" if words else ""
        )
        return GuestExit(ExitReason.HYPERVISOR_ENDED, message, time.time_ns())

    def close(self) -> None:
        """Let go of it without ending it."""
        self._processes.forget()
        self._logs.forget(self.console_path)
        self._close_monitor()

    # -- while it runs -------------------------------------------------------------------------------

    async def attach(self, device: Device) -> None:
        """Attach a device to the running machine, or leave nothing behind."""
        self._check(Trigger.USE)
        check_installed(self._equipment.programs, None, [device], vhost_vsock=self._equipment.vhost_vsock)
        slot = self._slots.free(device.device_id)
        wiring = self._backends.wire(device, slot, self._vsock, running=True)
        async with AsyncExitStack() as undo:
            undo.callback(self._vacate, device.device_id)
            self._slots.occupy(device.device_id, wiring)
            self._backends.hold(device, wiring)
            self._record()
            failpoint(Failpoint.DEVICE_RECORDED)
            try:
                await self._backends.serve(wiring.role)
                await self._plug(device, wiring, undo)
            except Internal:
                if wiring.role and not self._processes.lives(wiring.role):
                    raise self._backends.failure(wiring.role) from None
                raise
            failpoint(Failpoint.DEVICE_ATTACHED)
            self._slots.settle(device.device_id)
            self._record()
            undo.pop_all()

    async def detach(self, device_id: str) -> None:
        """Detach a device and wait until the guest has let go of it."""
        self._check(Trigger.USE)
        occupant = self._slots.occupant(device_id)
        self._slots.settle(device_id, False)
        self._record()
        failpoint(Failpoint.DEVICE_DETACHING)
        try:
            await self._unplug(device_id)
        except DeadlineExceeded:
            self._slots.settle(device_id)
            raise
        if occupant.remove:
            await self._execute(occupant.remove, occupant.key)
        self._vacate(device_id)
        self._record()
        failpoint(Failpoint.DEVICE_DETACHED)

    async def pause(self) -> None:
        """Stop the guest's processors.

        vhost-device-vsock 0.3.0 is told that its queues are gone, and does not recover from data that comes meanwhile.
        """
        # Before it is done: a guest that is stopped and was not to be has come to its end.
        self._advance(Trigger.PAUSE)
        await self._execute("stop")

    async def resume(self) -> None:
        """Let them go on."""
        self._check(Trigger.RESUME)
        await self._execute("cont")
        self._advance(Trigger.RESUME)

    # -- making --------------------------------------------------------------------------------------

    async def _launch(self, boot: BootConfig, devices: Sequence[Device]) -> None:
        wirings = []
        for device in devices:
            slot = self._slots.free(device.device_id)
            wiring = self._backends.wire(device, slot, self._vsock, running=False)
            self._slots.occupy(device.device_id, wiring)
            self._backends.hold(device, wiring)
            wirings.append(wiring)
        with listen_unix(self._path(_MONITOR_SOCKET)) as monitor:
            taps = [device.tap_fd for device in devices if isinstance(device, NetworkInterface)]
            files = Files(self.console_path, monitor.fileno())
            argv = command_line(
                find_program(self._equipment.programs.qemu), boot, self._equipment.accelerator, files, wirings
            )
            self._processes.hold(QEMU, argv, in_netns=True, pass_fds=[monitor.fileno(), *taps])
        os.close(os.open(self.console_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        self._logs.watch(self.console_path)
        self._record()
        failpoint(Failpoint.MACHINE_HELD)
        for wiring in wirings:
            await self._backends.serve(wiring.role)
        failpoint(Failpoint.MACHINE_BACKED)
        self._processes.release(QEMU)
        failpoint(Failpoint.MACHINE_RUNNING)
        self._monitor = await Monitor.connect(self._path(_MONITOR_SOCKET), self._on_event, _START_LIMIT_S)

    async def _plug(self, device: Device, wiring: Wiring, undo: AsyncExitStack) -> None:
        if isinstance(device, NetworkInterface):
            name = {"fdname": tap_name(device)}
            undo.push_async_callback(self._try, "closefd", name)
            await self._execute("getfd", name, fds=[device.tap_fd])
        if (backend := wiring.backend) is not None:
            undo.push_async_callback(self._try, backend.remove, backend.key)
            await self._execute(backend.add, backend.arguments)
        failpoint(Failpoint.DEVICE_BACKED)
        undo.push_async_callback(self._try, "device_del", {"id": wiring.qdev_id})
        await self._execute("device_add", wiring.device)

    # -- unmaking ------------------------------------------------------------------------------------

    async def _unplug(self, device_id: str) -> None:
        qdev_id = qdev_id_of(device_id)
        unplugged = self._unplugged[qdev_id] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(_DETACH_LIMIT_S):
                await self._execute("device_del", {"id": qdev_id})
                await unplugged
        except TimeoutError:
            raise DeadlineExceeded(
                f"the guest did not let go of device {device_id!r} within {_DETACH_LIMIT_S:g} s"
            ) from None
        finally:
            del self._unplugged[qdev_id]

    def _vacate(self, device_id: str) -> None:
        """Free the slot of a device that QEMU does not have any more, or never had; harmless when it has none."""
        if (occupant := self._slots.occupants.pop(device_id, None)) is not None:
            self._backends.dismiss(occupant.role, occupant.slot)

    async def _try(self, command: str, arguments: Mapping[str, Any]) -> None:
        with contextlib.suppress(SandboxdError):
            await self._execute(command, arguments)

    async def _abandon(self) -> None:
        """End all that was made, and remove all files."""
        await self._end_processes()
        logs = [name for name in os.listdir(self._place.directory) if name.endswith(".log")]
        self._remove_files(*logs, RECORD_FILE)
        self._remove_sockets()

    async def _end_processes(self) -> None:
        self._processes.kill()
        await self._processes.gone(_KILL_LIMIT_S)
        self._advance(Trigger.END)
        self._logs.forget(self.console_path)
        self._close_monitor()

    async def _reconcile(self) -> None:
        """Compare what is on record with what QEMU has: an earlier daemon may have died between the two."""
        status = await self._execute("query-status", timeout_s=_RECOVER_LIMIT_S)
        if status["status"] == "paused":
            self._advance(Trigger.PAUSE)
        elif not status["running"]:
            self._give_up()
            return
        peripherals = await self._execute(
            "qom-list", {"path": "/machine/peripheral"}, timeout_s=_RECOVER_LIMIT_S
        )
        present = {entry["name"] for entry in peripherals}
        for device_id, occupant in self._slots.unsettled().items():
            if qdev_id_of(device_id) in present:
                self._slots.settle(device_id)
            else:
                await self._try(occupant.remove, occupant.key)
                self._vacate(device_id)
        self._record()

    # -- its end -------------------------------------------------------------------------------------

    def _on_end(self, role: str, status: ExitStatus) -> None:
        is_attached = self._state is MachineState.STARTING or role not in self._slots.unsettled_roles()
        if not is_attached:
            return  # who attaches the device learns it from QEMU, and who detaches it has expected it
        monitor = self._monitor
        if monitor is not None:
            monitor.drain()
        leaves = monitor is not None and (monitor.is_closed or self._ending.shutdown != "")
        self._ending.see(role, status, qemu_leaves=leaves)
        self._processes.kill()

    def _on_gone(self) -> None:
        if self._state not in (MachineState.RUNNING, MachineState.PAUSED):
            return  # who starts it or takes it up cleans up as well
        self._advance(Trigger.END)
        self._logs.forget(self.console_path)
        self._close_monitor()
        self._remove_sockets()
        end = self._ending.explain(self._processes, self.console_path)
        self._end(end)
        if self._on_exit is not None:
            self._on_exit(end)

    def _end(self, end: GuestExit) -> None:
        self._completion.set(end)
        # Without a record a later daemon tells less; that there is no space must not hide the end from this one.
        with contextlib.suppress(OSError):
            self._record()

    async def _story(self) -> str:
        """Tell why it did not start, as soon as that can be told."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KILL_LIMIT_S):
                await self._processes.ended(QEMU)
        return self._ending.explain(self._processes, self.console_path).message

    # -- QEMU ----------------------------------------------------------------------------------------

    async def _execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        fds: Sequence[int] = (),
        timeout_s: float = COMMAND_LIMIT_S,
    ) -> Any:
        if self._monitor is None or self._monitor.is_closed:
            path = self._path(_MONITOR_SOCKET)
            self._monitor = await Monitor.connect(path, self._on_event, timeout_s)
        return await self._monitor.execute(command, arguments, fds=fds, timeout_s=timeout_s)

    def _on_event(self, event: Event) -> None:
        if event.name == "SHUTDOWN":
            self._ending.shutdown = str(event.data.get("reason", ""))
        elif event.name == "STOP" and self._state in (MachineState.STARTING, MachineState.RUNNING):
            self._give_up()
        elif event.name == "DEVICE_DELETED":
            unplugged = self._unplugged.get(str(event.data.get("device", "")))
            if unplugged is not None and not unplugged.done():
                unplugged.set_result(None)

    def _give_up(self) -> None:
        """End a machine that QEMU has stopped: KVM cannot go on with it."""
        self._ending.is_stuck = True
        self._processes.kill()

    def _close_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    # -- on disk -------------------------------------------------------------------------------------

    def _record(self) -> None:
        end = self.exit
        record = MachineRecord(
            vsock=self._vsock,
            started=self._state not in (MachineState.NEW, MachineState.STARTING),
            processes=self._processes.identities(),
            devices=self._slots.as_record(),
            slots=self._slots.count,
            reason=end.reason.value if end else "",
            message=end.message if end else "",
            exited_at_ns=end.exited_at_ns if end else 0,
        )
        write_record(self._path(RECORD_FILE), record)

    def _path(self, name: str) -> str:
        return f"{self._place.directory}/{name}"

    def _remove_sockets(self) -> None:
        self._remove_files(_MONITOR_SOCKET)
        self._backends.remove_sockets(self._slots.count)

    def _remove_files(self, *names: str) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(name))

    # -- its state -----------------------------------------------------------------------------------

    def _advance(self, trigger: Trigger) -> None:
        self._state = advance(TRANSITIONS, self._state, trigger, "the machine")

    def _check(self, trigger: Trigger) -> None:
        advance(TRANSITIONS, self._state, trigger, "the machine")
