"""Deciding on revisions: when an observed head becomes one, and what making one does to older work."""

from datetime import datetime
from typing import Any

from repos.doorbells import ring_on_commit
from repos.models import GitRepo, Revision, SyncJob
from repos.refs import Head

Reason = Revision.Reason


def reason_for(last: Revision | None, commit: str, generation: int, *, forced: bool) -> str | None:
    """Why `commit` is worth a new revision at `generation` after the revision `last`; None if it is none. Pure.

    A forced sync goes first, because it must never end as "unchanged".
    """
    if last is None:
        return Reason.NEW_HEAD
    if forced:
        return Reason.FORCE
    if last.generation != generation:
        return Reason.SPEC
    return Reason.NEW_HEAD if last.commit != commit else None


def last_revision(gitrepo: GitRepo) -> Revision | None:
    return Revision.objects.filter(gitrepo=gitrepo).order_by("-number").first()


def make_revision(gitrepo: GitRepo, head: Head, reason: str, now: datetime) -> Revision:
    """Number a new revision of the locked GitRepo, whose row the caller writes, supersede what still waits, and queue its
    job. Of a paused GitRepo the job is stored without a due instant.
    """
    gitrepo.latest_revision += 1
    revision = Revision.objects.create(
        gitrepo=gitrepo,
        number=gitrepo.latest_revision,
        commit=head.commit,
        ref=head.ref,
        generation=gitrepo.generation,
        reason=reason,
        observed_at=now,
    )
    _make_room(gitrepo, now)
    SyncJob.objects.create(
        gitrepo=gitrepo,
        revision=revision,
        created_at=now,
        **(SyncJob.not_due() if gitrepo.paused else SyncJob.due_in(now, 0)),
    )
    ring_on_commit("sync")
    return revision


def _make_room(gitrepo: GitRepo, now: datetime) -> None:
    """Supersede the locked GitRepo's waiting job. Who has none gets none meanwhile: that takes the GitRepo's lock.

    A running job is left alone: it may end and count. One that ended its worker is looked at now and not when its
    quarantine is over, or the new one would wait for it.
    """
    states = (*SyncJob.WAITING, SyncJob.State.RUNNING)
    open_jobs = set(SyncJob.objects.filter(gitrepo=gitrepo, state__in=states).values_list("state", flat=True))
    if open_jobs:
        supersede_waiting(gitrepo, now)
        running = SyncJob.objects.filter(gitrepo=gitrepo, state=SyncJob.State.RUNNING, due_at__gt=now)
        running.update(**SyncJob.due_in(now, 0))


def supersede_waiting(gitrepo: GitRepo, now: datetime) -> None:
    """End the locked GitRepo's waiting job, whose revision will never be synced.

    The row is locked first: a worker may be claiming it, and what it has claimed is left alone.
    """
    waiting = SyncJob.objects.filter(gitrepo=gitrepo, state__in=SyncJob.WAITING)
    ended = dict(waiting.select_for_update().order_by("pk").values_list("pk", "revision"))
    if not ended:
        return
    SyncJob.objects.filter(pk__in=ended).update(state=SyncJob.State.SUPERSEDED, finished_at=now, **SyncJob.not_due())
    Revision.objects.filter(pk__in=ended.values(), outcome=Revision.Outcome.OPEN).update(
        outcome=Revision.Outcome.SUPERSEDED
    )


def observe(
    gitrepo: GitRepo, head: Head, now: datetime, *, answered: int | None = None, **columns: Any
) -> Revision | None:
    """Take in what the remote says of the locked GitRepo: its revision if there is something new, and its requests handled;
    `columns` of its row are written with that.

    Requests beyond the number `answered` came after the remote was asked: a new head counts, they stay open, and so
    does a forced sync. None: there was nobody to ask (a pinned commit).
    """
    if answered is None or gitrepo.requested <= answered:
        handled, handled_force = gitrepo.requested, gitrepo.force_sync_generation
    else:
        handled, handled_force = max(gitrepo.handled, answered), gitrepo.handled_force
    forced = handled_force > gitrepo.handled_force
    reason = reason_for(last_revision(gitrepo), head.commit, gitrepo.generation, forced=forced)
    revision = make_revision(gitrepo, head, reason, now) if reason else None
    gitrepo.observed_commit, gitrepo.observed_at = head.commit, now
    gitrepo.handled, gitrepo.handled_force = handled, handled_force
    gitrepo.ref_failures, gitrepo.ref_error = 0, ""
    GitRepo.objects.filter(pk=gitrepo.pk).update(
        **columns,
        latest_revision=gitrepo.latest_revision,
        observed_commit=head.commit,
        observed_at=now,
        handled=gitrepo.handled,
        handled_force=gitrepo.handled_force,
        ref_failures=0,
        ref_error="",
    )
    return revision
