"""What an image says of itself, in the forms of OCI image layouts and of `docker save`: text to values, no I/O.

Sources: OCI image-spec (image-layout.md, image-index.md, manifest.md, config.md); the image tarball of Docker
(moby, image/spec/v1.2.md). All of it is hostile until checked: sizes, digests, shapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from common.errors import InvalidArgument

LAYOUT_FILE: Final = "oci-layout"
INDEX_FILE: Final = "index.json"
SAVED_FILE: Final = "manifest.json"
"""The list of images in a `docker save` archive."""

MAX_DOCUMENT_BYTES: Final = 8 << 20

INDEX_TYPES: Final = frozenset(
    {
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    }
)
MANIFEST_TYPES: Final = frozenset(
    {
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    }
)
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
TAR_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"
GZIP_TYPE: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
_LAYER_TYPES: Final = {
    TAR_TYPE: TAR_TYPE,
    GZIP_TYPE: GZIP_TYPE,
    "application/vnd.docker.image.rootfs.diff.tar": TAR_TYPE,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": GZIP_TYPE,
}
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_MOST_LAYERS = 500


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to a blob. `names` are what the image is called where the descriptor stands in an index."""

    media_type: str
    digest: str
    size: int
    names: tuple[str, ...] = ()
    architecture: str = ""
    os: str = ""

    @property
    def path(self) -> str:
        """Where the blob is in a layout."""
        return f"blobs/sha256/{self.digest.removeprefix('sha256:')}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image: its configuration, and its layers from the lowest on."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class SavedImage:
    """An entry of a `docker save` archive: members of it, and what the image is called."""

    config: str
    layers: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image wants to be run like, all of which can be overridden. `diff_ids` are the digests of its layers,
    unpacked."""

    architecture: str = ""
    os: str = ""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    working_directory: str = ""
    user: str = ""
    stop_signal: str = ""
    diff_ids: tuple[str, ...] = ()


def parse_index(text: bytes, where: str) -> list[Descriptor]:
    """Return the manifests and indexes that an index names. Raises InvalidArgument."""
    document = _object(text, where)
    return [_descriptor(entry, where) for entry in _list(document, "manifests", where)]


def parse_manifest(text: bytes, where: str) -> Manifest:
    """Return the image that a manifest describes.

    :raise InvalidArgument: it is malformed, or a layer is of a type that cannot be unpacked.
    """
    document = _object(text, where)
    layers = tuple(_layer(entry, where) for entry in _list(document, "layers", where))
    if len(layers) > _MOST_LAYERS:
        raise InvalidArgument(f"{where}: {len(layers)} layers are more than {_MOST_LAYERS}")
    return Manifest(_descriptor(_value(document, "config", dict, where), where), layers)


def parse_saved(text: bytes, where: str) -> list[SavedImage]:
    """Return the images of a `docker save` archive. Raises InvalidArgument."""
    entries = _json(text, where)
    if not isinstance(entries, list):
        raise InvalidArgument(f"{where}: expected a list of images")
    images = []
    for entry in entries:
        if not isinstance(entry, dict):
            raise InvalidArgument(f"{where}: an image is no JSON object")
        layers = _texts(entry, "Layers", where)
        images.append(
            SavedImage(_value(entry, "Config", str, where), layers, _texts(entry, "RepoTags", where))
        )
    return images


def parse_config(text: bytes, where: str) -> ImageConfig:
    """Return what a configuration says of how to run the image. Raises InvalidArgument."""
    document = _object(text, where)
    settings = document.get("config") or {}
    if not isinstance(settings, dict):
        raise InvalidArgument(f"{where}: config is no JSON object")
    rootfs = document.get("rootfs") or {}
    if not isinstance(rootfs, dict):
        raise InvalidArgument(f"{where}: rootfs is no JSON object")
    return ImageConfig(
        architecture=_text(document, "architecture", where),
        os=_text(document, "os", where),
        entrypoint=_texts(settings, "Entrypoint", where),
        command=_texts(settings, "Cmd", where),
        environment=_texts(settings, "Env", where),
        working_directory=_text(settings, "WorkingDir", where),
        user=_text(settings, "User", where),
        stop_signal=_text(settings, "StopSignal", where),
        diff_ids=_texts(rootfs, "diff_ids", where),
    )


def is_called(names: tuple[str, ...], wanted: str) -> bool:
    """Tell whether an image has a name that is wanted: whole, without its registry, or without its tag."""
    for name in names:
        if wanted == name or name.endswith(f"/{wanted}"):
            return True
        repository, colon, tag = name.rpartition(":")
        if colon and "/" not in tag and (wanted == repository or repository.endswith(f"/{wanted}")):
            return True
    return False


def document(config: Descriptor, layers: list[Descriptor]) -> bytes:
    """Return a manifest of the specification's own types, whatever the original was."""
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": _as_json(config),
            "layers": [_as_json(layer) for layer in layers],
        }
    ).encode()


def index(manifest: Descriptor, name: str) -> bytes:
    """Return an index with one image of this name."""
    annotations = {"org.opencontainers.image.ref.name": name}
    return json.dumps(
        {"schemaVersion": 2, "manifests": [{**_as_json(manifest), "annotations": annotations}]}
    ).encode()


def _as_json(descriptor: Descriptor) -> dict[str, Any]:
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}


def _layer(entry: Any, where: str) -> Descriptor:
    layer = _descriptor(entry, where)
    known = _LAYER_TYPES.get(layer.media_type)
    if known is None:
        raise InvalidArgument(
            f"{where}: a layer of type {layer.media_type[:80]!r} cannot be unpacked: only tar and tar+gzip can;"
            " convert the image, for example with 'skopeo copy --dest-compress-format gzip'"
        )
    return Descriptor(known, layer.digest, layer.size)


def _descriptor(entry: Any, where: str) -> Descriptor:
    if not isinstance(entry, dict):
        raise InvalidArgument(f"{where}: a descriptor is no JSON object")
    digest, size = _value(entry, "digest", str, where), _value(entry, "size", int, where)
    if not _DIGEST.fullmatch(digest):
        raise InvalidArgument(f"{where}: {digest[:80]!r} is not a SHA-256 digest")
    annotations = entry.get("annotations") or {}
    platform = entry.get("platform") or {}
    if not isinstance(annotations, dict) or not isinstance(platform, dict) or size < 0:
        raise InvalidArgument(f"{where}: the descriptor of {digest} is malformed")
    names = (annotations.get(key) for key in _NAME_ANNOTATIONS)
    return Descriptor(
        _text(entry, "mediaType", where) or MANIFEST_TYPE,
        digest,
        size,
        tuple(name for name in names if isinstance(name, str)),
        _text(platform, "architecture", where),
        _text(platform, "os", where),
    )


def _object(text: bytes, where: str) -> dict[str, Any]:
    value = _json(text, where)
    if not isinstance(value, dict):
        raise InvalidArgument(f"{where}: expected a JSON object")
    return value


def _json(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{where}: not JSON: {error}") from None


def _list(parent: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = parent.get(key) or []
    if not isinstance(value, list):
        raise InvalidArgument(f"{where}: {key} is no list")
    return value


def _texts(parent: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    values = _list(parent, key, where)
    if not all(isinstance(value, str) and "\0" not in value for value in values):
        raise InvalidArgument(f"{where}: {key} is no list of texts")
    return tuple(values)


def _text(parent: Mapping[str, Any], key: str, where: str) -> str:
    value = parent.get(key) or ""
    if not isinstance(value, str) or "\0" in value:
        raise InvalidArgument(f"{where}: {key} is no text")
    return value


def _value(parent: Mapping[str, Any], key: str, shape: type[Any], where: str) -> Any:
    value = parent.get(key)
    if type(value) is not shape:
        raise InvalidArgument(f"{where}: {key} is missing or malformed")
    return value
