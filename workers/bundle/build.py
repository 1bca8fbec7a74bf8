"""Entries of a tree as one tar, byte for byte the same wherever and whenever it is made."""

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass

from workers.bundle.errors import ContentChanged, ContentRefused
from workers.bundle.names import shown
from workers.bundle.select import TreeEntry
from workers.bundle.store import BundleStore, Draft
from workers.content import LINK_MODE
from workers.objects import Blob, ObjectReader

BLOCK_BYTES = 512
CHUNK_BYTES = 1024 * 1024
# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md: a pointer is below 1024 bytes, and `version`
# comes first.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LFS_POINTER_OLD = b"version http://git-media.io/v/"
LFS_MAX_BYTES = 1024


@dataclass(frozen=True, slots=True)
class BuiltBundle:
    """`size` is the tar's in bytes, `content_bytes` that of the files in it."""

    sha256: str
    size: int
    files: int
    content_bytes: int


def build(reader: ObjectReader, entries: Sequence[TreeEntry], store: BundleStore) -> BuiltBundle:
    """Read the entries' blobs and store their tar; ContentRefused for a file that is only an LFS pointer.

    `entries` are as list_entries() gives them: checked, sorted, within the limits. Nothing is stored after an
    error.
    """
    files = [entry for entry in entries if entry.mode != LINK_MODE]
    blobs = reader.blobs(entry.object_id for entry in files)
    with store.draft() as draft:
        for entry in entries:
            draft.write(_header(entry))
            if entry.mode != LINK_MODE:
                _copy(entry, next(blobs, None), draft)
        # POSIX: a tar ends with two blocks of zeros.
        draft.write(bytes(2 * BLOCK_BYTES))
        # Let the reader see that all was read, so that it can be used again.
        next(blobs, None)
        return BuiltBundle(draft.sha256, draft.size, len(entries), sum(entry.size for entry in files))


def _header(entry: TreeEntry) -> bytes:
    """A ustar header, with a pax one before it where a name is long or not ASCII; no time, no owner."""
    info = tarfile.TarInfo(entry.path)
    info.mtime = info.uid = info.gid = 0
    info.uname = info.gname = ""
    if entry.mode == LINK_MODE:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.link_target, 0o777
    else:
        info.mode, info.size = entry.mode, entry.size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _copy(entry: TreeEntry, blob: Blob | None, draft: Draft) -> None:
    if blob is None or blob.object_id != entry.object_id or blob.size != entry.size:
        raise ContentChanged("The mirror gave another object than it listed. It is fetched anew.")
    if entry.size <= LFS_MAX_BYTES:
        # Read at one go, so that the test sees the whole of it.
        data = blob.read()
        if data.startswith((LFS_POINTER, LFS_POINTER_OLD)):
            raise ContentRefused(
                "lfs",
                shown(entry.path),
                "it is kept in Git LFS, which is not fetched. Store it in Git itself, or select paths without it.",
            )
        draft.write(data)
        left = entry.size - len(data)
    else:
        left = entry.size
        while left and (data := blob.read(min(left, CHUNK_BYTES))):
            draft.write(data)
            left -= len(data)
    if left:
        raise ContentChanged("The mirror gave less than it listed. It is fetched anew.")
    draft.write(bytes(-entry.size % BLOCK_BYTES))
