"""Build small OCI image layouts from programs of this machine: no registry, no image tools."""

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests import modules

CHECKOUT = Path(__file__).resolve().parents[2]
LAYOUTS = CHECKOUT / ".cache/images"
DEMO_LAYOUT = LAYOUTS / "demo"
CRITEST_LAYOUT = LAYOUTS / "critest"
WASM_LAYOUT = LAYOUTS / "wasm"

BUSYBOX = "localhost/sandboxd/busybox:1"
PAUSE = "localhost/sandboxd/pause:1"
MODULES = "localhost/sandboxd/modules:1"
HUGE_MODULE = "localhost/sandboxd/huge-module:1"
HUGE_BYTES = 200_000_000

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

ACCOUNTS = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
GROUPS = """\
root:x:0:
daemon:x:1:
tty:x:5:
www-data:x:33:
nogroup:x:65534:
"""


class Layer:
    """A file system layer in the making: root's files, no timestamps, hence reproducible.

    Paths are relative to the root of the image, without a leading slash; parents are made on the way.
    """

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w")  # noqa: SIM115
        self._known: set[str] = set()

    def directory(self, path: str, mode: int = 0o755) -> Self:
        self._parents(path)
        if path not in self._known:
            entry = tarfile.TarInfo(path)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            self._add(entry)
        return self

    def file(self, path: str, content: bytes | str, mode: int = 0o644) -> Self:
        self._parents(path)
        data = content.encode() if isinstance(content, str) else content
        entry = tarfile.TarInfo(path)
        entry.size, entry.mode = len(data), mode
        self._add(entry, data)
        return self

    def link(self, path: str, target: str) -> Self:
        self._parents(path)
        entry = tarfile.TarInfo(path)
        entry.type, entry.linkname = tarfile.SYMTYPE, target
        self._add(entry)
        return self

    def hard_link(self, path: str, target: str) -> Self:
        """`target` must be in the layer already; unlike a symbolic link, it can be masked on its own."""
        self._parents(path)
        entry = tarfile.TarInfo(path)
        # Unpacking applies the mode of the link to the file it shares.
        entry.type, entry.linkname, entry.mode = tarfile.LNKTYPE, target, 0o755
        self._add(entry)
        return self

    def done(self) -> bytes:
        self._tar.close()
        return self._buffer.getvalue()

    def _parents(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        if parent and parent not in self._known:
            self.directory(parent)

    def _add(self, entry: tarfile.TarInfo, data: bytes | None = None) -> None:
        self._known.add(entry.name)
        self._tar.addfile(entry, io.BytesIO(data) if data is not None else None)


class Layout:
    """An OCI image layout (image-spec, image-layout.md) in a directory of its own.

    It is made beside the one that is there, which others may be reading, and takes its place.
    """

    def __init__(self, directory: Path) -> None:
        directory.parent.mkdir(parents=True, exist_ok=True)
        self._place = directory
        self._directory = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        self._directory.chmod(0o755)
        self._blobs = self._directory / "blobs/sha256"
        self._blobs.mkdir(parents=True)
        self._manifests: list[dict[str, Any]] = []
        machine = subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip()
        self._platform = {"os": "linux", "architecture": ARCHITECTURES.get(machine, machine)}

    def add(self, names: Iterable[str], layers: Sequence[bytes], settings: Mapping[str, Any]) -> None:
        """Add one image under all its names; `settings` is the `config` object of the image configuration."""
        config = {
            **self._platform,
            "config": dict(settings),
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers],
            },
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": self._blob(CONFIG_TYPE, _json(config)),
            "layers": [self._blob(LAYER_TYPE, gzip.compress(layer, 1, mtime=0)) for layer in layers],
        }
        descriptor = self._blob(MANIFEST_TYPE, _json(manifest))
        for name in names:
            tag = name.rpartition(":")[2]
            annotations = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag}
            self._manifests.append({**descriptor, "platform": self._platform, "annotations": annotations})

    def write(self) -> None:
        """Make the layout complete, and put it in its place."""
        (self._directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        index = {"schemaVersion": 2, "manifests": self._manifests}
        (self._directory / "index.json").write_bytes(_json(index))
        before = self._directory.with_suffix(".before")
        if self._place.exists():
            self._place.rename(before)
        self._directory.rename(self._place)
        shutil.rmtree(before, ignore_errors=True)

    def _blob(self, media_type: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (self._blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def busybox_layer(busybox: Path, accounts: str = ACCOUNTS, groups: str = GROUPS) -> bytes:
    """A root file system of one static busybox with all its applets."""
    applets = subprocess.run([str(busybox), "--list"], capture_output=True, text=True, check=True).stdout
    layer = Layer()
    for name in ("dev", "proc", "sys", "etc", "root", "home", "usr/bin", "var/www", "lib", "run"):
        layer.directory(name)
    layer.directory("tmp", 0o1777)
    layer.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in applets.split():
        if applet != "busybox":
            layer.hard_link(f"bin/{applet}", "bin/busybox")
    layer.link("usr/bin/env", "../../bin/busybox")
    return layer.file("etc/passwd", accounts).file("etc/group", groups).done()


SHELL = {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"]}


def build_demo() -> None:
    """The busybox image, and the pause image that only the stock runtime uses."""
    layout = Layout(DEMO_LAYOUT)
    layout.add([BUSYBOX], [busybox_layer(Path("/bin/busybox"))], SHELL)
    pause = Layer().file("pause", Path("/usr/bin/catatonit").read_bytes(), 0o755).done()
    layout.add([PAUSE], [pause], {"Entrypoint": ["/pause", "-P"]})
    layout.write()


def wasm_layer() -> bytes:
    """A root file system of modules, whole and broken ones, in its root directory; no program is in it."""
    layer = Layer()
    for name in ("dev", "proc", "sys", "etc"):
        layer.directory(name)
    layer.directory("tmp", 0o1777)
    for name in modules.names():
        layer.file(f"{name}.wasm", modules.module(name).read_bytes(), 0o755)
    whole = modules.module("lines").read_bytes()
    layer.file("truncated.wasm", whole[: len(whole) // 2], 0o755)
    layer.file("empty.wasm", b"", 0o755)
    layer.file("text.wasm", "not a module\n", 0o755)
    layer.link("escape", "../../../etc/passwd")
    return layer.file("etc/passwd", ACCOUNTS).file("etc/group", GROUPS).done()


def huge_module() -> bytes:
    """`hello` and a custom section (core specification, 5.5.3) of zeros, which no engine has to look into."""
    name = b"\4huge"
    content = name + bytes(HUGE_BYTES - len(name))
    return modules.module("hello").read_bytes() + b"\0" + leb128(len(content)) + content


def leb128(number: int) -> bytes:
    """An unsigned number as WebAssembly encodes it (core specification, 5.2.2)."""
    encoded = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        encoded.append(low | (0x80 if number else 0))
        if not number:
            return bytes(encoded)


def build_wasm() -> None:
    """The image of all modules, one of which is run if nothing else is said, and the one of a huge module."""
    layout = Layout(WASM_LAYOUT)
    layout.add([MODULES], [wasm_layer()], {"Cmd": ["/sleeper.wasm"]})
    huge = Layer().file("huge.wasm", huge_module(), 0o755).done()
    layout.add([HUGE_MODULE], [huge], {"Cmd": ["/huge.wasm"]})
    layout.write()


def main(arguments: Sequence[str]) -> None:
    build_demo()
    if "wasm" in arguments:
        build_wasm()
    if "critest" in arguments:
        from tests.engine.critest_images import build

        build()


if __name__ == "__main__":
    main(sys.argv[1:])
