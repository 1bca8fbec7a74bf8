"""File locks that are handed on to a child: the lock ends when the last process that holds the descriptor
does.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.git_errors import MirrorBusy

# A shell can name descriptors 0 to 9 for itself; ours stays clear of them.
FIRST_DESCRIPTOR = 10


@contextmanager
def locked(path: Path, *, shared: bool) -> Iterator[int]:
    """Hold flock(2) on `path`, which is made if need be; MirrorBusy at once if somebody else does.

    Answers the descriptor. Closing it is not unlocking: a child that was given it holds the lock until it is
    dead.
    """
    descriptor = _acquire(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def alone(path: Path, descriptor: int) -> Iterator[None]:
    """Hold a shared lock of locked() exclusively for a while; MirrorBusy at once if others hold it too, and then the
    block around it must end: the kernel lets go of a lock before it gives the other one.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise MirrorBusy from None
    try:
        if not _is_still(path, descriptor):
            raise MirrorBusy
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_SH)


def _acquire(path: Path, kind: int) -> int:
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise MirrorBusy from None
        # The file may have been removed, with its mirror, between the opening and the locking.
        if _is_still(path, descriptor):
            return descriptor
        os.close(descriptor)


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    first = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        return fcntl.fcntl(first, fcntl.F_DUPFD_CLOEXEC, FIRST_DESCRIPTOR)
    finally:
        os.close(first)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
