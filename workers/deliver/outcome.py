"""Writing how a delivery ended: the fence, the ledger, the events and the metrics, in one short transaction."""

import random
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Subquery

from repos import registration
from repos.deliveries import unless_changed
from repos.doorbells import ring_on_commit
from repos.events import cut, record_event
from repos.leases import database_now, finish, held
from repos.metrics import push_to_applied
from repos.models import Counter, Delivery, DeliveryRecord, GitRepo, Revision, SyncJob
from repos.quarantine import sentence, wait_seconds
from repos.schedule import next_wait_seconds

log = structlog.get_logger(__name__)
Outcome = DeliveryRecord.Outcome
State = Delivery.State

RETRY_SECONDS = 2.0


def applied(delivery: Delivery) -> bool:
    """The target has what was wanted at the claim. False: the lease was lost, and nothing was written."""
    with transaction.atomic():
        now = database_now()
        gitrepo = _locked_gitrepo(delivery)
        wanted = delivery.wanted_revision_id
        done = gitrepo is not None and finish(
            delivery,
            **unless_changed(
                delivery,
                state=State.REMOVED if delivery.removal else State.APPLIED,
                failures=0,
                last_error="",
                **Delivery.not_due(),
            ),
            applied_epoch=delivery.epoch,
            applied_sequence=delivery.sequence,
            applied_revision=_if_still_known(wanted),
            applied_bundle=delivery.wanted_bundle,
            applied_at=now,
        )
        if gitrepo is None or not done:
            return _lost(delivery)
        counted = {("deliveries", "result=" + ("removed" if delivery.removal else "applied")): 1.0}
        if wanted is not None:
            counted |= _close_record(delivery, now)
        Counter.add(counted)
        if delivery.removal:
            record_event(gitrepo, "Removed", f"removed from {delivery.cluster.name}", now)
            registration.purge(gitrepo)
    log.info(
        "delivered" if wanted is not None else "removed",
        gitrepo=gitrepo.name,
        cluster=delivery.cluster.name,
        commit=delivery.wanted_revision.commit if delivery.wanted_revision else "",
        sequence=delivery.sequence,
    )
    return True


def _close_record(delivery: Delivery, now: datetime) -> dict[tuple[str, str], float]:
    """End the ledger's line as delivered; what is counted for it, nothing if it had ended before."""
    revision = delivery.wanted_revision
    assert revision is not None  # noqa: S101 (for mypy: the caller looked)
    records = DeliveryRecord.objects.filter(revision=revision, cluster=delivery.cluster_id)
    ended = records.exclude(outcome__in=[Outcome.DELIVERED, Outcome.UNCHANGED]).update(
        outcome=Outcome.DELIVERED, error="", ended_at=now
    )
    return push_to_applied((now - (revision.pushed_at or revision.observed_at)).total_seconds()) if ended else {}


def failed(delivery: Delivery, cause: str, message: str) -> bool:
    """The try failed: shown, kept, and tried again after a backoff."""
    wait = next_wait_seconds(
        RETRY_SECONDS,
        delivery.failures,
        cap_seconds=settings.GITREPO_BACKOFF_CAP,
        jitter=settings.GITREPO_POLLING_JITTER,
    )
    with transaction.atomic():
        now = database_now()
        gitrepo = _locked_gitrepo(delivery)
        due = Delivery.not_due() if gitrepo is None or gitrepo.paused else Delivery.due_in(now, wait)
        columns = {"state": State.FAILED, "failures": delivery.failures + 1, "last_error": cut(message), **due}
        if gitrepo is None or not finish(delivery, **unless_changed(delivery, **columns)):
            return _lost(delivery)
        _mark_record(delivery, Outcome.FAILED, cut(message))
        Counter.add({("deliveries", "result=failed"): 1})
        record_event(gitrepo, "DeliveryFailed", f"{delivery.cluster.name}: {message}", now, warning=True)
    log.warning("delivery failed", gitrepo=gitrepo.name, cluster=delivery.cluster.name, cause=cause, error=message)
    return True


def store_quarantine(delivery: Delivery, now: datetime) -> None:
    """Store the next try and what is shown with the claim: this try may be the last thing that the process does."""
    delivery.failures = max(delivery.failures + 1, delivery.crashes)
    columns = {"state": State.FAILED, "failures": delivery.failures, "last_error": cut(sentence(delivery.crashes))}
    held(delivery).update(**columns, **Delivery.due_in(now, wait_seconds(0.0, random.random())))  # noqa: S311


def tell_of_quarantine(delivery: Delivery, now: datetime) -> None:
    """In a transaction of its own: the GitRepo is locked, which comes before its deliveries and their records.

    If it is gone, they are too: nobody has an event to read then.
    """
    message = sentence(delivery.crashes)
    with transaction.atomic():
        # An event needs its key, and nothing else of it.
        gitrepos = GitRepo.objects.select_for_update(of=("self",), no_key=True)
        gitrepo = gitrepos.filter(pk=delivery.gitrepo_id).first()
        if gitrepo is not None:
            _mark_record(delivery, Outcome.FAILED, cut(message))
            record_event(gitrepo, "Quarantined", f"{delivery.cluster.name}: {message}", now, warning=True)
        Counter.add({("deliveries", "result=crashed"): 1})
    name = gitrepo.name if gitrepo else ""
    log.error("quarantined", gitrepo=name, cluster=delivery.cluster.name, cause="crashed", error=message)


def held_back(delivery: Delivery, removed: int, present: int) -> bool:
    """The revision would remove too much of what the target has: it waits for somebody's approval."""
    message = (
        f"{delivery.cluster.name}: would remove {removed} of {present} files, more than DELIVERY_MAX_REMOVED_PART "
        f"({settings.DELIVERY_MAX_REMOVED_PART:g}) allows: approve it, or push a commit that keeps them"
    )
    with transaction.atomic():
        now = database_now()
        gitrepo = _locked_gitrepo(delivery)
        columns = {"state": State.HELD, "last_error": cut(message), **Delivery.not_due()}
        if gitrepo is None or not finish(delivery, **unless_changed(delivery, **columns)):
            return _lost(delivery)
        _mark_record(delivery, Outcome.HELD, cut(message))
        Counter.add({("deliveries", "result=held"): 1})
        record_event(gitrepo, "DeliveryHeld", message, now, warning=True)
    log.warning("delivery held", gitrepo=gitrepo.name, cluster=delivery.cluster.name, removed=removed, present=present)
    return True


def target_ahead(delivery: Delivery, epoch: int, sequence: int) -> bool:
    """The target has a newer order than the database: a new epoch goes beyond it, and the delivery is tried again.

    That is what a database restored from a backup looks like. A worker that lost its lease also sees it, and changes
    nothing, because the write is fenced.
    """
    message = (
        f"{delivery.cluster.name} has ({epoch}, {sequence}), ahead of ({delivery.epoch}, {delivery.sequence}) here: the "
        f"database was restored from an older copy, or two installations deliver to it; going on with epoch {epoch + 1}"
    )
    with transaction.atomic():
        now = database_now()
        gitrepo = _locked_gitrepo(delivery)
        again = Delivery.not_due() if gitrepo is None or gitrepo.paused else Delivery.due_in(now, 0)
        columns = {"state": State.WAITING, "last_error": cut(message), **again}
        if gitrepo is None or not finish(delivery, epoch=epoch + 1, **unless_changed(delivery, **columns)):
            return _lost(delivery)
        Counter.add({("deliveries", "result=target-ahead"): 1})
        record_event(gitrepo, "TargetAhead", message, now, warning=True)
    log.warning("target ahead", gitrepo=gitrepo.name, cluster=delivery.cluster.name, epoch=epoch, sequence=sequence)
    return True


def bundle_missing(delivery: Delivery, message: str) -> bool:
    """The bundle is gone or damaged: the job that made it runs again, and the delivery is tried again after it."""
    with transaction.atomic():
        if not failed(delivery, "bundle", message):
            return False
        gitrepo = _locked_gitrepo(delivery)
        if gitrepo is not None:
            make_again(gitrepo, database_now())
    return True


def make_again(gitrepo: GitRepo, now: datetime) -> None:
    """Queue the job of the locked GitRepo's newest synced revision once more, unless one is queued that does as well.

    Not the job of what a delivery wants: revisions that changed nothing may have come after it, and are not taken back.
    """
    open_jobs = SyncJob.objects.filter(gitrepo=gitrepo, state__in=(*SyncJob.WAITING, SyncJob.State.RUNNING))
    if gitrepo.wanted_revision_id is None or open_jobs.exists():
        return
    due = SyncJob.not_due() if gitrepo.paused else SyncJob.due_in(now, 0)
    SyncJob.objects.filter(revision=gitrepo.wanted_revision_id).update(
        state=SyncJob.State.PENDING, finished_at=None, failures=0, last_error="", **due
    )
    ring_on_commit("sync")


def _if_still_known(revision: int | None) -> Subquery | None:
    """null if retention has removed it: it was superseded while it was being applied. The GitRepo's row is locked."""
    # Django writes nothing at all where a subquery is known to be empty.
    return Subquery(Revision.objects.filter(pk=revision).values("pk")) if revision is not None else None


def _locked_gitrepo(delivery: Delivery) -> GitRepo | None:
    """None: it is gone, and its deliveries with it."""
    return GitRepo.objects.select_for_update(of=("self",)).filter(pk=delivery.gitrepo_id).first()


def _mark_record(delivery: Delivery, outcome: str, error: str) -> None:
    columns: Mapping[str, Any] = {"outcome": outcome, "error": error}
    DeliveryRecord.objects.filter(
        revision=delivery.wanted_revision_id, cluster=delivery.cluster_id, outcome__in=DeliveryRecord.OPEN
    ).update(**columns)


def _lost(delivery: Delivery) -> bool:
    log.warning("a late result was dropped", delivery=delivery.pk, sequence=delivery.sequence)
    Counter.add({("fenced_writes", "stage=deliver"): 1})
    return False
