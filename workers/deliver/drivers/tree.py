"""Writing a bundle into a folder, and comparing a folder with a bundle.

Paths are bytes, so that a name is the same under every locale. A folder is known by a file descriptor, and
what lies below it is opened relative to that, part by part and never through a symbolic link: what somebody
swaps in meanwhile can't lead a write elsewhere.
"""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import BinaryIO, Self

from workers.content import LINK_MODE, Bundle, Entry
from workers.deliver.drivers.base import Deadline, DriverError, Plan
from workers.deliver.drivers.entries import MAX_FOLDERS, check_entry, check_links, refuse

CHUNK_BYTES = 1 << 20
FOLDER_MODE = 0o755
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO must not block us
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def open_folder(name: str | bytes, *, dir_fd: int | None = None) -> int:
    """A descriptor of that folder; an OSError if it is anything else, a symbolic link included."""
    return os.open(name, _FOLDER_FLAGS, dir_fd=dir_fd)


def names(folder: int) -> list[str]:
    """What is in the folder."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def make_folder(name: str | bytes, *, dir_fd: int) -> int:
    """A descriptor of that folder, made if missing, durable, and readable by all whatever the umask."""
    with suppress(FileExistsError):
        os.mkdir(name, FOLDER_MODE, dir_fd=dir_fd)
    fd = open_folder(name, dir_fd=dir_fd)
    try:
        # Asked even if it was there: a kill may have come between mkdir and these.
        if stat.S_IMODE(os.fstat(fd).st_mode) & 0o777 != FOLDER_MODE:
            os.fchmod(fd, FOLDER_MODE)
        os.fsync(dir_fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def write_file(name: str | bytes, data: bytes, *, dir_fd: int) -> None:
    """Make a new, durable file of mode 0644; FileExistsError if the name is taken."""
    fd = os.open(name, _CREATE_FLAGS, 0o644, dir_fd=dir_fd)
    try:
        _write_all(fd, data)
        os.fchmod(fd, 0o644)
        os.fsync(fd)
    finally:
        os.close(fd)


def read_file(name: str | bytes, limit_bytes: int, *, dir_fd: int) -> bytes:
    """A file's bytes, at most ``limit_bytes``; an OSError if it is a symbolic link."""
    with os.fdopen(os.open(name, _READ_FLAGS, dir_fd=dir_fd), "rb") as file:
        return file.read(limit_bytes)


def delete(name: str | bytes, *, dir_fd: int) -> None:
    """Delete a file, a link or a whole folder, or nothing if it is gone."""
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
            shutil.rmtree(name, dir_fd=dir_fd)
        else:
            os.unlink(name, dir_fd=dir_fd)


def unpack(bundle: Bundle, folder: int, clock: Deadline) -> None:
    """Write every entry below the empty folder and make all of it durable."""
    links: dict[bytes, bytes] = {}
    with _Folders(folder) as folders:
        for entry, stream in _entries(bundle, clock):
            parts = check_entry(entry)
            try:
                parent = folders.enter(parts[:-1])
                if entry.mode == LINK_MODE:
                    links[b"/".join(parts)] = target = entry.link_target.encode("utf-8", "surrogateescape")
                    os.symlink(target, parts[-1], dir_fd=parent)
                else:
                    _write_entry(entry, stream, parts[-1], parent, clock)
            except FileExistsError:
                raise refuse(entry.path, "is there twice, or also as a folder") from None
            except NotADirectoryError:
                raise refuse(entry.path, "lies below a file or a symbolic link") from None
    check_links(links)


class _Folders:
    """The open folders down to where the last entry went; entries come in path order, so most stay open."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._open: list[tuple[bytes, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        self._leave(0, durable=failed is None)
        if failed is None:
            os.fsync(self._top)

    def enter(self, parts: tuple[bytes, ...]) -> int:
        common = 0
        for (name, _), part in zip(self._open, parts, strict=False):
            if name != part:
                break
            common += 1
        self._leave(common, durable=True)
        for part in parts[common:]:
            self._open.append((part, make_folder(part, dir_fd=self._innermost())))
        return self._innermost()

    def _innermost(self) -> int:
        return self._open[-1][1] if self._open else self._top

    def _leave(self, keep: int, *, durable: bool) -> None:
        while len(self._open) > keep:
            _, fd = self._open.pop()
            try:
                if durable:
                    os.fsync(fd)
            finally:
                os.close(fd)


def _write_entry(entry: Entry, stream: BinaryIO | None, name: bytes, parent: int, clock: Deadline) -> None:
    fd = os.open(name, _CREATE_FLAGS, 0o600, dir_fd=parent)
    try:
        for chunk in _chunks(entry, stream, clock):
            _write_all(fd, chunk)
        os.fchmod(fd, entry.mode)
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@dataclass(slots=True)
class Difference:
    """How a folder differs from a bundle; counts of files and links."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    kept: int = 0
    folders_differ: bool = False

    @property
    def nothing(self) -> bool:
        return not (self.added or self.changed or self.removed or self.folders_differ)

    def plan(self) -> Plan:
        return Plan(added=self.added, changed=self.changed, removed=self.removed, kept=self.kept)


def compare(bundle: Bundle, folder: int | None, clock: Deadline) -> Difference:
    """Compare each name, kind, mode and byte; ``None`` stands for a folder that is not there."""
    found = _Found()
    if folder is not None:
        _walk(folder, b"", found, clock)
    difference = Difference()
    implied: set[bytes] = set()
    for entry, stream in _entries(bundle, clock):
        parts = check_entry(entry)
        implied.update(b"/".join(parts[:depth]) for depth in range(1, len(parts)))
        path = b"/".join(parts)
        there = found.files.pop(path, None)
        if there is None:
            difference.added += 1
        elif folder is not None and _same(entry, stream, folder, path, there, clock):
            difference.kept += 1
        else:
            difference.changed += 1
    difference.removed = len(found.files)
    difference.folders_differ = found.wrong_folder or found.folders != implied
    return difference


@dataclass(slots=True)
class _Found:
    files: dict[bytes, os.stat_result] = field(default_factory=dict)
    folders: set[bytes] = field(default_factory=set)
    wrong_folder: bool = False


def _walk(folder: int, prefix: bytes, found: _Found, clock: Deadline) -> None:
    if stat.S_IMODE(os.fstat(folder).st_mode) & 0o777 != FOLDER_MODE:
        found.wrong_folder = True
    for name in map(os.fsencode, names(folder)):
        clock.check()
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        # No release of ours is deeper, so what is below there is foreign and counts as one thing.
        if not stat.S_ISDIR(status.st_mode) or prefix.count(b"/") >= MAX_FOLDERS:
            found.files[prefix + name] = status
            continue
        found.folders.add(prefix + name)
        inner = open_folder(name, dir_fd=folder)
        try:
            _walk(inner, prefix + name + b"/", found, clock)
        finally:
            os.close(inner)


def _same(
    entry: Entry, stream: BinaryIO | None, folder: int, path: bytes, status: os.stat_result, clock: Deadline
) -> bool:
    if entry.mode == LINK_MODE:
        target = entry.link_target.encode("utf-8", "surrogateescape")
        return stat.S_ISLNK(status.st_mode) and os.readlink(path, dir_fd=folder) == target
    if not stat.S_ISREG(status.st_mode) or stat.S_IMODE(status.st_mode) != entry.mode:
        return False
    if status.st_size != entry.size:
        return False
    with os.fdopen(os.open(path, _READ_FLAGS, dir_fd=folder), "rb") as file:
        for chunk in _chunks(entry, stream, clock):
            if file.read(len(chunk)) != chunk:
                return False
        return not file.read(1)


def _entries(bundle: Bundle, clock: Deadline) -> Iterator[tuple[Entry, BinaryIO | None]]:
    """The bundle's entries; an OSError here is the store's and must not blame the target's disk."""
    entries = bundle.entries()
    while True:
        clock.check()
        try:
            item = next(entries, None)
        except OSError as error:
            raise _unreadable(bundle.sha256) from error
        if item is None:
            return
        yield item


def _chunks(entry: Entry, stream: BinaryIO | None, clock: Deadline) -> Iterator[bytes]:
    """The file's bytes; DriverError "bundle_unreadable" if they are not as many as the entry says."""
    if stream is None:
        raise _unreadable(entry.path)
    left = entry.size
    while True:
        clock.check()
        try:
            chunk = stream.read(min(CHUNK_BYTES, left + 1))  # one more than is left, to see that nothing follows
        except OSError as error:
            raise _unreadable(entry.path) from error
        if not chunk:
            break
        left -= len(chunk)
        if left < 0:
            break
        yield chunk
    if left:
        raise _unreadable(entry.path)


def _unreadable(what: str) -> DriverError:
    return DriverError(
        "bundle_unreadable",
        f"The bundle could not be read from its store ({what[:200]!a}); nothing was delivered. "
        "It is retried; if this happens again, look at the storage of the bundles.",
    )
