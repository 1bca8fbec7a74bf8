"""The folder of one GitRepo at one target, and every step on it; directory.py puts them in order."""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import PurePosixPath
from typing import Any

from workers.deliver.drivers.base import Deadline, DriverError, Target
from workers.deliver.drivers.directory_state import NAME, RELEASE, State, bundle_of, read_state
from workers.deliver.drivers.entries import shown
from workers.deliver.drivers.tree import delete, make_folder, names, open_folder, write_file

STORE = ".fleetsync"
DEFAULT_KEEP_RELEASES = 3
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_OWNER = re.compile(rf"\.fleetsync/({_UUID.pattern})/?")
_CURRENT = re.compile(rf"releases/({RELEASE.pattern})")
_LOCK_WAIT_SECONDS = 0.01, 0.2  # the first wait between two tries, and the longest

_DISK_ERRORS: Mapping[int, tuple[str, str]] = {
    errno.ENOSPC: ("disk_full", "the disk is full. Free space there, or lower keep_releases of the cluster"),
    errno.EDQUOT: (
        "disk_full",
        "the quota is used up. Free space there, or lower keep_releases of the cluster",
    ),
    errno.EROFS: ("read_only", "the file system is read-only. Mount it writable"),
    errno.EACCES: ("permission", "the worker's user may not write there. Give it the right to"),
    errno.EPERM: ("permission", "the worker's user may not write there. Give it the right to"),
}


def read_settings(target: Target) -> tuple[str, int]:
    """The path and keep_releases; DriverError "settings" for what must not reach the disk."""
    path, keep = target.settings.get("path"), target.settings.get("keep_releases", DEFAULT_KEEP_RELEASES)
    where = f"Cluster {target.cluster}: the driver setting"
    if not isinstance(path, str) or not path.startswith("/") or not path.strip("/") or not path.isprintable():
        raise DriverError("settings", f"{where} path must be an absolute path of a folder; edit the cluster.")
    if any(part in (".", "..") for part in path.split("/")):
        raise DriverError("settings", f'{where} path must not have a part "." or ".."; edit the cluster.')
    if type(keep) is not int or keep < 1:
        raise DriverError("settings", f"{where} keep_releases must be a number from 1 on; edit the cluster.")
    if not _UUID.fullmatch(target.gitrepo_uuid) or not NAME.fullmatch(target.gitrepo_name):
        raise DriverError("settings", f"Cluster {target.cluster}: the GitRepo's name or UUID can't name a folder.")
    return path, keep


@contextmanager
def open_place(target: Target, clock: Deadline, below: str = "") -> Iterator["Place"]:
    """The GitRepo's place, made if missing, under its lock; ``below`` is the folder that no target may leave.

    Raises DriverError for everything that goes wrong with the disk, also inside the ``with`` block.
    """
    path, keep = read_settings(target)
    with _disk_errors(target, path), ExitStack() as stack:
        root = _open_root(target, path, below, stack, create=True)
        store = _closed_by(stack, make_folder(STORE, dir_fd=root))
        stack.enter_context(_locked(f"{target.gitrepo_uuid}.lock", store, clock, target))
        folder = _closed_by(stack, make_folder(target.gitrepo_uuid, dir_fd=store))
        releases = _closed_by(stack, make_folder("releases", dir_fd=folder))
        yield Place(target, clock, path, keep, root, store, folder, releases)


@contextmanager
def find_place(target: Target, clock: Deadline, below: str = "", *, lock: bool = True) -> Iterator["Place | None"]:
    """The same for reading: None if nothing was ever delivered there, and no folder is made."""
    path, keep = read_settings(target)
    with _disk_errors(target, path), ExitStack() as stack:
        place = None
        with suppress(FileNotFoundError):
            root = _open_root(target, path, below, stack, create=False)
            store = _closed_by(stack, open_folder(STORE, dir_fd=root))
            if lock:
                stack.enter_context(_locked(f"{target.gitrepo_uuid}.lock", store, clock, target))
            folder = _closed_by(stack, open_folder(target.gitrepo_uuid, dir_fd=store))
            releases = _closed_by(stack, open_folder("releases", dir_fd=folder))
            place = Place(target, clock, path, keep, root, store, folder, releases)
        yield place


def _open_root(target: Target, path: str, below: str, stack: ExitStack, *, create: bool) -> int:
    """The target's folder. Links of the moment may lead elsewhere in ``below``, never out of it, and not in
    the last part; what is swapped in after they were resolved is not followed."""
    if not below:
        if create:
            _make_missing(path)
        return _closed_by(stack, open_folder(path))
    given, top = PurePosixPath(path), os.path.realpath(below)
    folder = PurePosixPath(os.path.realpath(given.parent), given.name)
    if not folder.is_relative_to(top) or folder == PurePosixPath(top):
        where = f"Cluster {target.cluster}: the driver setting path"
        raise DriverError("settings", f"{where} must lead to a folder below {below}; edit the cluster.")
    if create:
        _make_missing(top)
    fd = _closed_by(stack, open_folder(top))
    for part in folder.relative_to(top).parts:
        try:
            fd = _closed_by(stack, open_folder(part, dir_fd=fd))
        except FileNotFoundError:
            if not create:
                raise
            fd = _closed_by(stack, make_folder(part, dir_fd=fd))
    return fd


def _closed_by(stack: ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


@dataclass(frozen=True, slots=True)
class Place:
    """Descriptors: ``root`` of the path, ``store`` of .fleetsync, ``folder`` of the UUID, ``releases``."""

    target: Target
    clock: Deadline
    path: str
    keep: int
    root: int
    store: int
    folder: int
    releases: int

    def error(self, cause: str, message: str) -> DriverError:
        return DriverError(cause, f"Cluster {self.target.cluster}, folder {self.path}: {message}")

    # The state

    def state(self) -> State | None:
        """What was delivered last; None if nothing was."""
        try:
            return read_state(self.folder)
        except (ValueError, KeyError, TypeError):
            file = f"{STORE}/{self.target.gitrepo_uuid}/state.json"
            raise self.error(
                "state_damaged",
                f"{file} is not what was written there. Delete that file; the next delivery makes it anew.",
            ) from None

    def write_state(self, state: State) -> None:
        aside = f".state.json.{_random()}"
        try:
            write_file(aside, state.to_json(), dir_fd=self.folder)
            os.replace(aside, "state.json", src_dir_fd=self.folder, dst_dir_fd=self.folder)
            os.fsync(self.folder)
        finally:
            with suppress(OSError):
                delete(aside, dir_fd=self.folder)

    # The releases

    def current(self) -> str | None:
        """The folder below releases that users see; None without one."""
        match = _CURRENT.fullmatch(_read_link("current", self.folder) or "")
        return match[1] if match else None

    @contextmanager
    def opened_release(self, release: str | None) -> Iterator[int | None]:
        """A descriptor of that release, None if it is missing."""
        try:
            fd = None if release is None else open_folder(release, dir_fd=self.releases)
        except (FileNotFoundError, NotADirectoryError):
            fd = None
        try:
            yield fd
        finally:
            if fd is not None:
                os.close(fd)

    def releases_of(self, sha256: str) -> list[str]:
        return sorted(name for name in names(self.releases) if RELEASE.fullmatch(name) and bundle_of(name) == sha256)

    @contextmanager
    def new_release(self, sha256: str) -> Iterator[tuple[str, int]]:
        """A free name and a descriptor of an empty folder aside, which gets that name if the block ends."""
        taken = set(names(self.releases))
        free = chain([sha256], (f"{sha256}-{number}" for number in count(2)))
        name = next(name for name in free if name not in taken)
        aside = f".{sha256}.{_random()}"
        fd = make_folder(aside, dir_fd=self.releases)
        try:
            yield name, fd
            os.rename(aside, name, src_dir_fd=self.releases, dst_dir_fd=self.releases)
            os.fsync(self.releases)
        finally:
            os.close(fd)
            with suppress(OSError):  # gone if renamed; what can't be deleted now is swept by the next apply
                delete(aside, dir_fd=self.releases)

    def check_current(self) -> None:
        """Refuse a file or folder that somebody put where the link belongs."""
        if _kind("current", self.folder) == "other":
            raise self._occupied(f"{STORE}/{self.target.gitrepo_uuid}/current")

    def switch(self, release: str) -> None:
        _replace_link(f"releases/{release}", "current", self.folder, self.folder)

    def sweep(self) -> None:
        """Delete what a killed worker left aside. Only under the lock: nobody else is at work then."""
        for folder in (self.folder, self.releases):
            for name in names(folder):
                if name.startswith("."):
                    delete(name, dir_fd=folder)

    def prune(self, keep: tuple[str, ...]) -> None:
        """Delete the other releases, each one renamed first, so that half of one never has its name."""
        for name in names(self.releases):
            if name in keep:
                continue
            aside = name if name.startswith(".") else f".{name[:100]}.{_random()}"
            if aside != name:
                os.rename(name, aside, src_dir_fd=self.releases, dst_dir_fd=self.releases)
            delete(aside, dir_fd=self.releases)

    def drop_current(self) -> None:
        if _kind("current", self.folder) != "missing":
            delete("current", dir_fd=self.folder)
            os.fsync(self.folder)

    # The name

    def has_name(self) -> bool:
        return self._owner() == self.target.gitrepo_uuid

    def rival_claim(self) -> float | None:
        """The claim of the other GitRepo that has the name; None if nobody has it or it gives way."""
        owner = self._owner()
        state = None if owner in (None, self.target.gitrepo_uuid) else self._state_of(str(owner))
        return None if state is None or state.removed else state.claim

    def take_name(self, claim: float, *, only_check: bool = False) -> None:
        """Make the name ours, or raise why it can't be; a file or folder of that name is never touched."""
        name, uuid = self.target.gitrepo_name, self.target.gitrepo_uuid
        with self._name_locked(name):
            kind, owner = _kind(name, self.root), self._owner()
            if owner == uuid:
                return
            if kind == "other" or (kind == "link" and owner is None and _leads_somewhere(name, self.root)):
                raise self._occupied(name)
            rival = self._state_of(owner) if owner else None
            if owner and rival and not rival.removed and (rival.claim, owner) > (claim, uuid):
                raise self.error(
                    "name_taken",
                    f"{name} belongs to a GitRepo of the same name that was registered later ({owner}). "
                    f"If that one is gone for good, delete the link {name} and sync again.",
                )
            if only_check:
                return
            if kind == "missing":
                os.symlink(f"{STORE}/{uuid}", name, dir_fd=self.root)  # fails if something came in between
                os.fsync(self.root)
            else:
                _replace_link(f"{STORE}/{uuid}", name, self.root, self.folder)

    def drop_name(self, name: str) -> None:
        """Delete the link of that name if it is ours."""
        with self._name_locked(name):
            if self._owner(name) == self.target.gitrepo_uuid:
                os.unlink(name, dir_fd=self.root)
                os.fsync(self.root)

    def _owner(self, name: str | None = None) -> str | None:
        match = _OWNER.fullmatch(_read_link(name or self.target.gitrepo_name, self.root) or "")
        return match[1] if match else None

    def _state_of(self, uuid: str) -> State | None:
        """Another GitRepo's state. It is replaced at once and as a whole, so no lock is needed to read it."""
        try:
            folder = open_folder(uuid, dir_fd=self.store)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return read_state(folder)
        except (ValueError, KeyError, TypeError):
            return None
        finally:
            os.close(folder)

    @contextmanager
    def _name_locked(self, name: str) -> Iterator[None]:
        # A hash, because a name may be as long as a file's name can be.
        lock = f"name-{hashlib.sha256(name.encode()).hexdigest()[:32]}.lock"
        with _locked(lock, self.store, self.clock, self.target):
            yield

    def _occupied(self, what: str) -> DriverError:
        return self.error("occupied", f"{what} is there and not a link of ours. Move it away, or use another folder.")


def _kind(name: str, dir_fd: int) -> str:
    """ "missing", "link" or "other"."""
    try:
        os.readlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return "other"
    return "link"


def _read_link(name: str, dir_fd: int) -> str | None:
    return os.readlink(name, dir_fd=dir_fd) if _kind(name, dir_fd) == "link" else None


def _leads_somewhere(name: str, dir_fd: int) -> bool:
    try:
        os.stat(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    return True


def _replace_link(text: str, name: str, dir_fd: int, aside_fd: int) -> None:
    """Point the link at ``text``, in one step for whoever reads it."""
    if _read_link(name, dir_fd) != text:
        aside = f".{name[:100]}.{_random()}"
        os.symlink(text, aside, dir_fd=aside_fd)
        os.replace(aside, name, src_dir_fd=aside_fd, dst_dir_fd=dir_fd)
    os.fsync(dir_fd)


def _make_missing(path: str) -> None:
    """Make the folder and its parents where missing, readable by all; leave what is there as it is."""
    folder = PurePosixPath(path)
    missing = []
    while not os.path.lexists(folder):
        missing.append(folder)
        folder = folder.parent
    for folder in reversed(missing):
        parent = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.close(make_folder(folder.name, dir_fd=parent))
        finally:
            os.close(parent)


@contextmanager
def _locked(name: str, dir_fd: int, clock: Deadline, target: Target) -> Iterator[None]:
    """An exclusive lock, waited for until the deadline; the kernel drops it when its holder dies.

    The file is never deleted: two holders could each have one of the same name.
    """
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    try:
        wait, longest = _LOCK_WAIT_SECONDS
        while not _try_lock(fd):
            if not clock.left():
                raise DriverError(
                    "busy",
                    f"Cluster {target.cluster}: another delivery of GitRepo {target.gitrepo_name} held "
                    f"the target for the whole {clock.seconds:g} seconds. It is retried.",
                )
            time.sleep(min(wait, clock.left()))
            wait = min(wait * 2, longest)
        yield
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _disk_errors(target: Target, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        cause, what = _DISK_ERRORS.get(error.errno or 0, ("disk", f"{reason}. Look at that folder and its disk"))
        name: Any = error.filename
        at = f" (at {shown(name)})" if isinstance(name, (str, bytes)) else ""
        message = f"Cluster {target.cluster}, folder {path}{at}: {what}; the delivery is retried."
        raise DriverError(cause, message) from error


def _random() -> str:
    return secrets.token_hex(8)
