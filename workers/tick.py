"""The tick: once a second, is anything due? It rings for whatever is due and unleased, in any stage."""

from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import F, Q, QuerySet

from fleetsync.failpoints import hit
from repos.doctor.probing import queues_to_ask
from repos.doorbells import ENOUGH_WAITING, ring, ring_probe
from repos.leases import Leased, claimable, database_now, leased, longest_lease_seconds
from repos.models import Adoption, Cluster, Delivery, Remote, SyncJob
from repos.statements import rows_of

STATEMENT_TIMEOUT_MS = 2000
# A poll session claims once a second: what has just become due is its next claim's, and two sessions where one is enough
# cost nearly twice as much.
LEFT_TO_SESSIONS_SECONDS = 1.5
# A session that claims has claimed in this time. What it holds for longer may hang, and says nothing of that.
JUST_CLAIMED_SECONDS = 2.0

# What each queue's doorbell looks at, and how many due rows are worth one more doorbell.
STAGES: dict[str, tuple[tuple[type[Leased], ...], int]] = {
    "poll": ((Remote,), 50),
    "control": ((Adoption, Cluster), 50),
    "sync": ((SyncJob,), 1),
    "deliver": ((Delivery,), 8),
}


def _due(now: datetime, model: type[Leased], most: int, late_seconds: float, _: float) -> QuerySet[Leased, Any]:
    due = claimable(model, now)
    if late_seconds:
        late = Q(**{f"{model.DUE}__lte": now - timedelta(seconds=late_seconds)})
        due &= late | Q(wakes__gt=F("answered"))
    return model._default_manager.filter(due).values_list("pk")[:most]


def _just_claimed(now: datetime, poll_lease: float, _: float) -> QuerySet[Remote, Any]:
    since = now + timedelta(seconds=poll_lease - JUST_CLAIMED_SECONDS)
    return Remote.objects.filter(leased(now), lease_until__gt=since).values_list("pk")[:1]


def due_count(models: tuple[type[Leased], ...], now: datetime, most: int) -> int:
    """How many rows are due and unleased, counted no further than `most`."""
    count = 0
    for model in models:
        # Whatever is counted already, the limit is `most`: each limit is a statement of its own among those that are kept.
        count += len(rows_of(_due, now, model, most, 0.0, longest_lease_seconds()))
        if count >= most:
            break
    return min(count, most)


def polls_to_ring(now: datetime) -> int:
    """How many doorbells what is due to be polled is worth. One, where nobody claims: that session may be enough. While one
    does, what it has not come to for a while, and what somebody waits for, is worth more.
    """
    longest, rows = longest_lease_seconds(), STAGES["poll"][1]
    if not rows_of(_just_claimed, now, settings.POLL_LEASE, longest):
        return min(1, due_count((Remote,), now, 1))
    late = rows_of(_due, now, Remote, ENOUGH_WAITING * rows, LEFT_TO_SESSIONS_SECONDS, longest)
    return -(-len(late) // rows)


def tick() -> dict[str, int]:
    """Ring each stage that has work; how many doorbells each queue got.

    Idempotent, so it does not matter how many ticks run at once: no queue gets more doorbells than it lacks.
    """
    with transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute(f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MS}")
        now = database_now()
        due = {
            queue: -(-due_count(models, now, ENOUGH_WAITING * rows) // rows)
            for queue, (models, rows) in STAGES.items()
            if queue != "poll"
        }
        due["poll"] = polls_to_ring(now)
        questions = queues_to_ask(now)
        hit("tick")
    for queue in questions:
        ring_probe(queue)
    return {queue: ring(queue, times) for queue, times in due.items() if times}
