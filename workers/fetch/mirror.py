"""The kept bare copy of one remote, in which each commit that is needed is held by a ref of ours."""

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from workers.fetch import layout
from workers.fetch.git import GitCall, GitFailed, run
from workers.fetch.locks import locked
from workers.fetch.reader import GitObjectReader
from workers.git_environment import AccessError, RemoteAccess, git_environment, local_environment
from workers.git_errors import (
    AccessRefused,
    BadObjects,
    Cleaner,
    GitError,
    LimitExceeded,
    MirrorCorrupt,
    cleaner,
    disk_errors,
)

COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
KEEP_REF = re.compile(r"[A-Za-z0-9_-]{1,100}(/[A-Za-z0-9_-]{1,100}){0,3}")
# Each fetch leaves one pack and one line in `shallow`, which is sent to the server with the next fetch.
MAX_PACKS, MAX_SHALLOW_BYTES = 40, 20_000
TOO_BIG = re.compile(rf"died of signal {signal.SIGXFSZ.value}\b|file too large", re.IGNORECASE)
NO_DEPTH = re.compile(r"does not support (shallow|--depth)|shallow capabilities", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """`max_bytes` of pack for one fetch (GIT_FETCH_MAX_BYTES)."""

    max_bytes: int = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class FetchReport:
    """`bytes` by which the mirror grew, `seconds` taken, and whether the remote was asked at all."""

    bytes: int
    seconds: float
    fetched: bool


class Mirror:
    """One mirror in one folder. Locks are files beside the folder, so that removing the folder keeps them.

    Every method that takes the lock raises MirrorBusy at once if somebody else holds it, and GitError for the
    rest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock_file = folder.with_name(folder.name + ".lock")

    def fetch(
        self,
        access: RemoteAccess,
        commit: str,
        keep_ref: str,
        *,
        deadline_seconds: float,
        limits: FetchLimits | None = None,
        run_folder: Path | None = None,
    ) -> FetchReport:
        """Have `commit` with all its files, held by refs/fleetsync/`keep_ref`.

        1. Alone: take the lock, which git inherits, and remove what killed processes left.
        2. The commit is there whole: move the ref, ask nobody.
        3. Otherwise fetch it by its id, so that no later push can come between.
        4. A mirror that turns out to be damaged is removed and fetched anew, once.

        `keep_ref` is an id of ours, as in "17" or "17/42". After an error nothing is left of the attempt.
        """
        _checked(COMMIT, commit, "a commit id")
        _checked(KEEP_REF, keep_ref, "a name for a ref")
        started = time.monotonic()
        with disk_errors(), locked(self.lock_file, shared=False) as lock:
            layout.tidy(self.folder)
            with _environment(access, run_folder) as (env, clean):
                call = GitCall(
                    git_dir=self.folder,
                    env=env,
                    deadline=started + deadline_seconds,
                    clean=clean,
                    inherit=(lock,),
                    max_file_bytes=(limits or FetchLimits()).max_bytes,
                )
                fetched, grown = self._fetch_or_remake(call, commit, keep_ref)
        return FetchReport(bytes=grown, seconds=time.monotonic() - started, fetched=fetched)

    @contextmanager
    def shared(self) -> Iterator[int]:
        """Keep the mirror from changing while it is read; answers the lock's descriptor, for children."""
        with locked(self.lock_file, shared=True) as lock:
            yield lock

    @contextmanager
    def reader(self, *, deadline_seconds: float) -> Iterator[GitObjectReader]:
        """Objects by id, under the shared lock. MirrorCorrupt from it means: remove() and fetch() again."""
        with disk_errors(), self.shared() as lock:
            if not (self.folder / "HEAD").exists():
                raise MirrorCorrupt("The mirror is not there any more. It is fetched anew.")
            with GitObjectReader(self._local(deadline_seconds, lock)) as reader:
                yield reader

    def refs(self, *, deadline_seconds: float = 30.0) -> dict[str, str]:
        """keep_ref and the commit that it holds, for retention."""
        with disk_errors(), self.shared() as lock:
            if not self.folder.exists():
                return {}
            call = self._local(deadline_seconds, lock)
            lines = _run(call, "for-each-ref", "--format=%(objectname) %(refname:lstrip=2)", "refs/fleetsync")
        return {name: commit for commit, name in (line.split(" ", 1) for line in lines.decode().splitlines())}

    def drop_ref(self, keep_ref: str, *, deadline_seconds: float = 30.0) -> None:
        """Let a commit go. Its objects stay until maintain()."""
        _checked(KEEP_REF, keep_ref, "a name for a ref")
        with disk_errors(), locked(self.lock_file, shared=False) as lock:
            if self.folder.exists():
                layout.tidy(self.folder)
                _run(self._local(deadline_seconds, lock), "update-ref", "-d", f"refs/fleetsync/{keep_ref}")

    def maintenance_due(self) -> bool:
        """Whether enough fetches have left their packs behind; looks at file names only."""
        shallow = self.folder / "shallow"
        try:
            return len(list((self.folder / "objects/pack").glob("*.pack"))) > MAX_PACKS or (
                shallow.exists() and shallow.stat().st_size > MAX_SHALLOW_BYTES
            )
        except FileNotFoundError:
            return False

    def maintain(self, *, deadline_seconds: float) -> None:
        """One pack of what the refs hold; what nothing holds is removed.

        Safe at once, without git's usual grace of two weeks, because nobody else can be writing or reading.
        """
        with disk_errors(), locked(self.lock_file, shared=False) as lock:
            if self.folder.exists():
                layout.tidy(self.folder)
                call = self._local(deadline_seconds, lock)
                try:
                    _run(call, "repack", "-a", "-d", "-q")
                    _run(call, "prune", "--expire=now")
                finally:
                    layout.tidy(self.folder)

    def size_bytes(self) -> int:
        return layout.size_bytes(self.folder)

    def leftovers(self) -> list[Path]:
        """What killed processes left and the next fetch will tidy; nothing is removed."""
        with disk_errors(), locked(self.lock_file, shared=False):
            return layout.leftovers(self.folder)

    def remove(self, *, still: Callable[[], bool] = lambda: True) -> bool:
        """Remove the mirror and its lock file, nothing if there is none. `still` is asked under the lock: False keeps it."""
        with disk_errors(), locked(self.lock_file, shared=False):
            if not still():
                return False
            layout.tidy(self.folder)
            layout.discard(self.folder)
            self.lock_file.unlink(missing_ok=True)
            return True

    def loose_keep_refs(self) -> set[str]:
        """The keep_refs by their files alone, without git and without the lock: a first look over many mirrors."""
        return layout.loose_refs(self.folder, "refs/fleetsync")

    def _fetch_or_remake(self, call: GitCall, commit: str, keep_ref: str) -> tuple[bool, int]:
        fresh = self._prepare(commit)
        try:
            return self._fetch_once(call, commit, keep_ref)
        except MirrorCorrupt as error:
            if fresh:
                # Nothing of ours was there to be damaged, so the remote sends what does not hold together.
                raise BadObjects(detail=error.detail) from error
        layout.discard(self.folder)
        self._prepare(commit)
        try:
            return self._fetch_once(call, commit, keep_ref)
        except MirrorCorrupt as error:
            raise BadObjects(detail=error.detail) from error

    def _prepare(self, commit: str) -> bool:
        """A mirror to fetch into; True if it had to be made."""
        kind = layout.object_format(commit)
        if self.folder.exists():
            if layout.is_ours(self.folder, kind):
                return False
            layout.discard(self.folder)
        layout.make(self.folder, kind)
        return True

    def _fetch_once(self, call: GitCall, commit: str, keep_ref: str) -> tuple[bool, int]:
        ref = f"refs/fleetsync/{keep_ref}"
        if self._has(call, commit):
            _run(call, "update-ref", ref, commit)
            return False, 0
        packs = self.folder / "objects"
        before = layout.size_bytes(packs)

        def watch() -> None:
            # The size of each file is held by the kernel (ulimit); this holds the sum of them.
            if layout.size_bytes(packs) - before > call.max_file_bytes:
                raise _too_big(call)

        try:
            # One commit and no history: measured on 6 MB in 300 files, a next commit to one file still costs
            # 2.6 kB, because our ref says what is here already. The file `shallow` grows by a line each,
            # hence maintain().
            try:
                run(call, *_fetch_words(commit, ref, "--depth=1"), watch=watch)
            except GitFailed as failed:
                if not NO_DEPTH.search(failed.stderr.decode("utf-8", "replace")):
                    raise
                run(call, *_fetch_words(commit, ref), watch=watch)  # a plain file server
        except GitFailed as failed:
            layout.tidy(self.folder)
            if TOO_BIG.search(failed.stderr.decode("utf-8", "replace")):
                raise _too_big(call) from failed
            if type(failed.error) in (GitError, BadObjects) and not self._is_sound(call):
                raise MirrorCorrupt(detail=failed.error.detail) from failed
            raise failed.error from failed
        except GitError:
            layout.tidy(self.folder)
            raise
        return True, max(layout.size_bytes(packs) - before, 0)

    def _has(self, call: GitCall, commit: str) -> bool:
        """Whether the commit and everything in its tree is here. Reads trees, but no file's content."""
        if not any((self.folder / "objects/pack").glob("*.idx")):
            return False
        try:
            run(call, "rev-list", "--objects", "--no-walk", "--quiet", commit)
        except GitFailed:
            return False
        return True

    def _is_sound(self, call: GitCall) -> bool:
        """Whether all that the refs hold can be walked: tells a damaged mirror from a remote that sends
        nonsense.
        """
        try:
            run(call, "rev-list", "--objects", "--all", "--quiet")
        except GitFailed:
            return False
        return True

    def _local(self, deadline_seconds: float, lock: int) -> GitCall:
        return GitCall(
            git_dir=self.folder,
            env=local_environment(),
            deadline=time.monotonic() + deadline_seconds,
            clean=cleaner(),
            inherit=(lock,),
        )


@contextmanager
def _environment(access: RemoteAccess, run_folder: Path | None) -> Iterator[tuple[dict[str, str], Cleaner]]:
    try:
        with git_environment(access, run_folder) as environment:
            yield environment.env, cleaner(environment.secrets)
    except AccessError as error:
        raise AccessRefused(str(error), cause=error.cause) from error


def _fetch_words(commit: str, ref: str, *more: str) -> list[str]:
    return [
        "fetch",
        "--quiet",
        "--no-tags",
        "--no-write-fetch-head",
        "--no-auto-maintenance",
        "--no-recurse-submodules",
        "--no-show-forced-updates",
        *more,
        "origin",  # its URL is in the environment
        f"+{commit}:{ref}",
    ]


def _run(call: GitCall, *arguments: str) -> bytes:
    """A local command: if it fails, the mirror is at fault unless git says otherwise."""
    try:
        return run(call, *arguments, max_output_bytes=64 * 1024**2)
    except GitFailed as failed:
        if failed.error.local:
            raise failed.error from failed
        raise MirrorCorrupt(detail=failed.error.detail) from failed


def _too_big(call: GitCall) -> LimitExceeded:
    return LimitExceeded(
        "GIT_FETCH_MAX_BYTES",
        f"The commit needs more than {call.max_file_bytes} bytes, the limit GIT_FETCH_MAX_BYTES. Make the "
        "repository "
        "smaller, or have the limit raised.",
    )


def _checked(pattern: re.Pattern[str], text: str, what: str) -> None:
    if not pattern.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not {what}.")
