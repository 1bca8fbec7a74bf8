"""The kept bare copy of one remote, in which each commit that is needed is held by a ref of ours."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from workers.fetch import layout, partial
from workers.fetch.git import GitCall, GitFailed, run, run_and_hear
from workers.fetch.limits import FetchLimits, bounded, pack_bound, too_big
from workers.fetch.locks import alone, locked
from workers.fetch.packs import may_have
from workers.fetch.partial import Wish
from workers.fetch.reader import GitObjectReader
from workers.git_environment import AccessError, RemoteAccess, git_environment, local_environment
from workers.git_errors import (
    AccessRefused,
    BadObjects,
    Cleaner,
    CommitNotFound,
    GitError,
    LimitExceeded,
    MirrorCorrupt,
    ObjectsRefused,
    cleaner,
    disk_errors,
)

COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
KEEP_REF = re.compile(r"[A-Za-z0-9_-]{1,100}(/[A-Za-z0-9_-]{1,100}){0,3}")
# Each fetch leaves one pack and one line in `shallow`, which is sent to the server with the next fetch.
MAX_PACKS, MAX_SHALLOW_BYTES = 40, 20_000
NO_DEPTH = re.compile(r"does not support (shallow|--depth)|shallow capabilities", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FetchReport:
    """`bytes` by which the mirror grew, `seconds` taken, and whether the remote was asked at all.

    `partial`: files that nobody wanted are not there. `fell_back` says why a mirror that was to be partial is not; "" if
    nothing of the kind happened.
    """

    bytes: int
    seconds: float
    fetched: bool
    partial: bool = False
    fell_back: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a reader gets what a partial mirror lacks."""

    access: RemoteAccess
    limits: FetchLimits = field(default_factory=FetchLimits)
    run_folder: Path | None = None


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
        wish: Wish = Wish.AS_IT_IS,
    ) -> FetchReport:
        """Have `commit` with all its files, or in a partial mirror with all its folders, held by
        refs/fleetsync/`keep_ref`.

        1. Alone: take the lock, which git inherits, and remove what killed processes left.
        2. The commit is there whole: move the ref, ask nobody.
        3. Otherwise fetch it by its id, so that no later push can come between.
        4. A mirror that turns out to be damaged is removed and fetched anew, once. One that can't stay partial is made
           whole.

        `keep_ref` is an id of ours, as in "17" or "17/42". After an error nothing is left of the attempt.
        """
        _checked(COMMIT, commit, "a commit id")
        _checked(KEEP_REF, keep_ref, "a name for a ref")
        started = time.monotonic()
        limits = limits or FetchLimits()
        with disk_errors(), locked(self.lock_file, shared=False) as lock:
            layout.tidy(self.folder)
            with _environment(access, run_folder) as (env, clean):
                call = GitCall(
                    git_dir=self.folder,
                    env=env,
                    deadline=started + deadline_seconds,
                    clean=clean,
                    inherit=(lock,),
                    max_file_bytes=limits.max_bytes,
                )
                fetched, grown, fell_back = self._fetch_or_remake(call, limits, commit, keep_ref, wish)
        seconds = time.monotonic() - started
        return FetchReport(grown, seconds, fetched, layout.is_partial(self.folder), fell_back)

    @contextmanager
    def shared(self) -> Iterator[int]:
        """Keep the mirror from changing while it is read; answers the lock's descriptor, for children."""
        with locked(self.lock_file, shared=True) as lock:
            yield lock

    @contextmanager
    def reader(self, *, deadline_seconds: float, source: Source | None = None) -> Iterator[GitObjectReader]:
        """Objects by id, under the shared lock. MirrorCorrupt from it means: remove() and fetch() again.

        In a partial mirror the reader's want() fetches what is lacking from `source`, within the same deadline.
        ObjectsRefused from it means: fetch() again, with Wish.WHOLE.
        """
        with disk_errors(), self.shared() as lock:
            if not (self.folder / "HEAD").exists():
                raise MirrorCorrupt("The mirror is not there any more. It is fetched anew.")
            call = self._local(deadline_seconds, lock)

            def fill(object_ids: Sequence[str], max_bytes: int) -> None:
                if source:
                    self._fill(call, source, object_ids, max_bytes)

            with GitObjectReader(call, fill if layout.is_partial(self.folder) else None) as reader:
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
                layout.tidy_after_others(self.folder)
                call = self._local(deadline_seconds, lock)
                try:
                    if layout.is_partial(self.folder):
                        with _local_errors():
                            partial.repack(call, self.folder)
                    else:
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
            layout.tidy_after_others(self.folder)
            layout.discard(self.folder)
            self.lock_file.unlink(missing_ok=True)
            return True

    def loose_keep_refs(self) -> set[str]:
        """The keep_refs by their files alone, without git and without the lock: a first look over many mirrors."""
        return layout.loose_refs(self.folder, "refs/fleetsync")

    def _fetch_or_remake(
        self, call: GitCall, limits: FetchLimits, commit: str, keep_ref: str, wish: Wish
    ) -> tuple[bool, int, str]:
        """Whether the remote was asked, by how many bytes the mirror grew, and why it is not partial as wished."""
        fresh = self._prepare(commit, wish)
        was_partial = layout.is_partial(self.folder)
        try:
            return self._fetch_once(call, limits, commit, keep_ref)
        except (MirrorCorrupt, ObjectsRefused) as error:
            if fresh and not was_partial:
                # Nothing of ours was there to be damaged, so the remote sends what does not hold together.
                raise BadObjects(detail=error.detail) from error
            refused = error
        # What a new partial mirror stumbles over, a whole one may not.
        whole = was_partial and (fresh or isinstance(refused, ObjectsRefused))
        layout.discard(self.folder)
        self._prepare(commit, Wish.WHOLE if whole else wish)
        try:
            fetched, grown, fell_back = self._fetch_once(call, limits, commit, keep_ref)
        except MirrorCorrupt as error:
            raise BadObjects(detail=error.detail) from error
        return fetched, grown, fell_back or (refused.detail if whole else "")

    def _prepare(self, commit: str, wish: Wish) -> bool:
        """A mirror to fetch into; True if it had to be made."""
        kind = layout.object_format(commit)
        if self.folder.exists():
            unwanted = wish is Wish.WHOLE and layout.is_partial(self.folder)
            if layout.is_ours(self.folder, kind) and not unwanted:
                return False
            layout.discard(self.folder)
        layout.make(self.folder, kind, partial=wish is Wish.PARTIAL)
        return True

    def _fetch_once(self, call: GitCall, limits: FetchLimits, commit: str, keep_ref: str) -> tuple[bool, int, str]:
        ref = f"refs/fleetsync/{keep_ref}"
        if self._has(call, commit):
            _run(_here(call), "update-ref", ref, commit)
            return False, 0, ""
        limits.check_patience()
        before, empty = layout.size_bytes(self.folder / "objects"), not partial.pack_names(self.folder)
        try:
            with bounded(call, too_big(call.max_file_bytes)) as watch:
                unfiltered = self._ask(call, commit, ref, watch)
        except GitFailed as failed:
            if type(failed.error) in (GitError, BadObjects) and not self._is_sound(call):
                raise MirrorCorrupt(detail=failed.error.detail) from failed
            raise failed.error from failed
        fell_back = ""
        if unfiltered and empty:
            # It got every file, so it is as good as one that was never to be partial.
            layout.call_whole(self.folder, layout.object_format(commit))
            fell_back = "the server allows no filters (uploadpack.allowFilter)"
        return True, max(layout.size_bytes(self.folder / "objects") - before, 0), fell_back

    def _ask(self, call: GitCall, commit: str, ref: str, watch: Callable[[], None]) -> bool:
        """Fetch the commit; whether the server sent files that a partial mirror did not ask for."""
        filters = partial.PROMISED if layout.is_partial(self.folder) else ()
        # One commit and no history: measured on 6 MB in 300 files, a next commit to one file still costs 2.6 kB, because
        # our ref says what is here already. The file `shallow` grows by a line each, hence maintain().
        try:
            said = run_and_hear(call, *filters, *_fetch_words(commit, ref, "--depth=1"), watch=watch)
        except GitFailed as failed:
            if not NO_DEPTH.search(failed.stderr.decode("utf-8", "replace")):
                raise
            if filters:
                raise ObjectsRefused(detail="the server is a plain file server") from failed
            said = run_and_hear(call, *_fetch_words(commit, ref), watch=watch)
        return bool(filters) and bool(partial.NOT_FILTERED.search(said))

    def _fill(self, reading: GitCall, source: Source, object_ids: Sequence[str], max_bytes: int) -> None:
        """Fetch files that this partial mirror lacks; `reading` holds its lock. They may have `max_bytes` together.

        What came before an error stays for the next try, but after a limit's: nobody could use it.
        """
        source.limits.check_patience()
        most, refusal = pack_bound(max_bytes, len(object_ids), source.limits)
        before = partial.pack_names(self.folder)
        with alone(self.lock_file, *reading.inherit), _environment(source.access, source.run_folder) as (env, clean):
            call = replace(reading, env=env, clean=clean, max_file_bytes=most)
            try:
                with bounded(call, refusal) as watch:
                    partial.fetch_blobs(call, object_ids, watch=watch)
            except LimitExceeded:
                partial.remove_packs(self.folder, partial.pack_names(self.folder) - before)
                raise
            except GitFailed as failed:
                if isinstance(failed.error, CommitNotFound | MirrorCorrupt):
                    raise ObjectsRefused(detail=failed.error.detail) from failed
                raise failed.error from failed

    def _has(self, call: GitCall, commit: str) -> bool:
        """Whether the commit and everything in its tree is here, in a partial mirror all of its folders. Reads trees, but
        no file's content.
        """
        if not may_have(self.folder, commit):
            return False
        try:
            run(_here(call), "rev-list", "--objects", "--no-walk", "--quiet", *self._only_folders(), commit)
        except GitFailed:
            return False
        return True

    def _is_sound(self, call: GitCall) -> bool:
        """Whether all that the refs hold can be walked: tells a damaged mirror from a remote that sends
        nonsense.
        """
        try:
            run(_here(call), "rev-list", "--objects", "--all", "--quiet", *self._only_folders())
        except GitFailed:
            return False
        return True

    def _only_folders(self) -> list[str]:
        return [partial.FILTER] if layout.is_partial(self.folder) else []

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


def _here(call: GitCall) -> GitCall:
    """The same for a command that asks nobody, and could not if it wanted to."""
    return replace(call, env=local_environment())


def _run(call: GitCall, *arguments: str) -> bytes:
    with _local_errors():
        return run(call, *arguments, max_output_bytes=64 * 1024**2)


@contextmanager
def _local_errors() -> Iterator[None]:
    """If a local command fails, the mirror is at fault unless git says otherwise."""
    try:
        yield
    except GitFailed as failed:
        if failed.error.local:
            raise failed.error from failed
        raise MirrorCorrupt(detail=failed.error.detail) from failed


def _checked(pattern: re.Pattern[str], text: str, what: str) -> None:
    if not pattern.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not {what}.")
