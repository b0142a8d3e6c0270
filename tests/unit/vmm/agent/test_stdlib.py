"""The modules that stand in for the standard library's in a guest: what is loaded, and that it behaves as the original.

What is compared runs twice, by the guest's interpreter with its own modules and with ours, and must print the same.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import guest_library

pytestmark = pytest.mark.skipif(not guest_library.is_there(), reason="needs the guest's Python")

LOADED_AT_START = ("vmm.agent.agent", "common.transport.vsock")

# What would make the start slow, by itself or by what it brings along.
HEAVY = {
    "_hashlib", "_ssl", "concurrent", "ctypes.util", "datetime", "email", "google.protobuf.internal.python_message",
    "google.protobuf.text_format", "grpc", "hashlib", "importlib", "inspect", "logging", "pickle", "platform", "psutil",
    "random", "re", "sandboxers", "selectors", "ssl", "string", "structlog", "tempfile", "threading", "tokenize",
    "urllib", "vmm.guest", "vmm.hypervisors", "vmm.image", "warnings", "yaml", "zlib",
}  # fmt: skip

# Each costs the start of a pod a millisecond or two, emulated.
MODULES_LIMIT = 175


@pytest.fixture(scope="module")
def search_path(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return guest_library.lay_out(tmp_path_factory.mktemp("library"))


def run(command: list[str]) -> Any:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def loaded(search_path: list[str]) -> dict[str, str]:
    """What the agent loads at its start, and from which files."""
    program = (
        f"before = set(sys.modules); [__import__(name) for name in {LOADED_AT_START}]; "
        "files = {n: getattr(m, '__file__', None) or '' for n, m in sys.modules.items() if n not in before}; "
        "import json; print(json.dumps(files))"
    )
    return dict(run(guest_library.command(search_path, program)))


def test_nothing_heavy_is_loaded_at_the_start(search_path: list[str]) -> None:
    modules = loaded(search_path)
    assert "common.task.service" in modules
    assert not {name for name in modules for heavy in HEAVY if name == heavy or name.startswith(f"{heavy}.")}
    assert sum(file.endswith(".py") for file in modules.values()) <= MODULES_LIMIT


def test_what_is_loaded_needs_only_what_comes_before_it(search_path: list[str], tmp_path: Path) -> None:
    bundle, source = tmp_path / "bundle", guest_library.CHECKOUT / "vmm/image/guest_bundle.py"
    interpreter = [str(guest_library.INTERPRETER), "-I", "-S", "-B"]
    stdlib = f"/usr/lib/python{guest_library.VERSION}"
    arguments = [
        str(bundle),
        search_path[0],
        ",".join(LOADED_AT_START),
        *search_path,
        stdlib,
        f"{stdlib}/lib-dynload",
    ]
    subprocess.run([*interpreter, str(source), *arguments], check=True)
    program = (
        f"from vmm.agent.__main__ import load; load({str(bundle)!r}); "
        "agent = sys.modules['vmm.agent.agent']; import json; print(json.dumps([agent.Settings().host_port]))"
    )
    assert run(guest_library.command(search_path, program)) == [1025]


COMPARED = {
    "namedtuple": """
from typing import NamedTuple
class Point(NamedTuple):
    x: int
    y: int = 7
    def sum(self): return self.x + self.y
p = Point(1)
seen += [p, p.sum(), p._replace(y=2), p._asdict(), p == (1, 7), Point(x=3), repr(Point(1, 2)), Point._fields]
for bad in (lambda: Point(), lambda: Point(1, 2, 3), lambda: Point(z=1), lambda: p._replace(z=1)):
    try: bad()
    except (TypeError, ValueError) as error: seen.append(type(error).__name__)
x, y = p
match p:
    case Point(a, b): seen.append([a, b])
""",
    "dataclasses": """
import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar
@dataclass(frozen=True, slots=True)
class Record:
    VERSION: ClassVar[int] = 2
    name: str
    items: list = field(default_factory=list)
    size: int = 3
r = Record("a")
seen += [repr(r), r == Record("a"), r != Record("b"), dataclasses.replace(r, size=9).size, Record.VERSION]
seen += [[f.name for f in dataclasses.fields(Record)], hasattr(r, "__dict__"), Record("b", [1], size=2).items]
try: r.size = 5
except dataclasses.FrozenInstanceError as error: seen.append(str(error))
for bad in (lambda: Record(), lambda: Record("a", what=1), lambda: Record(1, [], 3, 4)):
    try: bad()
    except TypeError: seen.append("TypeError")
@dataclass(frozen=True, slots=True)
class Empty: pass
seen.append(hash(Record("a", (), 1)) == hash(Record("a", (), 1)))
""",
    "enum": """
import enum
class Color(enum.Enum):
    RED = "r"
    BLUE = "b"
    @property
    def upper(self): return self.value.upper()
class Code(enum.IntEnum):
    OK = 0
    BAD = 13
class Word(enum.StrEnum):
    ONE = "one"
seen += [Color("r").name, Color.BLUE.value, list(map(str, Color)), repr(Color.RED), Color.RED.upper, len(Color)]
seen += [f"{Code.BAD}", str(Code.BAD), int(Code(13)), Code.OK == 0, f"{Word.ONE}", str(Word.ONE), Word("one").name]
seen += [Color.RED in Color, Color["RED"] is Color.RED, {Color.RED: 1}[Color("r")], Word.ONE in ("one",)]
for bad in (lambda: Color("x"), lambda: Code(5), lambda: Color["x"]):
    try: bad()
    except (ValueError, KeyError) as error: seen.append(f"{type(error).__name__} {error}")
""",
    "json": """
import json
document = {"a": [1, 2.5, None, True, "\\u00e9\\n\\ud800"], "b": {"c": []}, "": -3}
seen += [json.dumps(document), json.dumps(document, separators=(",", ":")), json.dumps("x\\u20ac", ensure_ascii=False)]
seen += [json.loads(json.dumps(document)) == document, json.loads(b' [1, {"x": 2}] '), json.loads("1e3")]
seen += [json.dumps({"x": {1}}, default=str), json.JSONDecoder().raw_decode('x {"a": 1} y', 2)]
for bad in ("", "{", "[1,]", "nul", '{"a" 1}', "1 2", '"\\n"', b"\\xff"):
    try: json.loads(bad)
    except ValueError as error: seen.append("ValueError")
try: json.loads("[" * 100000)
except RecursionError: seen.append("RecursionError")
""",
    "shutil": """
import os, shutil
os.makedirs(f"{here}/a/b"); open(f"{here}/a/b/file", "w").close(); os.symlink("/etc", f"{here}/a/link")
shutil.rmtree(f"{here}/a")
seen += [os.listdir(here), os.path.isdir("/etc"), shutil.which("sh", path="/nowhere:/bin"), shutil.which("nothing")]
seen += [shutil.which("/bin/sh"), shutil.which("/etc/passwd")]
try: shutil.rmtree(f"{here}/none")
except FileNotFoundError: seen.append("FileNotFoundError")
shutil.rmtree(f"{here}/none", ignore_errors=True)
""",
    "subprocess": """
import os, subprocess
def start(*args, **options):
    r, w = os.pipe()
    common = dict(stdin=subprocess.DEVNULL, stdout=w, stderr=subprocess.DEVNULL, close_fds=True, pass_fds=(),
                  env={"A": "b"}, cwd="/", start_new_session=True, executable=None)
    try:
        process = subprocess.Popen(args, **{**common, **options})
    finally:
        os.close(w)
    out = b""
    while chunk := os.read(r, 100): out += chunk
    os.close(r)
    status = os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])
    process.returncode = 0
    return out.decode(), status
seen += [start("/bin/sh", "-c", "echo $A; pwd; exit 3"), start("/bin/ls", "/proc/self/fd")[1]]
seen.append(start("called", "-c", "echo $0", executable="/bin/sh"))
r, w = os.pipe()
seen.append(start("/bin/sh", "-c", f"echo through >&{w}", pass_fds=(w,))[1])
seen.append(os.read(r, 100).decode())
for bad in (lambda: start("/no/such"), lambda: start("/bin/true", cwd="/no/such"), lambda: start("/etc/passwd"),
            lambda: start("/bin/true", executable="/no/such")):
    try: bad()
    except OSError as error: seen.append([type(error).__name__, error.filename])
""",
    "asyncio": """
import asyncio, os, signal
async def main():
    loop = asyncio.get_running_loop()
    order = []
    async def worker(name, delay):
        try:
            await asyncio.sleep(delay)
            order.append(name)
            return name
        except asyncio.CancelledError:
            order.append(f"{name} cancelled")
            raise
    tasks = [loop.create_task(worker("b", 0.02)), loop.create_task(worker("a", 0.001))]
    done, pending = await asyncio.wait(tasks, timeout=5)
    seen.append([len(done), len(pending), order])
    slow = loop.create_task(worker("c", 60))
    done, pending = await asyncio.wait([slow], timeout=0.01)
    seen.append([len(done), len(pending)])
    slow.cancel()
    try: await slow
    except asyncio.CancelledError: seen.append(order[-1])
    try:
        async with asyncio.timeout(0.01) as limit: await asyncio.sleep(60)
    except TimeoutError: seen.append(["timed out", limit.expired()])
    async with asyncio.timeout(5) as limit: await asyncio.sleep(0)
    seen.append(limit.expired())
    async def outer():
        async with asyncio.timeout(60): await asyncio.sleep(60)
    inner = loop.create_task(outer()); await asyncio.sleep(0); inner.cancel()
    try: await inner
    except asyncio.CancelledError: seen.append("cancelled, not timed out")
    event = asyncio.Event(); loop.call_later(0.001, event.set); await event.wait(); seen.append(event.is_set())
    r, w = os.pipe(); got = loop.create_future()
    loop.add_reader(r, lambda: got.set_result(os.read(r, 10).decode()))
    loop.call_soon(os.write, w, b"ready"); seen.append(await got)
    seen.append([loop.remove_reader(r), loop.remove_reader(r), loop.remove_writer(w)])
    writable = loop.create_future(); loop.add_writer(w, lambda: writable.done() or writable.set_result(True))
    seen.append(await writable); loop.remove_writer(w); os.close(r); os.close(w)
    caught = loop.create_future(); loop.add_signal_handler(signal.SIGUSR1, caught.set_result, "signal")
    os.kill(os.getpid(), signal.SIGUSR1); seen.append(await caught)
    seen.append(loop.remove_signal_handler(signal.SIGUSR1))
    timer = loop.call_later(0, order.append, "never"); timer.cancel(); await asyncio.sleep(0.002)
    seen.append("never" in order)
    order.clear()
    for delay in (0.003, 0.001, 0.002): loop.call_later(delay, order.append, delay)
    await asyncio.sleep(0.02); seen.append(order)
    failing = loop.create_task(fail())
    await asyncio.wait([failing]); seen.append(repr(failing.exception()))
    return "result"
async def fail(): raise KeyError("x")
seen.append(asyncio.run(main()))
""",
    "socket": """
import os, socket
a, b = socket.socketpair()
with a, b:
    r, w = os.pipe()
    socket.send_fds(a, [b"data"], [w]); os.close(w)
    data, fds, flags, _ = socket.recv_fds(b, 100, 4)
    os.write(fds[0], b"through"); seen += [data.decode(), len(fds), os.read(r, 100).decode()]
listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
listener.bind(f"{here}/socket"); listener.listen(1)
client = socket.socket(socket.AF_UNIX); client.connect(f"{here}/socket")
server, _ = listener.accept()
client.sendall(b"hello"); seen += [server.recv(10).decode(), int(server.family)]
seen.append(listener.getsockname() == f"{here}/socket")
for sock in (listener, client, server): sock.close()
seen += [socket.socket(socket.AF_INET).fileno() >= 0, client.fileno()]
""",
    "ctypes": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
seen += [libc.getpid() > 0, libc.close(12345), ctypes.get_errno(), ctypes.sizeof(ctypes.c_uint64)]
class Pair(ctypes.Structure):
    _fields_ = (("a", ctypes.c_uint64), ("b", ctypes.c_uint32))
p = Pair(1, 2); seen += [p.a, p.b, ctypes.sizeof(Pair)]
libc.syscall.restype = ctypes.c_long
seen.append(int(libc.syscall(ctypes.c_long(39))) > 0)
""",
    "functools": """
import functools
calls = []
@functools.cache
def f(x): calls.append(x); return x + 1
@functools.wraps(f)
def g(): pass
seen += [f(1), f(1), calls, g.__name__, functools.partial(pow, 2)(5)]
""",
}


@pytest.mark.parametrize("name", COMPARED)
def test_a_stand_in_behaves_as_the_original(search_path: list[str], tmp_path: Path, name: str) -> None:
    results = []
    for number, path in enumerate(([], search_path)):
        here = tmp_path / str(number)
        here.mkdir()
        script = tmp_path / f"{number}.py"
        show = "\nimport json\nprint(json.dumps(seen, default=repr))\n"
        script.write_text(
            f"from __future__ import annotations\nseen = []\nhere = {str(here)!r}\n{COMPARED[name]}{show}"
        )
        results.append(run(guest_library.command(path, f"exec(open({str(script)!r}).read())")))
    assert results[1] == results[0]


def test_messages_are_what_they_are_elsewhere(search_path: list[str]) -> None:
    program = (
        "from proto.gen.sandboxd.agent.v1 import agent_pb2 as api; "
        "from google.protobuf.timestamp_pb2 import Timestamp; "
        "r = api.ConfigureRequest(sandbox_id='s', sysctls={'a': 'b'}, routes=[api.Route(gateway='g')]); "
        "t = Timestamp(); t.FromNanoseconds(1500000000123456789); import json; "
        "print(json.dumps([r.SerializeToString(deterministic=True).hex(), t.seconds, t.nanos]))"
    )
    ours = run(guest_library.command(search_path, program))
    from proto.gen.sandboxd.agent.v1 import agent_pb2 as api

    request = api.ConfigureRequest(sandbox_id="s", sysctls={"a": "b"}, routes=[api.Route(gateway="g")])
    assert ours == [request.SerializeToString(deterministic=True).hex(), 1500000000, 123456789]
