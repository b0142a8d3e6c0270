"""Initial RAM disks: the fields of an archive, and the same bytes for the same content."""

import stat
from collections.abc import Iterator

from vmm.image import cpio

HEADER_BYTES = 110


def entries(archive: bytes) -> Iterator[tuple[str, list[int], bytes]]:
    """Read an archive as the kernel does: names, header fields and contents, up to the trailer."""
    at = 0
    while True:
        header = archive[at : at + HEADER_BYTES]
        assert header[:6] == b"070701"
        fields = [int(header[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
        size, name_size = fields[6], fields[11]
        name = archive[at + HEADER_BYTES : at + HEADER_BYTES + name_size - 1].decode()
        data = (at + HEADER_BYTES + name_size + 3) & ~3
        if name == "TRAILER!!!":
            assert len(archive) == data
            return
        yield name, fields, archive[data : data + size]
        at = (data + size + 3) & ~3


def test_an_archive_holds_its_entries_in_their_order() -> None:
    archive = cpio.archive(
        [
            cpio.directory("dev"),
            cpio.character_device("dev/console", 5, 1),
            cpio.program("init", b"odd"),
            cpio.program("second", b"four"),
        ]
    )

    found = list(entries(archive))

    assert [name for name, _, _ in found] == ["dev", "dev/console", "init", "second"]
    assert [content for _, _, content in found] == [b"", b"", b"odd", b"four"]
    assert [fields[1] for _, fields, _ in found] == [
        stat.S_IFDIR | 0o755,
        stat.S_IFCHR | 0o600,
        stat.S_IFREG | 0o755,
        stat.S_IFREG | 0o755,
    ]
    device = found[1][1]
    assert device[9:11] == [5, 1]


def test_nothing_but_the_content_is_in_an_archive() -> None:
    ((_, fields, _),) = entries(cpio.archive([cpio.program("init", b"x")]))

    inode, _, uid, gid, _, mtime = fields[:6]
    assert (inode, uid, gid, mtime) == (1, 0, 0, 0)
