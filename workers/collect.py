"""Collecting: what this machine's disk keeps and nothing needs any more, a bounded amount at a time.

Mirrors lie on the machine of the workers that made them, and so may bundles, so each machine collects its own: the task
on queue `sync` (workers/tasks.py) goes to one of them after the other. What killed processes left is swept each time;
mirrors and bundles are looked at every few minutes at most.

A mirror is touched under its row's lease alone, which keeps jobs away, and under its lock, which keeps away what a frozen
job's git may still do. One that is in use has its turn another time.

A bundle's row goes first (repos/retention.py), its file here, once it has no row and was stored longer than BUNDLE_GRACE
ago. A collector that dies between the two leaves a file without a row, which is what is looked for. A job that makes the
same content again stores a young file before it writes the row, and a young file is never removed; what can't be removed
on condition is moved aside first (BundleStore.delete_if_older). Should a file be lost all the same, its deliveries find
out and have it made again.
"""

import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

import structlog
from django.conf import settings
from django.db.models import Q, Sum
from django.db.models.functions import Coalesce

from repos.leases import Renewer, claim, database_now, finish, held
from repos.models import Bundle, GitRepo, Mirror, Remote
from repos.retention import ago
from workers.bundle.errors import BundleError
from workers.bundle.store import BundleStore
from workers.fetch.locks import locked
from workers.fetch.mirror import Mirror as MirrorFolder
from workers.git_environment import sweep_run_folder
from workers.git_errors import GitError, MirrorBusy, MirrorCorrupt
from workers.prune import said

log = structlog.get_logger(__name__)

EVERY_SECONDS = 300.0
SWEEP_SECONDS = 60.0
BUDGET_SECONDS = 20.0
# Mirrors, bundles or names of one kind that are looked at in one query, and removed in one collection.
CHUNK = 500
MARKER = "collected.lock"
# What lies in MIRROR_DIR: a mirror, its lock, and what a killed process was making or removing.
ON_DISK = re.compile(r"([0-9a-f]{64})(?:\.lock|\.(?:old|new)-\d+)?")

T = TypeVar("T")
_run_folder_swept_at = 0.0


def collect_sometimes() -> dict[str, int]:
    """Sweep, and collect unless this machine has done so within EVERY_SECONDS or is at it; how many of each kind went."""
    swept = sweep()
    with _my_turn(settings.MIRROR_DIR / MARKER) as mine:
        return swept | (collect() if mine else {})


def sweep(limit: int = CHUNK) -> dict[str, int]:
    """Remove what killed processes left beside mirrors and bundles."""
    return _each(
        {
            "run-folders": lambda: sweep_run_folder(limit=limit),
            "drafts": lambda: BundleStore(settings.BUNDLE_DIR).sweep(settings.BUNDLE_GRACE),
        }
    )


@contextmanager
def _my_turn(marker: Path) -> Iterator[bool]:
    """Whether nobody on this machine is at it or has just been. The marker's time is the last collection's."""
    try:
        with locked(marker, shared=False):
            since = time.time() - marker.stat().st_mtime
            # A clock that was set back must not put it off.
            mine = not 0 <= since < EVERY_SECONDS or marker.stat().st_size == 0
            yield mine
            if mine:
                marker.write_text("The time of this file is that of the last collection.\n")
    except MirrorBusy:
        yield False


def sweep_run_folder_sometimes() -> int:
    """Remove what killed git children's parents left in DATA_DIR/run, on machines that only poll as well."""
    global _run_folder_swept_at  # noqa: PLW0603  (this process' own)
    now = time.monotonic()
    if now - _run_folder_swept_at < SWEEP_SECONDS and _run_folder_swept_at:
        return 0
    _run_folder_swept_at = now
    return sweep_run_folder()


def collect(limit: int = CHUNK, *, budget_seconds: float = BUDGET_SECONDS) -> dict[str, int]:
    """Remove at most `limit` of each kind."""
    until = time.monotonic() + budget_seconds
    store = BundleStore(settings.BUNDLE_DIR)

    def bundle_files() -> int:
        return store.sweep_leaving(settings.BUNDLE_GRACE) + collect_bundle_files(store, limit, until)

    return _each(
        {
            "bundle-files": bundle_files,
            "mirrors": lambda: collect_mirrors(limit, until),
            "keep-refs": lambda: collect_keep_refs(limit, until),
        }
    )


def _each(kinds: Mapping[str, Callable[[], int]]) -> dict[str, int]:
    """How many went of each kind; what one kind can't do keeps no other from its turn."""
    went: dict[str, int] = {}
    for kind, function in kinds.items():
        try:
            went[kind] = function()
        except (GitError, BundleError, OSError) as error:
            log.warning("could not collect", kind=kind, error=str(error)[:200])
    said(went)
    return went


# -- bundles -------------------------------------------------------------------------------------------------------


def collect_bundle_files(store: BundleStore, limit: int, until: float) -> int:
    """Remove files that have no row and were stored longer than BUNDLE_GRACE ago, until the monotonic instant `until`."""
    collected = 0
    shelves = store.shelves()
    # Another one first each time, so that a budget that is too short for all of them keeps none from its turn.
    random.shuffle(shelves)
    for shelf in shelves:
        old = (name for name, at in store.names(shelf) if time.time() - at > settings.BUNDLE_GRACE)
        while names := list(islice(old, CHUNK)):
            known = set(Bundle.objects.filter(sha256__in=names).values_list("sha256", flat=True))
            for name in names:
                if collected >= limit or time.monotonic() > until:
                    return collected
                collected += name not in known and store.delete_if_older(name, settings.BUNDLE_GRACE)
    return collected


# -- mirrors -------------------------------------------------------------------------------------------------------


def collect_mirrors(limit: int, until: float) -> int:
    """Remove mirrors of remotes that are gone, then those unused for MIRROR_UNUSED, then the least recently used ones
    until the rest is within MIRROR_MAX_BYTES.
    """
    collected = remove_strangers(limit, until)
    here = Mirror.objects.filter(worker_host=settings.WORKER_HOST)
    last = Coalesce("last_used_at", "due_at")
    unused = here.annotate(last=last).filter(last__lt=ago(database_now(), settings.MIRROR_UNUSED)).order_by("last")
    for pk in unused.values_list("pk", flat=True)[:limit]:
        if collected >= limit or time.monotonic() > until:
            return collected
        collected += remove_mirror(pk)
    if settings.MIRROR_MAX_BYTES:
        total = here.aggregate(total=Sum("size_bytes"))["total"] or 0
        rows = here.order_by(Coalesce("last_used_at", "due_at"), "pk").values_list("pk", "size_bytes")
        for pk in too_many(list(rows), total, settings.MIRROR_MAX_BYTES):
            if collected >= limit or time.monotonic() > until:
                return collected
            collected += remove_mirror(pk)
    return collected


def too_many(sizes: Iterable[tuple[int, int]], total: int, most: int) -> Iterator[int]:
    """The keys of those (key, size), of `total` together, that have to go from the front until `most` is left. Pure.

    What has no size frees nothing and stays.
    """
    for key, size in sizes:
        if total <= most:
            return
        if size > 0:
            total -= size
            yield key


def on_disk() -> set[str]:
    """The identities of the remotes of which something lies in MIRROR_DIR."""
    names = (path.name for path in Path(settings.MIRROR_DIR).glob("*"))
    return {match[1] for match in map(ON_DISK.fullmatch, names) if match}


def remove_strangers(limit: int, until: float) -> int:
    """Remove mirrors of remotes that are gone. One that has no row here gets one, and goes as the others do.

    There is no row to lease of a remote that is gone, so it is asked for again under the mirror's lock: a remote that has
    come back has its row before its first fetch takes the lock.
    """
    collected = 0
    for names in _chunks(sorted(on_disk())):
        remotes = dict(Remote.objects.filter(identity__in=names).values_list("identity", "pk"))
        known = set(
            Mirror.objects.filter(worker_host=settings.WORKER_HOST, remote__in=remotes.values()).values_list(
                "remote__identity", flat=True
            )
        )
        for name in names:
            if collected >= limit or time.monotonic() > until:
                return collected
            if name not in remotes:
                collected += _remove_stranger(name)
            elif name not in known:
                _adopt(remotes[name], MirrorFolder(settings.MIRROR_DIR / name))
    return collected


def _remove_stranger(name: str) -> bool:
    try:
        return MirrorFolder(settings.MIRROR_DIR / name).remove(
            still=lambda: not Remote.objects.filter(identity=name).exists()
        )
    except GitError as error:
        return _not_now(name, error)


def _not_now(mirror: str, error: GitError) -> bool:
    """False: the mirror is in use, or the disk refuses, which keeps no other mirror from its turn."""
    if not isinstance(error, MirrorBusy):
        log.warning("could not collect a mirror", mirror=mirror, error=str(error), detail=error.detail)
    return False


def _adopt(remote: int, folder: MirrorFolder) -> None:
    now = database_now()
    Mirror.objects.get_or_create(
        remote_id=remote,
        worker_host=settings.WORKER_HOST,
        defaults={"due_at": now, "last_used_at": now, "size_bytes": folder.size_bytes()},
    )


@contextmanager
def leased_mirror(pk: int) -> Iterator[tuple[Mirror, MirrorFolder] | None]:
    """The mirror's row, leased and with its remote, and its folder; None if a job is using it. The lease is given back."""
    rows = claim(Mirror, limit=1, seconds=settings.JOB_LEASE, where=Q(pk=pk))
    if not rows:
        yield None
        return
    [row] = rows
    try:
        with Renewer(settings.JOB_LEASE) as renewer, renewer.keeping(row, deadline_seconds=settings.GIT_FETCH_TIMEOUT):
            yield row, MirrorFolder(settings.MIRROR_DIR / row.remote.identity)
    finally:
        finish(row, **Mirror.due_in(database_now(), 0))


def remove_mirror(pk: int) -> bool:
    """Remove one mirror and its row; False if something is using it."""
    with leased_mirror(pk) as found:
        if found is None:
            return False
        row, folder = found
        try:
            folder.remove()
        except GitError as error:
            return _not_now(row.remote.identity, error)
        return held(row).delete()[0] > 0


def followers(remotes: Sequence[int]) -> Mapping[int, set[str]]:
    """The names of the keep refs that each remote's GitRepos need."""
    needed: dict[int, set[str]] = {remote: set() for remote in remotes}
    rows = GitRepo.objects.alive().filter(remote__in=remotes).order_by()
    for remote, pk in rows.values_list("remote_id", "pk"):
        needed[remote].add(str(pk))
    return needed


def superfluous(refs: Iterable[str], needed: set[str]) -> list[str]:
    """The keep refs of GitRepos that are not among those `needed`. What is not named after one stays. Pure."""
    return sorted(ref for ref in refs if ref.partition("/")[0].isdecimal() and ref.partition("/")[0] not in needed)


def collect_keep_refs(limit: int, until: float) -> int:
    """Let go of the commits that GitRepos held which are gone, or follow another remote now, and of their objects."""
    collected = 0
    here = Mirror.objects.filter(worker_host=settings.WORKER_HOST).order_by("pk")
    for rows in _chunks(list(here.values_list("pk", "remote_id", "remote__identity"))):
        needed = followers([remote for _, remote, _ in rows])
        for pk, remote, identity in rows:
            if collected >= limit or time.monotonic() > until:
                return collected
            if superfluous(MirrorFolder(settings.MIRROR_DIR / identity).loose_keep_refs(), needed[remote]):
                collected += drop_keep_refs(pk)
    return collected


def drop_keep_refs(pk: int) -> int:
    """Drop what no GitRepo of the mirror needs, and the objects that nothing holds then; how many refs went."""
    with leased_mirror(pk) as found:
        if found is None:
            return 0
        row, folder = found
        dropped = 0
        try:
            # Asked for under the lease: who follows the remote from now on fetches before it needs its ref.
            for ref in superfluous(folder.refs(), followers([row.remote_id])[row.remote_id]):
                folder.drop_ref(ref)
                dropped += 1
            if dropped:
                folder.maintain(deadline_seconds=settings.GIT_FETCH_TIMEOUT)
                held(row).update(size_bytes=folder.size_bytes())
        except MirrorCorrupt:
            # Nothing can be asked of it any more, and it is only a copy.
            folder.remove()
            held(row).delete()
        except GitError as error:
            _not_now(row.remote.identity, error)
        return dropped


def _chunks(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))
