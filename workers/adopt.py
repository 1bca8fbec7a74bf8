"""The adoption stage and the matching stage: leased database work on the queue `control`."""

import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Case, DateTimeField, F, Q, Value, When
from django.db.models.functions import Now

from fleetsync.limits import CONTROL
from repos.adoption import adopt
from repos.deliveries import rematch
from repos.leases import Renewer, claim, database_now, finish, give_back
from repos.models import Adoption, Cluster, GitRepo

log = structlog.get_logger(__name__)
Row = TypeVar("Row", Adoption, Cluster)

BATCH = 20
PAGE = 100
# What failed is tried again after this; the next answer may come sooner.
RETRY_SECONDS = 10.0


def run_adoptions(*, budget_seconds: float, stopping: Callable[[], bool]) -> int:
    """Adopt until nothing is due or the budget is over; how many answers were adopted."""
    until = time.monotonic() + budget_seconds
    adopted = 0
    with Renewer(settings.JOB_LEASE) as renewer:
        # What may be the end of its workers is tried with nothing beside it, once in each session.
        for suspect in claim(Adoption, limit=1, seconds=settings.JOB_LEASE, suspects=True):
            _adopt(suspect, renewer)
            adopted += 1
        while time.monotonic() < until and not stopping():
            batch = claim(Adoption, limit=BATCH, seconds=settings.JOB_LEASE, suspects=False)
            for adoption in batch:
                if time.monotonic() >= until or stopping():
                    give_back(adoption)  # it stays due
                    continue
                _adopt(adoption, renewer)
                adopted += 1
            if len(batch) < BATCH:
                break
    return adopted


def _adopt(adoption: Adoption, renewer: Renewer) -> None:
    with renewer.keeping(adoption, deadline_seconds=CONTROL):
        done = _tried(adopt, adoption)
    if done:
        finish(adoption, due_at=_unless("wanted", adoption.wanted), wait_seconds=0, failures=0)
    else:
        finish(adoption, failures=F("failures") + 1, **Adoption.due_in(database_now(), RETRY_SECONDS))


def _tried(work: Callable[[Row], int], row: Row) -> bool:
    """Whether `work` did all of its work for the row: one row's fault must not hold up the others."""
    try:
        return work(row) == 0
    except Exception:
        log.exception("work on a row failed in a way that is not known", row=str(row))
        return False


def _unless(column: str, read: int) -> Case:
    """null if `column` is still what was read at the claim, else now: what came meanwhile is not lost."""
    return Case(
        When(Q(**{column: read}), then=Value(None)),
        default=Now(),
        output_field=DateTimeField(null=True),
    )


def run_matching(*, budget_seconds: float, stopping: Callable[[], bool]) -> int:
    """Match clusters whose labels or groups changed against the targets of all GitRepos; how many clusters."""
    until = time.monotonic() + budget_seconds
    matched = 0
    with Renewer(settings.JOB_LEASE) as renewer:
        while time.monotonic() < until and not stopping():
            batch = claim(Cluster, limit=1, seconds=settings.JOB_LEASE)
            for cluster in batch:
                with renewer.keeping(cluster, deadline_seconds=CONTROL):
                    done = _tried(match_cluster, cluster)
                if done:
                    finish(cluster, match_due_at=_unless("match_wanted", cluster.match_wanted), wait_seconds=0)
                else:
                    finish(cluster, **Cluster.due_in(database_now(), RETRY_SECONDS))
            matched += len(batch)
            if not batch:
                break
    return matched


def match_cluster(cluster: Cluster) -> int:
    """Make the deliveries of every GitRepo agree with this cluster's labels, a page of GitRepos a transaction; how many
    of them failed.
    """
    failed = 0
    after = 0
    while True:
        with transaction.atomic():
            now = database_now()
            # Read again in each page: an edit of the labels between two pages counts.
            fresh = Cluster.objects.filter(pk=cluster.pk).first()
            # Prefetched, not joined: what a join reads before it waits for a lock is old afterwards.
            page = list(
                GitRepo.objects.select_for_update()
                .filter(pk__gt=after, latest_revision__gt=0)
                .prefetch_related("wanted_revision__bundle")
                .order_by("pk")[:PAGE]
            )
            if fresh is None:
                return failed
            for gitrepo in page:
                try:
                    with transaction.atomic():
                        rematch(gitrepo, now, only=fresh)
                except (ValueError, TypeError, KeyError):
                    log.exception("targets could not be matched", gitrepo=gitrepo.name, cluster=fresh.name)
                    failed += 1
        if len(page) < PAGE:
            return failed
        after = page[-1].pk
