"""Pruning: what the database no longer needs, in bounded batches. Each machine collects its own disk (collect.py)."""

import time
from collections.abc import Callable

import structlog
from django.conf import settings
from django.db.models import Q

from repos import retention
from repos.leases import claim, database_now, finish
from repos.models import Chore, Counter
from repos.retention import Walk

log = structlog.get_logger(__name__)

# Rows of one kind in one statement.
BATCH = 200
# What is left goes on for so long: the tick waits for the same processes.
BUDGET_SECONDS = 2.0
# Of prunings that piled up while nobody worked, one is enough.
AT_MOST_EVERY_SECONDS = 20.0

# What is removed, in this order: what is removed first lets others go.
KINDS: dict[str, Callable[[int], int]] = {
    "gitrepos": retention.prune_tombstones,
    "remotes": retention.prune_remotes,
    "hosts": retention.prune_hosts,
    "not-before": retention.prune_patience,
    "events": retention.prune_events,
    "history": retention.prune_history,
    "login-sessions": retention.prune_login_sessions,
    "mirror-rows": retention.prune_mirror_rows,
    "probes": retention.prune_probes,
}
Step = Callable[[int], tuple[dict[str, int], bool]]


def prune(limit: int = BATCH, *, budget_seconds: float = 0.0, walk: Walk | None = None) -> dict[str, int]:
    """Remove at most `limit` rows of each kind, and go on with those that have more for as long as the budget lasts;
    how many of each. `walk` is how far the walk over the GitRepos has come, and is moved on.
    """
    until = time.monotonic() + budget_seconds
    pruned: dict[str, int] = {}
    steps = [*(_step_of(kind, function) for kind, function in KINDS.items()), (walk or Walk()).step, _bundles]
    while steps:
        busy: list[Step] = []
        for step in steps:
            removed, more = step(limit)
            for kind, count in removed.items():
                pruned[kind] = pruned.get(kind, 0) + count
            if more:
                busy.append(step)
        steps = busy if time.monotonic() < until else []
    said(pruned)
    return pruned


def _step_of(kind: str, function: Callable[[int], int]) -> Step:
    def step(limit: int) -> tuple[dict[str, int], bool]:
        count = function(limit)
        return {kind: count}, count >= limit

    return step


def _bundles(limit: int) -> tuple[dict[str, int], bool]:
    count, more = retention.prune_bundles(limit)
    return {"bundles": count}, more


def said(pruned: dict[str, int]) -> None:
    """Count what was removed, and write one line if it was anything."""
    some = {kind: count for kind, count in pruned.items() if count}
    if some:
        Counter.add({("pruned", f"kind={kind}"): count for kind, count in some.items()})
        log.info("pruned", **{kind.replace("-", "_"): count for kind, count in some.items()})


def prune_when_due(budget_seconds: float = BUDGET_SECONDS) -> dict[str, int]:
    """One pruning, unless somebody is at it or has just been; the walk's place is kept in the Chore."""
    Chore.objects.get_or_create(name=Chore.PRUNE, defaults={"due_at": database_now()})
    for chore in claim(Chore, limit=1, seconds=settings.JOB_LEASE, where=Q(name=Chore.PRUNE)):
        walk = Walk(chore.cursor)
        pruned = prune(budget_seconds=budget_seconds, walk=walk)
        finish(chore, cursor=walk.after, **Chore.due_in(database_now(), AT_MOST_EVERY_SECONDS))
        return pruned
    return {}
