"""Choosing one image in a layout or an archive, and laying it out, checked, for whoever unpacks it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from common.errors import InvalidArgument, NotFound
from common.oci.platform import architecture
from sandboxctl.embedded.image_files import (
    ArchiveFiles,
    DirectoryFiles,
    ImageFiles,
    copy_file,
    digest_of,
    read_document,
)
from sandboxctl.embedded.image_layers import check_layer
from sandboxctl.embedded.image_layout import (
    CONFIG_TYPE,
    GZIP_TYPE,
    INDEX_FILE,
    INDEX_TYPES,
    LAYOUT_FILE,
    MANIFEST_TYPE,
    MANIFEST_TYPES,
    SAVED_FILE,
    TAR_TYPE,
    Descriptor,
    ImageConfig,
    SavedImage,
    document,
    index,
    is_called,
    parse_config,
    parse_index,
    parse_manifest,
    parse_saved,
)

STAGED_NAME = "image"
_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_DEEPEST_INDEX = 3

Choice = TypeVar("Choice")


@dataclass(frozen=True, slots=True)
class SourceLayer:
    """A layer as its image has it: where, and its digest where the image tells one."""

    path: str
    media_type: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image that was chosen and whose configuration was checked.

    `name` is its own, or the file's. `digest` is that of the configuration, which names what the layers unpack to, so
    that it stands for the image however it is packed.
    """

    files: ImageFiles
    name: str
    digest: str
    config_text: bytes
    config: ImageConfig
    layers: tuple[SourceLayer, ...]


def split_reference(reference: str) -> tuple[str, str]:
    """Return (path, name of an image in it or "") for "PATH" or "PATH:NAME", by what exists.

    :raise NotFound: no such path.
    """
    if os.path.lexists(reference):
        return reference, ""
    position = reference.find(":")
    while position > 0:
        if os.path.lexists(reference[:position]):
            return reference[:position], reference[position + 1 :]
        position = reference.find(":", position + 1)
    raise NotFound(
        f"there is no {reference[:200]}: an image is a directory (OCI layout or root file system) or an archive of"
        " 'docker save', here on this machine"
    )


def is_image(path: str) -> bool:
    """Tell an image from a directory that is a root file system itself."""
    return not os.path.isdir(path) or os.path.exists(f"{path}/{LAYOUT_FILE}")


@contextmanager
def open_image(path: str, name: str, foreign: bool = False) -> Iterator[SourceImage]:
    """Choose an image, by its name if there are several, and check its configuration.

    :param foreign: whether it may be for another kind of machine than this, as modules of WebAssembly are.
    :raise InvalidArgument: it is damaged, for another architecture, or there are several to choose from.
    :raise NotFound: it has no image of this name, or a blob is missing.
    """
    if os.path.isdir(path):
        yield _choose(DirectoryFiles(path), name, foreign)
    else:
        with ArchiveFiles(path) as files:
            yield _choose(files, name, foreign)


def stage(image: SourceImage, directory: str, limit_bytes: int) -> None:
    """Write a layout with this image alone into an empty directory, each blob checked against its digests.

    :param limit_bytes: how much room there is for the layers as they are, and unpacked.
    :raise InvalidArgument: a layer is damaged, too large, or of a type that cannot be unpacked.
    """
    blobs = f"{directory}/blobs/sha256"
    os.makedirs(blobs)
    layers = []
    incoming = f"{directory}/incoming"
    for number, (layer, diff_id) in enumerate(zip(image.layers, image.config.diff_ids, strict=True), 1):
        where = f"{image.files.name}: layer {number} of {len(image.layers)}"
        found = copy_file(image.files, layer.path, incoming, limit_bytes)
        if layer.digest and found != layer.digest:
            raise InvalidArgument(f"{where} is damaged: its digest is {found} instead of {layer.digest}")
        media_type = layer.media_type or _sniff(incoming, image.files.name)
        layers.append(Descriptor(media_type, found, os.path.getsize(incoming)))
        limit_bytes -= layers[-1].size
        limit_bytes -= check_layer(incoming, media_type, diff_id, limit_bytes, where)
        os.rename(incoming, f"{directory}/{layers[-1].path}")
    config = Descriptor(CONFIG_TYPE, image.digest, len(image.config_text))
    text = document(config, layers)
    manifest = Descriptor(MANIFEST_TYPE, digest_of(text), len(text))
    for descriptor, content in ((config, image.config_text), (manifest, text)):
        _write(f"{directory}/{descriptor.path}", content)
    _write(f"{directory}/{INDEX_FILE}", index(manifest, STAGED_NAME))
    _write(f"{directory}/{LAYOUT_FILE}", b'{"imageLayoutVersion":"1.0.0"}')


def _choose(files: ImageFiles, name: str, foreign: bool) -> SourceImage:
    try:
        text = read_document(files, INDEX_FILE)
    except NotFound:
        return _choose_saved(files, name, foreign)
    choices = list(_manifests(files, parse_index(text, f"{files.name}: {INDEX_FILE}"), foreign))
    known = [(descriptor.names, descriptor) for descriptor in choices]
    descriptor = _only_one(files.name, name, known)
    manifest_text = _read_blob(files, descriptor)
    manifest = parse_manifest(manifest_text, f"{files.name}: the manifest {descriptor.digest}")
    config_text = _read_blob(files, manifest.config)
    layers = (SourceLayer(layer.path, layer.media_type, layer.digest) for layer in manifest.layers)
    return _checked(files, descriptor.names, config_text, tuple(layers), foreign)


def _choose_saved(files: ImageFiles, name: str, foreign: bool) -> SourceImage:
    try:
        text = read_document(files, SAVED_FILE)
    except NotFound:
        raise InvalidArgument(
            f"{files.name} holds no image: neither {INDEX_FILE} (OCI layout) nor {SAVED_FILE} (docker save) is in it"
        ) from None
    images: list[tuple[tuple[str, ...], SavedImage]] = [
        (image.names, image) for image in parse_saved(text, f"{files.name}: {SAVED_FILE}")
    ]
    chosen = _only_one(files.name, name, images)
    config_text = read_document(files, chosen.config)
    layers = tuple(SourceLayer(path) for path in chosen.layers)
    return _checked(files, chosen.names, config_text, layers, foreign)


def _checked(
    files: ImageFiles,
    names: tuple[str, ...],
    config_text: bytes,
    layers: tuple[SourceLayer, ...],
    foreign: bool,
) -> SourceImage:
    digest = digest_of(config_text)
    config = parse_config(config_text, f"{files.name}: the configuration {digest}")
    own = architecture()
    if not foreign and (config.architecture, config.os or "linux") != (own, "linux"):
        raise InvalidArgument(
            f"{files.name}: the image is for {config.os or 'linux'}/{config.architecture or 'an unknown architecture'},"
            f" and this machine is linux/{own}"
        )
    if len(layers) != len(config.diff_ids):
        # The configuration's digest would stand for what is only a part of the image, or more.
        raise InvalidArgument(
            f"{files.name} is damaged: it has {len(layers)} layers, and its configuration tells of"
            f" {len(config.diff_ids)}"
        )
    name = names[0] if names else os.path.basename(files.name)
    return SourceImage(files, name, digest, config_text, config, layers)


def _manifests(
    files: ImageFiles, descriptors: list[Descriptor], foreign: bool, depth: int = 0
) -> Iterator[Descriptor]:
    """Yield the manifests that could be run here; of an index of platforms only the one for this machine."""
    for descriptor in descriptors:
        if descriptor.media_type in INDEX_TYPES:
            if depth >= _DEEPEST_INDEX:
                raise InvalidArgument(f"{files.name}: its indexes are nested too deeply")
            text = _read_blob(files, descriptor)
            inner = parse_index(text, f"{files.name}: the index {descriptor.digest}")
            fitting = list(_manifests(files, inner, foreign, depth + 1))
            own = [entry for entry in fitting if entry.architecture in ("", architecture())]
            for entry in own or fitting:
                yield Descriptor(entry.media_type, entry.digest, entry.size, descriptor.names or entry.names)
        elif descriptor.media_type in MANIFEST_TYPES and descriptor.os != "unknown":
            yield descriptor


def _only_one(where: str, name: str, choices: list[tuple[tuple[str, ...], Choice]]) -> Choice:
    found = [choice for names, choice in choices if not name or is_called(names, name)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(sorted({names[0] for names, _ in choices if names})) or "none has a name"
    if not choices:
        raise InvalidArgument(f"{where} holds no image")
    if not found:
        raise NotFound(f"{where} has no image {name[:100]!r}; there are: {known}")
    raise InvalidArgument(f"{where} has several images, choose one with {where}:NAME; there are: {known}")


def _read_blob(files: ImageFiles, descriptor: Descriptor) -> bytes:
    text = read_document(files, descriptor.path)
    if digest_of(text) != descriptor.digest:
        raise InvalidArgument(f"{files.name}: the blob {descriptor.digest} is damaged: its digest is another")
    return text


def _sniff(path: str, where: str) -> str:
    with open(path, "rb") as file:
        head = file.read(4)
    if head == _ZSTD_MAGIC:
        raise InvalidArgument(
            f"{where}: a layer is compressed with zstd; only tar and tar+gzip can be unpacked"
        )
    return GZIP_TYPE if head.startswith(_GZIP_MAGIC) else TAR_TYPE


def _write(path: str, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
