"""Bundles on disk, each named by the SHA-256 of its tar: `<folder>/<first two digits>/<sha256>.tar`.

A folder that several hosts may share. Each file appears whole or not at all, so there is nothing to lock.
"""

import hashlib
import os
import re
import tarfile
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from django.conf import settings

from workers.bundle.errors import BundleCorrupt, BundleMissing, disk_errors
from workers.content import LINK_MODE, Bundle, Entry

SHA256 = re.compile(r"[0-9a-f]{64}")
CHUNK_BYTES = 1024 * 1024


class Draft:
    """A tar on its way in."""

    def __init__(self, file: BinaryIO) -> None:
        self.size = 0
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self._file.write(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


class StoredBundle:
    """workers.content.Bundle over a tar whose hash has been checked. One reader at a time."""

    def __init__(self, sha256: str, file: BinaryIO) -> None:
        self.sha256 = sha256
        self._file = file

    def entries(self) -> Iterator[tuple[Entry, BinaryIO | None]]:
        self._file.seek(0)
        with tarfile.open(fileobj=self._file, mode="r:", encoding="utf-8", errors="strict") as tar:
            for member in tar:
                if member.issym():
                    yield Entry(member.name, LINK_MODE, 0, member.linkname), None
                elif member.isreg():
                    stream = tar.extractfile(member)
                    yield Entry(member.name, member.mode, member.size, ""), cast(BinaryIO, stream)
                else:
                    raise BundleCorrupt("The bundle has an entry that is neither file nor link. It is made anew.")


class BundleStore:
    """Raises StoreFull and StoreRefused for what the disk refuses."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(settings.BUNDLE_DIR)
        self._drafts = self.folder / "drafts"
        self._leaving = self.folder / "leaving"

    @contextmanager
    def draft(self) -> Iterator[Draft]:
        """A tar to write; stored under its hash when the block ends well, gone if it does not.

        Twins are welcome: the second replaces the first with the same bytes, and readers keep what they
        opened.
        """
        with disk_errors():
            self._drafts.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix="draft-", dir=self._drafts)
            path = Path(name)
            try:
                with os.fdopen(descriptor, "wb", buffering=CHUNK_BYTES) as file:
                    draft = Draft(file)
                    yield draft
                    file.flush()
                    os.fchmod(file.fileno(), 0o640)
                    os.fsync(file.fileno())
                self._publish(path, draft.sha256)
            except BaseException:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                raise

    @contextmanager
    def open_bundle(self, sha256: str) -> Iterator[Bundle]:
        """The bundle, after its whole hash was checked; BundleMissing, or BundleCorrupt and then it is
        removed.
        """
        path = self.path_of(sha256)
        with disk_errors():
            try:
                file = path.open("rb")
            except FileNotFoundError:
                raise BundleMissing("The bundle is not in the store any more. It is made anew.") from None
        with file:
            with disk_errors():
                found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != sha256:
                    self._remove_if_still(path, file)
                    raise BundleCorrupt("The bundle's bytes are not those that were stored. It is made anew.")
            yield StoredBundle(sha256, file)

    def exists(self, sha256: str) -> bool:
        return self.path_of(sha256).is_file()

    def delete(self, sha256: str) -> bool:
        """Whether there was one."""
        with disk_errors():
            try:
                self.path_of(sha256).unlink()
            except FileNotFoundError:
                return False
            return True

    def shelves(self) -> list[str]:
        """The first two digits that stored bundles have."""
        return sorted(path.name for path in self.folder.glob("[0-9a-f][0-9a-f]"))

    def names(self, shelf: str = "??") -> Iterator[tuple[str, float]]:
        """The hash of every stored bundle, or of those on one shelf, and when it was stored (seconds of the epoch)."""
        for path in self.folder.glob(f"{shelf}/*.tar"):
            with suppress(FileNotFoundError):
                if SHA256.fullmatch(path.stem):
                    yield path.stem, path.stat().st_mtime

    def delete_if_older(self, sha256: str, seconds: float) -> bool:
        """Remove a bundle that was stored longer than `seconds` ago; False if there is none, or a younger one.

        A job may be storing the same content at this moment, and nothing removes a file on condition. So the file is
        moved aside, which takes whichever is there, and looked at where nobody replaces it: a young one goes back, an old
        one goes. A collector that dies in between leaves it aside, and `sweep_leaving` does the rest.
        """
        # A name that nobody else uses: another collector may be at the same store.
        aside = self._leaving / f"{sha256}.{uuid.uuid4().hex}"
        with disk_errors():
            self._leaving.mkdir(parents=True, exist_ok=True)
            try:
                self.path_of(sha256).rename(aside)
            except FileNotFoundError:
                return False
            return self._settle(aside, seconds)

    def sweep_leaving(self, older_than_seconds: float) -> int:
        """Settle what dead collectors have moved aside; how many old ones went."""
        with disk_errors():
            found = [path for path in self._leaving.glob("*.*") if SHA256.fullmatch(path.stem)]
            return sum(self._settle(path, older_than_seconds) for path in found)

    def _settle(self, aside: Path, seconds: float) -> bool:
        # Another collector may sweep meanwhile, and decides the same: what is aside does not change.
        with suppress(FileNotFoundError):
            if aside.stat().st_mtime < time.time() - seconds:
                aside.unlink()
                return True
            if self.exists(aside.stem):
                aside.unlink()  # stored once more since, with the same bytes
            else:
                aside.replace(self.path_of(aside.stem))
        return False

    def sweep(self, older_than_seconds: float) -> int:
        """Remove drafts that nobody has written to for so long: their writers are dead. Answers how many."""
        removed = 0
        for path in self.abandoned(older_than_seconds):
            with suppress(FileNotFoundError):
                path.unlink()
                removed += 1
        return removed

    def abandoned(self, older_than_seconds: float) -> list[Path]:
        """The drafts that nobody has written to for so long."""
        found = []
        for path in self._drafts.glob("draft-*"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > older_than_seconds:
                    found.append(path)
        return sorted(found)

    def path_of(self, sha256: str) -> Path:
        if not SHA256.fullmatch(sha256):
            raise ValueError("A bundle's name is 64 lower-case hex digits.")
        return self.folder / sha256[:2] / f"{sha256}.tar"

    def _publish(self, draft: Path, sha256: str) -> None:
        path = self.path_of(sha256)
        if not path.parent.exists():
            path.parent.mkdir(exist_ok=True)
            _sync_folder(self.folder)
        draft.replace(path)
        _sync_folder(path.parent)

    @staticmethod
    def _remove_if_still(path: Path, file: BinaryIO) -> None:
        """Only what was read: a sound twin may have been stored meanwhile."""
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                path.unlink()


def _sync_folder(folder: Path) -> None:
    """A rename is on disk only when its folder is (fsync(2))."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
