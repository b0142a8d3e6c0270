"""The images that the CRI conformance suite asks for, from busybox, Debian's nginx and five lines of C."""

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.engine.images import (
    ACCOUNTS,
    CHECKOUT,
    CRITEST_LAYOUT,
    GROUPS,
    SHELL,
    Layer,
    Layout,
    busybox_layer,
)

BUSYBOX = CHECKOUT / ".cache/busybox/busybox"
NGINX = CHECKOUT / ".cache/nginx"
REGISTRIES = CHECKOUT / ".cache/bin/critest.registries"

NGINX_CONFIG = """\
user www-data;
worker_processes 1;
pid /var/run/nginx.pid;
error_log /var/log/nginx/error.log;
events {{}}
http {{
    access_log /var/log/nginx/access.log;
    server {{
        listen {port};
        root /usr/share/nginx/html;
    }}
}}
"""

# Started through a set-user-id bit, it tells whether that had an effect.
SHOW_EFFECTIVE_UID = """\
#include <stdio.h>
#include <unistd.h>
int main(void) { return printf("Effective uid: %d\\n", (int)geteuid()) < 0; }
"""


def build() -> None:
    """Write the layout; needs critest's registries, the compiled busybox, and nginx unpacked."""
    e2e, staging = REGISTRIES.read_text().split()
    layout = Layout(CRITEST_LAYOUT)
    busybox = busybox_layer(BUSYBOX)

    def add(name: str, layers: list[bytes], **settings: Any) -> None:
        layout.add([f"{staging}/{name}"], layers, {**SHELL, **settings})

    layout.add([f"{e2e}/e2e-test-images/busybox:1.29-2"], [busybox], SHELL)
    layout.add([f"{e2e}/e2e-test-images/httpd:2.4.39-4"], [busybox, _page()], _command("httpd", "80"))
    layout.add([f"{e2e}/e2e-test-images/nonewprivs:1.3"], [busybox, _set_uid()], {**SHELL, "Cmd": ["/nnp"]})
    start_nginx = {**SHELL, "Cmd": ["/usr/sbin/nginx", "-g", "daemon off;"]}
    layout.add([f"{e2e}/e2e-test-images/nginx:1.14-2"], [busybox, _nginx(80)], start_nginx)
    layout.add([f"{staging}/hostnet-nginx-{_architecture()}:latest"], [busybox, _nginx(12003)], start_nginx)

    add("test-image-user-uid:latest", [busybox], User="1002")
    add("test-image-user-username:latest", [busybox], User="www-data")
    add("test-image-user-uid-group:latest", [busybox], User="1003:33")
    add("test-image-user-username-group:latest", [busybox], User="www-data:33")
    with_group = busybox_layer(
        BUSYBOX,
        ACCOUNTS + "default-user:x:1000:1000::/home:/bin/sh\n",
        GROUPS + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n",
    )
    add("test-image-predefined-group:latest", [with_group], User="1000")
    for name in ("latest:latest", "tag:test", "tag:all", "1:latest", "2:latest", "3:latest"):
        add(f"test-image-{name}", [busybox, _mark(name)])
    tags = [f"{staging}/test-image-tags:{number}" for number in (1, 2, 3)]
    layout.add(tags, [busybox, _mark("tags")], SHELL)
    layout.write()


def _architecture() -> str:
    machine = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True)
    return machine.stdout.strip()


def _command(program: str, port: str) -> Mapping[str, Any]:
    """A web server that first says its name, as the suite looks for that in the log."""
    return {**SHELL, "Cmd": ["sh", "-c", f"echo {program}; exec {program} -f -p {port} -h /www"]}


def _page() -> bytes:
    return Layer().file("www/index.html", "It works.\n").done()


def _mark(text: str) -> bytes:
    """What makes one image differ from the next."""
    return Layer().file("mark", text).done()


def _nginx(port: int) -> bytes:
    layer = Layer()
    for name in ("usr/sbin/nginx", "usr/lib", "lib", "lib64"):
        source = NGINX / name
        if source.is_file():
            layer.file(name, source.read_bytes(), 0o755)
        elif source.is_dir():
            for path in sorted(source.rglob("*.so*")):
                place = f"{name}/{path.relative_to(source)}"
                if path.is_symlink():
                    layer.link(place, str(path.readlink()))
                elif path.is_file() and "gconv" not in path.parts:
                    layer.file(place, path.read_bytes(), 0o755)
    for name in ("var/lib/nginx", "var/run"):
        layer.directory(name)
    layer.link("var/log/nginx/access.log", "/dev/stdout").link("var/log/nginx/error.log", "/dev/stderr")
    layer.file("usr/share/nginx/html/index.html", "It works.\n")
    return layer.file("etc/nginx/nginx.conf", NGINX_CONFIG.format(port=port)).done()


def _set_uid() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "nnp"
        subprocess.run(
            ["gcc", "-static", "-x", "c", "-o", str(program), "-"],
            input=SHOW_EFFECTIVE_UID,
            text=True,
            check=True,
        )
        return Layer().file("nnp", program.read_bytes(), 0o4755).done()
