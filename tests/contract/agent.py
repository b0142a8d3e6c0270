"""What an agent must do, whether it is PID 1 of a guest or a plain process: a suite, and the host's part in it.

A subclass of `AgentContract` brings a fixture `guest`, one for all of its tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import socket

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from common.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from common.readiness import wait_readable
from common.ttrpc import StatusCode, StatusError
from proto.gen.cgroups.v1 import metrics_pb2 as metrics_v1
from proto.gen.cgroups.v2 import metrics_pb2 as metrics_v2
from proto.gen.containerd.events import task_pb2 as events
from proto.gen.containerd.task.v3 import shim_pb2 as task
from proto.gen.containerd.types.task_pb2 import PAUSED, RUNNING, STOPPED
from proto.gen.sandboxd.agent.v1 import agent_pb2 as api
from tests.contract.guest import HOSTNAME, TIMEOUT_S, Container, Guest, configuration, process, refused, shell


@pytest.mark.asyncio(loop_scope="module")
class AgentContract:
    """The suite."""

    async def test_a_container_runs_writes_and_ends(self, guest: Guest) -> None:
        async with await guest.container(*shell("echo out; echo err >&2; exit 7")) as container:
            await container.start()
            assert await container.wait() == 7
            assert await container.read_all("stdout") == b"out\n"
            assert await container.read_all("stderr") == b"err\n"
            assert (await container.state()).status == STOPPED

    async def test_an_exit_is_told_after_the_ends_of_its_output(self, guest: Guest) -> None:
        async with await guest.container("echo", "out") as container:
            await container.start()
            exit_at = await guest.event(events.TaskExit, id=container.id)
            ends = [await guest.event(api.StreamEnd, id=container.stream_id(n)) for n in ("stdout", "stderr")]
            assert max(ends) < exit_at

    async def test_output_that_was_written_before_the_end_is_there_when_wait_answers(
        self, guest: Guest
    ) -> None:
        async with await guest.container(*shell("head -c 60000 /dev/zero")) as container:
            await container.start()
            await container.wait()
            async with asyncio.timeout(TIMEOUT_S):
                await wait_readable(container.streams["stdout"])
            assert len(container.streams["stdout"].recv(1 << 20, socket.MSG_PEEK)) > 0
            assert await container.read("stdout", 60000) == bytes(60000)

    async def test_much_output_arrives_whole(self, guest: Guest) -> None:
        async with await guest.container(*shell("yes 0123456 | head -c 4000000")) as container:
            await container.start()
            reading = asyncio.ensure_future(container.read("stdout", 4_000_000))
            assert await reading == b"0123456\n" * 500_000
            assert await container.wait() == 0

    async def test_a_reader_that_does_not_read_stops_the_process_and_nothing_else(self, guest: Guest) -> None:
        async with (
            await guest.container(*shell("yes | head -c 30000000; echo done >&2")) as flooding,
            await guest.container("cat", streams=("stdin", "stdout")) as other,
        ):
            await flooding.start()
            await other.start()
            await other.write(b"still here", end=False)
            assert await other.read("stdout", 10) == b"still here"
            assert (await flooding.state()).status == RUNNING
            assert await flooding.read("stdout", 30_000_000) == b"y\n" * 15_000_000
            assert await flooding.wait() == 0

    async def test_an_exit_does_not_wait_for_a_reader_for_long(self, guest: Guest) -> None:
        async with await guest.container(*shell("cat /dev/zero & sleep 0.5; exit 5")) as container:
            await container.start()
            assert await container.wait() == 5

    async def test_closing_an_output_early_does_not_disturb_the_process(self, guest: Guest) -> None:
        async with await guest.container(
            *shell("sleep 0.3; yes | head -c 1000000; echo fine >&2")
        ) as container:
            container.streams["stdout"].close()
            await container.start()
            assert await container.wait() == 0
            assert await container.read_all("stderr") == b"fine\n"

    async def test_input_ends_after_the_bytes_that_were_counted(self, guest: Guest) -> None:
        async with await guest.container("cat", streams=("stdin", "stdout")) as container:
            await container.start()
            writing = asyncio.ensure_future(container.write(b"x" * 300_000))
            assert await container.read("stdout", 300_000) == b"x" * 300_000
            await writing
            assert await container.wait() == 0
            end = guest.events[await guest.event(api.StreamEnd, id=container.stream_id("stdout"))]
            assert isinstance(end, api.StreamEnd)
            assert end.length == 300_000

    async def test_the_end_of_input_may_be_told_first(self, guest: Guest) -> None:
        async with await guest.container("cat", streams=("stdin", "stdout")) as container:
            await guest.client.end_stream(container.stream_id("stdin"), 5, TIMEOUT_S)
            await container.start()
            await container.write(b"early", end=False)
            assert await container.wait() == 0
            assert await container.read_all("stdout") == b"early"

    async def test_an_input_that_ends_before_its_exec_starts_is_empty(self, guest: Guest) -> None:
        async with await guest.container("sleep", "1000") as container:
            await container.start()
            added = Container(guest, container.id, "late")
            request = task.ExecProcessRequest(id=container.id, exec_id="late")
            await added.open(("stdin", "stdout"), request)
            await guest.client.end_stream(added.stream_id("stdin"), 0, TIMEOUT_S)
            request.spec.value = json.dumps(process(["cat"])).encode()
            await guest.call("Exec", request, Empty)
            await added.start()
            assert await added.wait() == 0
            assert await added.read_all("stdout") == b""
            added.close()

    async def test_an_input_cannot_end_before_what_has_come(self, guest: Guest) -> None:
        async with await guest.container("cat", streams=("stdin", "stdout")) as container:
            await container.start()
            await container.write(b"seen", end=False)
            assert await container.read("stdout", 4) == b"seen"
            with pytest.raises(InvalidArgument, match="cannot end after 2 bytes"):
                await guest.client.end_stream(container.stream_id("stdin"), 2, TIMEOUT_S)

    async def test_execs_have_streams_and_exits_of_their_own(self, guest: Guest) -> None:
        async with await guest.container("sleep", "1000") as container:
            await container.start()
            added = await container.exec(*shell("cat; exit 3"), streams=("stdin", "stdout"))
            await added.write(b"to the exec")
            assert await added.wait() == 3
            assert await added.read_all("stdout") == b"to the exec"
            await added.delete()
            added.close()
            assert (await container.state()).status == RUNNING

    async def test_a_terminal_has_a_size_and_hangs_up(self, guest: Guest) -> None:
        streams = ("stdin", "stdout")
        async with await guest.container(
            *shell("read line; stty size; echo got $line"), streams=streams, terminal=True
        ) as container:
            await guest.call("ResizePty", task.ResizePtyRequest(id=container.id, width=91, height=17), Empty)
            await container.start()
            await container.write(b"a line\n", end=False)
            assert await container.wait() == 0
            assert await container.read_all("stdout") == b"a line\r\n17 91\r\ngot a line\r\n"

    async def test_an_exec_may_have_a_terminal(self, guest: Guest) -> None:
        async with await guest.container("sleep", "1000") as container:
            await container.start()
            added = await container.exec(*shell("test -t 0 && echo a terminal"), terminal=True)
            assert await added.wait() == 0
            assert await added.read_all("stdout") == b"a terminal\r\n"
            added.close()

    async def test_containers_share_the_pods_name_files_and_memory(self, guest: Guest) -> None:
        status, output = await guest.output(*shell("echo shared >/dev/shm/file; hostname; cat /etc/hostname"))
        assert (status, output) == (0, f"{HOSTNAME}\n{HOSTNAME}\n".encode())
        assert await guest.output("cat", "/dev/shm/file") == (0, b"shared\n")
        assert await guest.output("cat", "/etc/resolv.conf") == (0, b"nameserver 192.0.2.1\n")

    async def test_signals_reach_processes(self, guest: Guest) -> None:
        script = "trap 'echo caught; exit 4' TERM; echo ready; while :; do sleep 0.05; done"
        async with await guest.container(*shell(script)) as container:
            await container.start()
            assert await container.read("stdout", 6) == b"ready\n"
            await container.kill(signal.SIGTERM)
            assert await container.wait() == 4

    async def test_a_container_can_be_measured_paused_and_limited(self, guest: Guest) -> None:
        async with await guest.container("sleep", "1000") as container:
            await container.start()
            pids = await guest.call("Pids", task.PidsRequest(id=container.id), task.PidsResponse)
            assert [found.pid for found in pids.processes] == [container.pid]
            stats = await guest.call("Stats", task.StatsRequest(id=container.id), task.StatsResponse)
            kinds = (metrics_v1.Metrics, metrics_v2.Metrics)
            kind = next(kind for kind in kinds if kind.DESCRIPTOR.full_name == stats.stats.type_url)
            assert kind.FromString(stats.stats.value).memory.ByteSize() > 0
            await guest.call("Pause", task.PauseRequest(id=container.id), Empty)
            assert (await container.state()).status == PAUSED
            await guest.call("Resume", task.ResumeRequest(id=container.id), Empty)
            resources = AnyMessage(value=json.dumps({"memory": {"limit": 48 << 20}}).encode())
            await guest.call("Update", task.UpdateTaskRequest(id=container.id, resources=resources), Empty)

    async def test_a_container_that_has_no_memory_left_says_so_first(self, guest: Guest) -> None:
        limit = {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
        async with await guest.container("tail", "/dev/zero", resources=limit) as container:
            await container.start()
            assert await container.wait() == 137
            oom_at = await guest.event(events.TaskOOM, container_id=container.id)
            assert oom_at < await guest.event(events.TaskExit, id=container.id)

    async def test_a_port_of_the_pod_can_be_reached(self, guest: Guest) -> None:
        async with await guest.container("nc", "-l", "-p", "8080", "-e", "cat") as container:
            await container.start()
            with await self.port_when_open(guest, 8080) as port:
                await asyncio.get_running_loop().sock_sendall(port, b"echo")
                async with asyncio.timeout(TIMEOUT_S):
                    assert await asyncio.get_running_loop().sock_recv(port, 100) == b"echo"

    @staticmethod
    async def port_when_open(guest: Guest, number: int) -> socket.socket:
        """A connection to a port at which somebody will listen."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                with contextlib.suppress(Unavailable):
                    return await guest.client.open_port(number, TIMEOUT_S)
                await asyncio.sleep(0.05)

    async def test_a_port_where_nobody_listens_is_refused(self, guest: Guest) -> None:
        with pytest.raises(Exception, match="port 8081"):
            await guest.client.open_port(8081, TIMEOUT_S)

    async def test_bundles_elsewhere_are_refused(self, guest: Guest) -> None:
        for bundle in (
            "/etc",
            f"{guest.bundles}/../x",
            f"{guest.bundles}/none",
            "",
            "relative",
            "/proc/self/root",
        ):
            with pytest.raises(StatusError) as raised:
                await guest.call(
                    "Create", task.CreateTaskRequest(id="bad", bundle=bundle), task.CreateTaskResponse
                )
            assert raised.value.code in (StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND)

    async def test_a_bundle_that_is_a_link_is_refused(self, guest: Guest) -> None:
        (guest.share / "link").symlink_to("/")
        async with refused(StatusCode.INVALID_ARGUMENT, "not in a share"):
            request = task.CreateTaskRequest(id="bad", bundle=f"{guest.bundles}/link")
            await guest.call("Create", request, task.CreateTaskResponse)
        (guest.share / "link").unlink()

    async def test_ids_that_are_paths_are_refused(self, guest: Guest) -> None:
        for container_id in ("../x", "a/b", "", "x" * 77, "é"):
            async with refused(StatusCode.INVALID_ARGUMENT, "not allowed"):
                request = task.CreateTaskRequest(id=container_id, bundle=f"{guest.bundles}/x")
                await guest.call("Create", request, task.CreateTaskResponse)
        with pytest.raises(InvalidArgument):
            await guest.client.find_disk("../sda", TIMEOUT_S)

    async def test_streams_that_nobody_has_opened_are_refused_and_nothing_is_left(self, guest: Guest) -> None:
        bundle = guest.bundle("unopened", ["echo"])
        for uri in ("stream:never", "/dev/null", "file:///tmp/x", "stream:../x"):
            with pytest.raises(StatusError) as raised:
                request = task.CreateTaskRequest(id="unopened", bundle=bundle, stdin=uri)
                await guest.call("Create", request, task.CreateTaskResponse)
            assert raised.value.code in (StatusCode.NOT_FOUND, StatusCode.INVALID_ARGUMENT)
        async with refused(StatusCode.NOT_FOUND, "no container"):
            await guest.call("State", task.StateRequest(id="unopened"), task.StateResponse)
        shutil.rmtree(guest.share / "unopened")

    async def test_hooks_are_refused(self, guest: Guest) -> None:
        bundle = guest.bundle("hooked", ["echo"])
        config = guest.share / "hooked/config.json"
        spec = json.loads(config.read_text())
        config.write_text(json.dumps({**spec, "hooks": {"prestart": [{"path": "/bin/true"}]}}))
        async with refused(StatusCode.INVALID_ARGUMENT, "hooks"):
            await guest.call(
                "Create", task.CreateTaskRequest(id="hooked", bundle=bundle), task.CreateTaskResponse
            )
        shutil.rmtree(guest.share / "hooked")

    async def test_another_configuration_is_refused_the_same_is_not(self, guest: Guest) -> None:
        with pytest.raises(FailedPrecondition, match="configured already"):
            await guest.client.configure(configuration(hostname="another"), TIMEOUT_S)

    async def test_a_stream_is_opened_by_a_line_and_by_nothing_else(self, guest: Guest) -> None:
        transport = guest.client.transport
        for line in (b"STREAM ../x\n", b"HELLO\n", b"PORT 70000\n", b"PORT -1\n", b"x" * 200, b"\n"):
            with await transport.connect(1026, TIMEOUT_S) as sock:
                await asyncio.get_running_loop().sock_sendall(sock, line)
                answer = b""
                # A connection that is closed with something unread in it is reset.
                with contextlib.suppress(ConnectionResetError):
                    async with asyncio.timeout(TIMEOUT_S):
                        answer = await asyncio.get_running_loop().sock_recv(sock, 1000)
                assert answer == b"" or answer.startswith(b"ERROR ")
                assert len(answer) <= 128

    async def test_a_stream_id_is_taken_once(self, guest: Guest) -> None:
        with (
            await guest.client.open_stream("once", TIMEOUT_S),
            pytest.raises(Exception, match="open already"),
        ):
            await guest.client.open_stream("once", TIMEOUT_S)

    async def test_unknown_interfaces_and_malformed_addresses_are_refused(self, guest: Guest) -> None:
        bad = (
            api.Interface(mac="52:54:00", name="eth0"),
            api.Interface(mac="52:54:00:12:34:56", name="../eth0"),
            api.Interface(mac="52:54:00:12:34:56", name="eth0", addresses=["10.0.0.300/8"]),
            api.Interface(mac="52:54:00:12:34:56", name="eth0", addresses=["10.0.0.3/64"]),
        )
        for interface in bad:
            with pytest.raises(InvalidArgument):
                await guest.client.add_interface(interface, TIMEOUT_S)
        await guest.client.remove_interface("52:54:00:12:34:56", TIMEOUT_S)

    async def test_the_guest_tells_its_own_figures(self, guest: Guest) -> None:
        stats = await guest.client.stats(TIMEOUT_S)
        assert 0 < stats.memory_available_bytes < stats.memory_total_bytes
        assert stats.cpu_busy_ns > 0
        assert 0 < stats.agent_memory_bytes < 64 << 20

    async def test_a_container_that_does_not_exist_is_not_found(self, guest: Guest) -> None:
        async with refused(StatusCode.NOT_FOUND, "no container 'nobody'"):
            await guest.call("Kill", task.KillRequest(id="nobody", signal=9), Empty)
        with pytest.raises(NotFound):
            await guest.client.end_stream("nobody", 0, TIMEOUT_S)
