"""What a sync job makes: from the commit at the remote to a bundle, with git and the disk. Of the database it has the lease
of its mirror alone.
"""

import time
from contextlib import suppress
from dataclasses import dataclass

import structlog
from django.conf import settings
from django.db.models import Q

from repos.leases import Renewer, claim, database_now, finish
from repos.models import GitRepo, Mirror, Remote, Revision, SyncJob
from workers.access import fetch_access_of
from workers.addresses import resolved
from workers.bundle.build import build
from workers.bundle.errors import ContentChanged
from workers.bundle.select import Limits, list_entries, selection_key
from workers.bundles import store
from workers.fetch.limits import FetchLimits
from workers.fetch.mirror import Mirror as MirrorFolder
from workers.fetch.mirror import Source
from workers.fetch.partial import Wish, wish
from workers.git_errors import GitError, MirrorBusy, MirrorCorrupt, ObjectsRefused

log = structlog.get_logger(__name__)

# What repacking a mirror may take beyond the job's own deadline: less than the job's lease and its hard limit allow.
MAINTAIN_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Work:
    """What a job read when it began."""

    job: SyncJob
    gitrepo: GitRepo
    revision: Revision
    remote: Remote
    # A forced sync or a rollback is wanted by this revision or by one that it superseded: it can't end as unchanged.
    forced: bool
    # For how long the host still wants to be left alone (429, Retry-After).
    patience_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Made:
    """What a job made: the bundle's name and size, or nothing if the content is as it was."""

    selection_key: str
    sha256: str = ""
    size_bytes: int = 0
    files: int = 0


def mirror_of(remote: Remote) -> Mirror:
    """The leased row of the remote's mirror on this machine. Raises MirrorBusy if somebody fetches into it."""
    mine = {"remote": remote, "worker_host": settings.WORKER_HOST}
    for _ in range(2):
        if rows := claim(Mirror, limit=1, seconds=settings.JOB_LEASE, where=Q(**mine)):
            return rows[0]
        if not Mirror.objects.get_or_create(**mine, defaults={"due_at": database_now()})[1]:
            break
    raise MirrorBusy


def make(work: Work, renewer: Renewer) -> Made:
    """Fetch the commit, and bundle what the paths select, unless that is as it was. Git and disk only. Raises HostPatience
    where the host would have to be asked, and wants to be left alone.
    """
    row = mirror_of(work.remote)
    until = time.monotonic() + settings.GIT_FETCH_TIMEOUT
    folder = MirrorFolder(settings.MIRROR_DIR / work.remote.identity)
    size: dict[str, int] = {}
    try:
        with renewer.keeping(row, deadline_seconds=settings.GIT_FETCH_TIMEOUT):
            access = resolved(fetch_access_of(work.remote)).turned(work.job.failures)
            source = Source(access, FetchLimits(settings.GIT_FETCH_MAX_BYTES, work.patience_seconds))
            try:
                return content(work, folder, source, until)
            except (MirrorCorrupt, ContentChanged):
                folder.remove()
                raise
            finally:
                with suppress(OSError):
                    size = {"size_bytes": folder.size_bytes()}
    finally:
        now = database_now()
        finish(row, **Mirror.due_in(now, 0), last_fetch_at=now, last_used_at=now, **size)


def content(work: Work, folder: MirrorFolder, source: Source, until: float) -> Made:
    """make() without the database, until the monotonic instant `until`. A remote that turns out to give no files by their
    ids is fetched with all of them.
    """
    wanted = wish(settings.GIT_PARTIAL_CLONE, source.access.scheme, work.gitrepo.paths)
    try:
        return _content(work, folder, source, wanted, until)
    except ObjectsRefused as refused:
        log.warning("a mirror is made whole", gitrepo=work.gitrepo.name, reason=refused.detail or str(refused))
        return _content(work, folder, source, Wish.WHOLE, until)


def _content(work: Work, folder: MirrorFolder, source: Source, wanted: Wish, until: float) -> Made:
    report = folder.fetch(
        source.access,
        work.revision.commit,
        str(work.gitrepo.pk),
        deadline_seconds=until - time.monotonic(),
        limits=source.limits,
        run_folder=source.run_folder,
        wish=wanted,
    )
    log.info(
        "fetched",
        bytes=report.bytes,
        seconds=round(report.seconds, 3),
        asked_remote=report.fetched,
        partial=report.partial,
    )
    if report.fell_back:
        log.warning(
            "a mirror is whole that could have been partial", gitrepo=work.gitrepo.name, reason=report.fell_back
        )
    try:
        return bundle(work, folder, source, until - time.monotonic())
    finally:
        _maintain(folder, until - time.monotonic() + MAINTAIN_SECONDS)


def _maintain(folder: MirrorFolder, deadline_seconds: float) -> None:
    """Repack the mirror if it is time to. What was made is not lost if that fails: a later job tries again."""
    try:
        if folder.maintenance_due():
            folder.maintain(deadline_seconds=deadline_seconds)
    except GitError as error:
        log.warning("a mirror could not be repacked", mirror=folder.folder.name, cause=error.cause, error=str(error))


def bundle(work: Work, folder: MirrorFolder, source: Source, deadline_seconds: float) -> Made:
    paths = list(work.gitrepo.paths)
    before = work.gitrepo.wanted_revision
    with folder.reader(deadline_seconds=deadline_seconds, source=source) as reader:
        selection = selection_key(reader, work.revision.commit, paths)
        unchanged = (
            not work.forced
            and before is not None
            and before.pk != work.revision.pk
            and before.selection_key == selection.key
            and before.bundle is not None
            and store().exists(before.bundle.sha256)
        )
        if unchanged:
            return Made(selection.key)
        entries = list_entries(reader, selection, limits())
        if reader.filled:
            log.info("fetched files of a partial mirror", files=reader.filled)
        built = build(reader, entries, store())
    return Made(selection.key, built.sha256, built.size, built.files)


def limits() -> Limits:
    return Limits(settings.BUNDLE_MAX_FILES, settings.BUNDLE_MAX_BYTES, settings.BUNDLE_MAX_FILE_BYTES)
