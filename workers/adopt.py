"""The adoption stage and the matching stage: leased database work on the queue `control`."""

import time
from collections.abc import Callable

from django.conf import settings
from django.db import transaction
from django.db.models import Case, DateTimeField, Q, Value, When

from repos.adoption import adopt
from repos.deliveries import rematch
from repos.leases import claim, database_now, finish
from repos.models import Adoption, Cluster, GitRepo

BATCH = 20
PAGE = 100


def run_adoptions(*, budget_seconds: float, stopping: Callable[[], bool]) -> int:
    """Adopt until nothing is due or the budget is over; how many answers were adopted."""
    until = time.monotonic() + budget_seconds
    adopted = 0
    while time.monotonic() < until and not stopping():
        batch = claim(Adoption, limit=BATCH, seconds=settings.JOB_LEASE)
        for adoption in batch:
            adopt(adoption)
            finish(adoption, due_at=_unless("wanted", adoption.wanted), wait_seconds=0)
        adopted += len(batch)
        if len(batch) < BATCH:
            break
    return adopted


def _unless(column: str, read: int) -> Case:
    """null if `column` is still what was read at the claim, else now: what came meanwhile is not lost."""
    return Case(
        When(Q(**{column: read}), then=Value(None)),
        default=Value(database_now()),
        output_field=DateTimeField(null=True),
    )


def run_matching(*, budget_seconds: float, stopping: Callable[[], bool]) -> int:
    """Match clusters whose labels or groups changed against the targets of all GitRepos; how many clusters."""
    until = time.monotonic() + budget_seconds
    matched = 0
    while time.monotonic() < until and not stopping():
        batch = claim(Cluster, limit=1, seconds=settings.JOB_LEASE)
        for cluster in batch:
            match_cluster(cluster)
            finish(cluster, match_due_at=_unless("match_wanted", cluster.match_wanted), wait_seconds=0)
        matched += len(batch)
        if not batch:
            break
    return matched


def match_cluster(cluster: Cluster) -> None:
    """Make the deliveries of every GitRepo agree with this cluster's labels, a page of GitRepos a transaction."""
    after = 0
    while True:
        with transaction.atomic():
            now = database_now()
            # Read again in each page: an edit of the labels between two pages counts.
            fresh = Cluster.objects.filter(pk=cluster.pk).first()
            page = list(
                GitRepo.objects.select_for_update(of=("self",))
                .filter(pk__gt=after, latest_revision__gt=0)
                .select_related("wanted_revision")
                .order_by("pk")[:PAGE]
            )
            if fresh is None:
                return
            for gitrepo in page:
                rematch(gitrepo, now, only=fresh)
        if len(page) < PAGE:
            return
        after = page[-1].pk
