"""A read-only container registry over OCI layouts, so that an engine's PullImage works without a network.

`python -m tests.engine.registry PORT LAYOUT...` serves every image under the name it has in its layout, of
whatever registry that is; the engine says which in the query parameter `ns`.
"""

import json
import sys
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

from tests.engine.images import MANIFEST_TYPE


class Registry(BaseHTTPRequestHandler):
    """GET and HEAD of distribution-spec: the version check, manifests by tag or digest, blobs."""

    manifests: ClassVar[dict[str, str]] = {}  # image name or digest -> digest
    blobs: ClassVar[dict[str, Path]] = {}  # digest -> file
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        host = parse_qs(url.query).get("ns", [""])[0]
        _, _, path = url.path.partition("/v2/")
        name, kind, reference = path.rpartition("/manifests/")
        if kind:
            digest = self.manifests.get(f"{host}/{name}:{reference}") or self.manifests.get(reference)
            self._answer(digest, MANIFEST_TYPE)
        elif "/blobs/" in path:
            self._answer(path.rpartition("/")[2], "application/octet-stream")
        else:
            self._send(200, b"{}", "application/json", None)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        sys.stderr.write(f"{format % args}\n")

    def _answer(self, digest: str | None, media_type: str) -> None:
        if digest is None or digest not in self.blobs:
            self._send(404, b'{"errors":[{"code":"NAME_UNKNOWN"}]}', "application/json", None)
        else:
            self._send(200, self.blobs[digest].read_bytes(), media_type, digest)

    def _send(self, status: int, body: bytes, media_type: str, digest: str | None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        if digest is not None:
            self.send_header("Docker-Content-Digest", digest)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def main(port: str, layouts: Sequence[str]) -> None:
    for layout in map(Path, layouts):
        for blob in (layout / "blobs/sha256").iterdir():
            Registry.blobs[f"sha256:{blob.name}"] = blob
        for entry in json.loads((layout / "index.json").read_text())["manifests"]:
            Registry.manifests[entry["digest"]] = entry["digest"]
            Registry.manifests[entry["annotations"]["io.containerd.image.name"]] = entry["digest"]
    ThreadingHTTPServer(("127.0.0.1", int(port)), Registry).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
