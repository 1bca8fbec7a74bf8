"""The sync stage: one claimed job at a time, from the remote's commit to deliveries that want its bundle.

The database is touched before and after the work, never during it: no lock and no transaction is held while git or the
disk is busy.
"""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

import structlog
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce

from fleetsync.failpoints import hit
from fleetsync.stopping import drain_seconds
from repos import deliveries, leases, registration
from repos.events import cut, record_event
from repos.fields import SecretUnreadable
from repos.leases import Renewer, Where, claim, database_now, finish, held, leased
from repos.models import Bundle, Counter, GitRepo, HostNotBefore, Mirror, Remote, Revision, SyncJob
from repos.quarantine import is_quarantined, sentence
from repos.quarantine import wait_seconds as quarantine_seconds
from repos.remotes import LONGEST_PATIENCE_SECONDS, PATIENCE_SECONDS, leave_alone
from repos.schedule import next_wait_seconds
from workers.bundle.errors import BundleError
from workers.git_environment import AccessError
from workers.git_errors import CommitNotFound, GitError, HostPatience, MirrorBusy, TooManyRequests
from workers.make import Made, Work, make

log = structlog.get_logger(__name__)
State = SyncJob.State

RETRY_SECONDS = 2.0
# A job whose mirror is in use goes back to the queue for about this long.
BUSY_SECONDS = 0.5
# The part of a session's budget in which it takes jobs whose last claims ended without a word before all others.
PROBATION_PART = 0.25


class Dropped(Exception):
    """The job is not to be finished by this run."""


def free_jobs() -> Where:
    """Jobs whose GitRepo has none running, and whose mirror on this machine is free."""
    return Where(_free_jobs, (settings.WORKER_HOST,))


def _free_jobs(now: datetime, worker_host: str) -> Q:
    running = SyncJob.objects.filter(gitrepo=OuterRef("gitrepo"), state=State.RUNNING).exclude(pk=OuterRef("pk"))
    fetching = Mirror.objects.filter(leased(now), remote=OuterRef("gitrepo__remote"), worker_host=worker_host)
    return ~Exists(running) & ~Exists(fetching)


def run_session(*, budget_seconds: float, stopping: Callable[[], bool]) -> int:
    """Run jobs until none is due or the budget is over; how many were run."""
    until = time.monotonic() + budget_seconds
    ran = 0
    with Renewer(settings.JOB_LEASE, stopping=stopping, drain_seconds=drain_seconds()) as renewer:
        # Asked for until there is none: they are rare, and each question costs every job.
        suspects = True
        while time.monotonic() < until and not stopping():
            first = time.monotonic() < until - budget_seconds * (1 - PROBATION_PART)
            job = None
            for wanted in (True, False) if first else (False, True):
                if job is None and (suspects or not wanted):
                    job = claim_job(suspects=wanted)
                    suspects = suspects and (job is not None or not wanted)
            if job is None:
                break
            run_job(job, renewer)
            ran += 1
    return ran


def claim_job(*, suspects: bool) -> SyncJob | None:
    """Lease the oldest due job, a suspect or none; either way it is all that this process has in hand."""
    with transaction.atomic():
        jobs = claim(
            SyncJob,
            limit=1,
            seconds=settings.JOB_LEASE,
            where=free_jobs(),
            extra=lambda now: {"state": State.RUNNING, "started_at": now},
            suspects=suspects,
        )
        for job in jobs:
            if is_quarantined(job):
                # Stored before the try, which may be the last thing that this process does.
                job.failures = max(job.failures + 1, job.crashes)
                columns = {"failures": job.failures, "last_error": cut(sentence(job.crashes))}
                wait = quarantine_seconds(0.0, random.random())  # noqa: S311
                held(job).update(**columns, **SyncJob.due_in(database_now(), wait))
    for job in jobs:
        if is_quarantined(job):
            _tell_of_quarantine(job, database_now())
    return jobs[0] if jobs else None


def _tell_of_quarantine(job: SyncJob, now: datetime) -> None:
    """In a transaction of its own: the GitRepo is locked, which comes before its jobs. If it is gone, nobody has an event
    to read.
    """
    message = sentence(job.crashes)
    with transaction.atomic():
        # An event needs its key, and nothing else of it.
        gitrepos = GitRepo.objects.select_for_update(of=("self",), no_key=True)
        gitrepo = gitrepos.filter(pk=job.gitrepo_id).first()
        if gitrepo is not None:
            record_event(gitrepo, "Quarantined", f"sync job: {message}", now, warning=True)
        Counter.add({("sync_jobs", "result=crashed"): 1})
    log.error("quarantined", gitrepo=gitrepo.name if gitrepo else "", job=job.pk, cause="crashed", error=message)


def run_job(job: SyncJob, renewer: Renewer) -> None:
    """Run one claimed job to its end, and write the end. Never raises for what a remote or a disk does."""
    structlog.contextvars.bind_contextvars(job=job.pk)
    work = None
    try:
        with renewer.keeping(job, deadline_seconds=settings.GIT_FETCH_TIMEOUT + settings.JOB_LEASE):
            work = begin(job)
            hit("sync.make", work.gitrepo.name)
            made = make(work, renewer)
        hit("sync.conclude", work.gitrepo.name)
        conclude(work, made)
    except Dropped as dropped:
        log.info("sync job dropped", reason=str(dropped))
    except MirrorBusy:
        give_back(job, BUSY_SECONDS * (1 + random.random()))  # noqa: S311
    except HostPatience as patience:
        give_back(job, patience.seconds + settings.GITREPO_POLLING_INTERVAL * random.random())  # noqa: S311
        log.info("sync job waits for the host's patience", seconds=round(patience.seconds, 1))
    except (GitError, BundleError, AccessError, SecretUnreadable) as error:
        if work and isinstance(error, TooManyRequests):
            _leave_alone(work.remote)
        fail(job, getattr(error, "cause", "credential"), str(error))
        if isinstance(error, CommitNotFound):
            # What the remote has now is asked for; only a newer revision supersedes this one.
            registration.ask(job.gitrepo_id)
    except Exception:
        log.exception("a sync job failed in a way that is not known")
        fail(job, "internal", "the job failed inside fleetsync: see the worker's log")
    finally:
        structlog.contextvars.unbind_contextvars("job")


def begin(job: SyncJob) -> Work:
    """Look again after the claim: what was queued may not be wanted any more. Raises Dropped, with the end written."""
    revision = _asked_for().filter(pk=job.revision_id).first()
    if revision is None:
        raise Dropped("deleted")
    gitrepo = revision.gitrepo
    if is_for_nobody(gitrepo, revision) or revision.newer:
        supersede(job)
        raise Dropped("superseded")
    if gitrepo.paused:
        give_back(job, 0.0)
        raise Dropped("paused")
    log.info("sync job started", gitrepo=gitrepo.name, commit=revision.commit, revision=revision.number)
    patience = _patience_seconds(revision.not_before) if revision.not_before else 0.0
    return Work(job, gitrepo, revision, gitrepo.remote, revision.forced, patience)


def _asked_for() -> QuerySet[Any]:
    """Revisions with all that a job has to know, in one statement: `newer`, whether a later one waits, `forced`, as in Work,
    and `not_before`, the instant that the host asked for at last (429, Retry-After), if ever.
    """
    mine = {"gitrepo": OuterRef("gitrepo")}
    newer = SyncJob.objects.filter(**mine, revision__number__gt=OuterRef("number"), state__in=SyncJob.WAITING)
    pushed_aside = Revision.objects.filter(
        **mine,
        number__gt=Coalesce(OuterRef("gitrepo__wanted_revision__number"), 0),
        number__lte=OuterRef("number"),
        reason__in=(Revision.Reason.FORCE, Revision.Reason.ROLLBACK),
    )
    rows = Revision.objects.select_related("gitrepo__remote__credential", "gitrepo__wanted_revision__bundle")
    patience = HostNotBefore.objects.filter(
        host=OuterRef("gitrepo__remote__host"), credential_key=Coalesce(OuterRef("gitrepo__remote__credential"), 0)
    )
    return rows.annotate(
        newer=Exists(newer), forced=Exists(pushed_aside), not_before=Subquery(patience.values("until")[:1])
    )


def _patience_seconds(until: datetime) -> float:
    """How long the host is still to be left alone. An instant too far ahead was written by a clock that has been set back."""
    seconds = (until - database_now()).total_seconds()
    return seconds if 0 < seconds <= LONGEST_PATIENCE_SECONDS else 0.0


def _leave_alone(remote: Remote) -> None:
    """The host said to a fetch that it is asked too often: polls and other jobs of that credential leave it alone as well.
    Git does not tell for how long.
    """
    # The host goes with its last remote, which may have been purged meanwhile.
    with suppress(IntegrityError), transaction.atomic():
        leave_alone(remote.host_id, remote.credential_id, PATIENCE_SECONDS, database_now())


def is_for_nobody(gitrepo: GitRepo, revision: Revision) -> bool:
    """Whether the GitRepo is deleted, was edited since (the edit has asked for a revision of its own), or has got
    further already.
    """
    wanted = gitrepo.wanted_revision
    overtaken = wanted is not None and wanted.number > revision.number
    return gitrepo.deleted_at is not None or gitrepo.generation != revision.generation or overtaken


def give_back(job: SyncJob, wait_seconds: float) -> None:
    """Put the claimed job back into the queue, not as a failure; a newer one that waits already supersedes it."""
    with transaction.atomic():
        gitrepo = GitRepo.objects.select_for_update(of=("self",)).filter(pk=job.gitrepo_id).first()
        if gitrepo is None:
            return
        if SyncJob.objects.filter(gitrepo=gitrepo, state__in=SyncJob.WAITING).exists():
            supersede(job)
        elif gitrepo.paused:
            leases.give_back(job, state=State.PENDING, **SyncJob.not_due())
        else:
            leases.give_back(job, state=State.PENDING, **SyncJob.due_in(database_now(), wait_seconds))


def supersede(job: SyncJob) -> None:
    with transaction.atomic():
        if finish(job, state=State.SUPERSEDED, finished_at=database_now(), **SyncJob.not_due()):
            Revision.objects.filter(pk=job.revision_id, outcome=Revision.Outcome.OPEN).update(
                outcome=Revision.Outcome.SUPERSEDED
            )
            Counter.add({("sync_jobs", "result=superseded"): 1})


def conclude(work: Work, made: Made) -> None:
    """Write what the job made: the revision synced, its deliveries wanted, the job ended, in one transaction."""
    with transaction.atomic():
        gitrepo = GitRepo.objects.select_for_update(of=("self",)).filter(pk=work.gitrepo.pk).first()
        now = database_now()
        if gitrepo is not None and gitrepo.wanted_revision_id == work.gitrepo.wanted_revision_id:
            gitrepo.wanted_revision = work.gitrepo.wanted_revision  # read already
        if gitrepo is None or is_for_nobody(gitrepo, work.revision):
            supersede(work.job)
            return
        if gitrepo.remote_id != work.remote.pk:
            give_back(work.job, 0.0)
            return
        if not finish(work.job, state=State.SUCCEEDED, finished_at=now, last_error="", **SyncJob.not_due()):
            Counter.add({("fenced_writes", "stage=sync"): 1})
            log.warning("a late result was dropped", job=work.job.pk)
            return
        if not made.sha256:
            _unchanged(gitrepo, work.revision, made, now)
        else:
            _changed(gitrepo, work.revision, made, now)
        Counter.add({("sync_jobs", "result=" + ("succeeded" if made.sha256 else "unchanged")): 1})
    log.info(
        "synced",
        gitrepo=work.gitrepo.name,
        commit=work.revision.commit,
        bundle=made.sha256,
        changed=bool(made.sha256),
    )


def _unchanged(gitrepo: GitRepo, revision: Revision, made: Made, now: datetime) -> None:
    before = gitrepo.wanted_revision
    revision.bundle = before.bundle if before else None
    _keep(gitrepo, revision, made, Revision.Outcome.UNCHANGED, now)
    deliveries.record_unchanged(revision, deliveries.matched_clusters(gitrepo), now)
    record_event(gitrepo, "Unchanged", f"{revision.commit[:12]} changes nothing below the paths", now)


def _changed(gitrepo: GitRepo, revision: Revision, made: Made, now: datetime) -> None:
    [revision.bundle] = Bundle.objects.bulk_create(
        [Bundle(sha256=made.sha256, last_used_at=now, size_bytes=made.size_bytes, files=made.files)],
        update_conflicts=True,
        unique_fields=["sha256"],
        update_fields=["last_used_at"],
    )
    clusters = deliveries.matched_clusters(gitrepo)
    _keep(gitrepo, revision, made, Revision.Outcome.SYNCED if clusters else Revision.Outcome.NO_TARGET, now)
    deliveries.want(gitrepo, revision, clusters, now)
    record_event(gitrepo, "Synced", f"{revision.commit[:12]} wanted at {len(clusters)} clusters", now)


def _keep(gitrepo: GitRepo, revision: Revision, made: Made, outcome: str, now: datetime) -> None:
    revision.outcome, revision.synced_at, revision.selection_key = outcome, now, made.selection_key
    revision.save(update_fields=["bundle", "outcome", "synced_at", "selection_key"])
    GitRepo.objects.filter(pk=gitrepo.pk).update(wanted_revision=revision)
    gitrepo.wanted_revision = revision


def fail(job: SyncJob, cause: str, message: str) -> None:
    """The try failed: kept, shown, and tried again after a backoff, unless a newer revision waits already."""
    wait = next_wait_seconds(
        RETRY_SECONDS,
        job.failures,
        cap_seconds=settings.GITREPO_BACKOFF_CAP,
        jitter=settings.GITREPO_POLLING_JITTER,
    )
    with transaction.atomic():
        gitrepo = GitRepo.objects.select_for_update(of=("self",)).filter(pk=job.gitrepo_id).first()
        if gitrepo is None:
            return
        now = database_now()
        if SyncJob.objects.filter(gitrepo=gitrepo, state__in=SyncJob.WAITING).exists():
            supersede(job)
            return
        due = SyncJob.not_due() if gitrepo.paused else SyncJob.due_in(now, wait)
        if finish(job, state=State.FAILED, failures=job.failures + 1, last_error=cut(message), **due):
            Counter.add({("sync_jobs", "result=failed"): 1})
            record_event(gitrepo, "SyncFailed", message, now, warning=True)
    log.warning("sync job failed", gitrepo=gitrepo.name, cause=cause, error=message, failures=job.failures + 1)
