"""`repos.status.display_state` said in SQL, so that lists can be filtered and counted by it. The same rules in the same
order; a test holds the two together.
"""

from typing import Any

from django.db.models import Case, CharField, Exists, OuterRef, Q, QuerySet, Subquery, Value, When

from repos import status
from repos.models import Delivery, GitRepo, SyncJob

State = Delivery.State


def with_display_state(gitrepos: QuerySet[GitRepo]) -> QuerySet[Any]:
    """`gitrepos` with the annotation `shown_state`."""
    newest = SyncJob.objects.filter(gitrepo=OuterRef("pk")).order_by("-pk")
    open_job = Q(newest_job_state__in=[*SyncJob.WAITING, SyncJob.State.RUNNING])

    def some(state: str) -> Exists:
        return Exists(Delivery.objects.filter(gitrepo=OuterRef("pk"), state=state))

    rules = [
        When(some(State.FAILED), then=Value(status.ERR_APPLIED)),
        When(open_job & Q(newest_job_failures__gt=0), then=Value(status.ERR_SYNC)),
        When(~Q(remote__last_error="") | ~Q(ref_error=""), then=Value(status.ERR_POLLING)),
        When(some(State.HELD), then=Value(status.HELD)),
        When(paused=True, then=Value(status.PAUSED)),
        When(latest_revision=0, then=Value(status.PENDING)),
        When(open_job, then=Value(status.WAIT_SYNC)),
        When(some(State.WAITING), then=Value(status.WAIT_APPLIED)),
    ]
    return gitrepos.annotate(
        newest_job_state=Subquery(newest.values("state")[:1]),
        newest_job_failures=Subquery(newest.values("failures")[:1]),
    ).annotate(shown_state=Case(*rules, default=Value(status.READY), output_field=CharField()))
