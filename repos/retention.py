"""Retention: which rows nothing needs any more, removed in bounded batches. Database only.

Every function removes at most `limit` rows and answers how many. Rows are chosen first and removed by their keys,
under the same conditions again, so that what became needed in between stays. What is looked for by GitRepo is found by
a walk over pages of GitRepos, since no index tells how many rows each of them has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import transaction
from django.db.models import Count, Exists, F, Model, OuterRef, ProtectedError, Q, QuerySet
from django.db.models.functions import Now

from repos import registration
from repos.deliveries import unapplied
from repos.leases import database_now, unleased
from repos.models import (
    Bundle,
    Cluster,
    ClusterGroup,
    Credential,
    Delivery,
    DeliveryRecord,
    Event,
    GitRepo,
    Host,
    HostNotBefore,
    Mirror,
    Probe,
    Remote,
    Revision,
    SyncJob,
)

Reason = Revision.Reason

# GitRepos that one step of the walk looks at.
PAGE = 200
# However old, the newest few revisions of each GitRepo stay: what a quiet one had before is what it is rolled back to.
KEPT_HOWEVER_OLD = 10
# The ledger's lines that go with one batch of revisions: each has one for every cluster.
MOST_RECORDS = 10_000
PROBES_KEPT_SECONDS = 86400.0
AUDITED: tuple[Any, ...] = (GitRepo, Cluster, ClusterGroup, Credential)
OPEN_JOBS = (*SyncJob.WAITING, SyncJob.State.RUNNING)
FORCED = (Reason.FORCE, Reason.ROLLBACK)


def ago(now: datetime, seconds: float) -> datetime:
    return now - timedelta(seconds=seconds)


def _remove(rows: QuerySet[Any], limit: int) -> int:
    """Remove at most `limit` of `rows`, to which nothing refers, in one statement that asks the conditions again."""
    keys = list(rows.values_list("pk", flat=True)[:limit])
    return rows.filter(pk__in=keys).delete()[0] if keys else 0


# -- GitRepos, a page at a time ------------------------------------------------------------------------------------


@dataclass
class Walk:
    """How far the walk over the GitRepos has come: the last primary key seen, 0 at its beginning."""

    after: int = 0

    def step(self, limit: int) -> tuple[dict[str, int], bool]:
        """Remove at most `limit` revisions and `limit` events of the next page, which is left once none is over; how
        many, and whether it is worth going on at once.
        """
        keys = list(GitRepo.objects.filter(pk__gt=self.after).order_by("pk").values_list("pk", flat=True)[:PAGE])
        pruned = {"revisions": 0, "events": 0}
        if keys:
            pruned = {"revisions": prune_revisions(keys, limit), "events": prune_surplus_events(keys, limit)}
        if max(pruned.values()) < limit:
            self.after = keys[-1] if len(keys) == PAGE else 0
        return pruned, any(pruned.values())


def expired(now: datetime) -> Q:
    """Revisions beyond the newest RETENTION_REVISIONS of their GitRepo, and those older than RETENTION_AGE but for the
    newest few. Numbers have no gaps, so a number says how many are newer.
    """
    latest = F("gitrepo__latest_revision")
    few = min(KEPT_HOWEVER_OLD, settings.RETENTION_REVISIONS)
    return Q(number__lte=latest - settings.RETENTION_REVISIONS) | Q(
        observed_at__lt=ago(now, settings.RETENTION_AGE), number__lte=latest - few
    )


def dispensable() -> Q:
    """Revisions that nothing will ask for: not what the GitRepo or a delivery wants or has, nor what has not ended.

    A forced one that was superseded still says that the next job must not end as unchanged, unless a newer one says so
    to every job that is open.
    """
    mine = OuterRef("pk")
    job = SyncJob.objects.filter(revision=mine, state__in=OPEN_JOBS)
    delivery = Delivery.objects.filter(Q(wanted_revision=mine) | Q(applied_revision=mine), gitrepo=OuterRef("gitrepo"))
    record = DeliveryRecord.objects.filter(revision=mine, outcome__in=DeliveryRecord.OPEN)
    older_job = SyncJob.objects.filter(
        gitrepo=OuterRef("gitrepo"), state__in=OPEN_JOBS, revision__number__lt=OuterRef("number")
    )
    stands_in = Revision.objects.filter(
        ~Exists(older_job), gitrepo=OuterRef("gitrepo"), reason__in=FORCED, number__gt=OuterRef("number")
    )
    synced_since = Q(gitrepo__wanted_revision__number__gt=F("number"))
    return (
        ~Q(outcome=Revision.Outcome.OPEN)
        & (Q(gitrepo__wanted_revision__isnull=True) | ~Q(gitrepo__wanted_revision=F("pk")))
        & (~Q(reason__in=FORCED) | synced_since | Exists(stands_in))
        & ~Exists(job)
        & ~Exists(delivery)
        & ~Exists(record)
    )


def prune_revisions(gitrepos: Sequence[int], limit: int) -> int:
    """Remove revisions of these GitRepos with their jobs and their lines of the ledger.

    Chosen without a lock, and again under the GitRepos' rows, which everybody locks who wants a revision or says that
    one is applied. A GitRepo that somebody has locked is passed over: there will be a next time (PostgreSQL).
    """
    now = database_now()
    rows = Revision.objects.filter(expired(now), dispensable(), gitrepo__in=gitrepos).order_by("gitrepo_id", "number")
    found = list(rows.values_list("pk", "gitrepo_id")[:limit])
    if not found:
        return 0
    with transaction.atomic():
        concerned = GitRepo.objects.select_for_update(skip_locked=True, of=("self",)).order_by("pk")
        locked = list(concerned.filter(pk__in={gitrepo for _, gitrepo in found}).values_list("pk", flat=True))
        chosen = [pk for pk, gitrepo in found if gitrepo in set(locked)]
        still = rows.filter(pk__in=chosen).annotate(lines=Count("records"))
        keys = within(list(still.values_list("pk", "lines")), MOST_RECORDS)
        if not keys:
            return 0
        DeliveryRecord.objects.filter(revision__in=keys).delete()
        SyncJob.objects.filter(revision__in=keys).delete()
        # Without Django's cascades, which would clear what refers to these rows: if something does, the database refuses.
        gone = Revision.objects.filter(pk__in=keys)
        return gone._raw_delete(gone.db)  # noqa: SLF001


def within(sizes: Sequence[tuple[int, int]], most: int) -> list[int]:
    """The keys of the first (key, size) that together are within `most`, and of the first one in any case. Pure."""
    keys: list[int] = []
    total = 0
    for key, size in sizes:
        total += size
        if keys and total > most:
            break
        keys.append(key)
    return keys


def prune_surplus_events(gitrepos: Sequence[int], limit: int) -> int:
    """Remove what these GitRepos and their remotes have beyond their newest RETENTION_EVENTS, each."""
    remotes = set(GitRepo.objects.filter(pk__in=gitrepos).order_by().values_list("remote_id", flat=True))
    most, pruned = settings.RETENTION_EVENTS, 0
    for about, keys in (("gitrepo_id", gitrepos), ("remote_id", remotes)):
        counted = Event.objects.filter(**{f"{about}__in": keys}).order_by().values_list(about).annotate(n=Count("pk"))
        for key, _ in counted.filter(n__gt=most):
            newest = Event.objects.filter(**{about: key}).order_by("-last_at", "-pk")
            surplus = list(newest.values_list("pk", flat=True)[most : most + limit - pruned])
            pruned += Event.objects.filter(pk__in=surplus).delete()[0]
            if pruned >= limit:
                return pruned
    return pruned


# -- rows that are found by their age ------------------------------------------------------------------------------


def prune_events(limit: int) -> int:
    """Events that did not happen again within RETENTION_EVENT_AGE."""
    old = Event.objects.filter(last_at__lt=ago(database_now(), settings.RETENTION_EVENT_AGE))
    return _remove(old.order_by("last_at"), limit)


def prune_history(limit: int) -> int:
    """The audit trail of specs, by age alone (RETENTION_HISTORY_AGE)."""
    before, pruned = ago(database_now(), settings.RETENTION_HISTORY_AGE), 0
    for model in AUDITED:
        if pruned < limit:
            rows = model.history.model._default_manager.filter(history_date__lt=before).order_by("history_date")
            pruned += _remove(rows, limit - pruned)
    return pruned


def prune_patience(limit: int) -> int:
    """What hosts asked for until an instant that has passed."""
    return _remove(HostNotBefore.objects.filter(until__lt=database_now()).order_by("pk"), limit)


def prune_login_sessions(limit: int) -> int:
    """Login sessions of browsers that are over."""
    return _remove(Session.objects.filter(expire_date__lt=database_now()).order_by("expire_date"), limit)


def prune_probes(limit: int) -> int:
    """Questions of the doctor whose answers nobody will read any more."""
    old = Probe.objects.filter(created_at__lt=ago(database_now(), PROBES_KEPT_SECONDS))
    return _remove(old.order_by("pk"), limit)


def prune_mirror_rows(limit: int) -> int:
    """Rows about mirrors on machines that are no more: a machine that lives removes what is unused in half the time."""
    now = database_now()
    before = ago(now, 2 * settings.MIRROR_UNUSED)
    unused = Q(last_used_at__lt=before) | Q(last_used_at__isnull=True, due_at__lt=before)
    return _remove(Mirror.objects.filter(unused, unleased(now)).order_by("pk"), limit)


# -- rows that nothing refers to -----------------------------------------------------------------------------------


def prune_tombstones(limit: int) -> int:
    """Deleted GitRepos whose removals have ended."""
    pruned = 0
    # Those with removals that fail again and again must not fill the batch.
    pending = Delivery.objects.filter(unapplied(), gitrepo=OuterRef("pk"))
    ended = GitRepo.objects.filter(~Exists(pending), deleted_at__isnull=False).order_by("pk")
    for pk in list(ended.values_list("pk", flat=True)[:limit]):
        with transaction.atomic():
            gitrepo = GitRepo.objects.select_for_update(of=("self",)).filter(pk=pk).first()
            pruned += int(gitrepo is not None and registration.purge(gitrepo))
    return pruned


def prune_remotes(limit: int) -> int:
    """Remotes that nobody follows. They go here alone, under the row's lock after another look: a registration may be
    joining.
    """
    alone = Remote.objects.filter(gitrepos__isnull=True, lease_token__isnull=True).order_by("pk")
    keys = list(alone.values_list("pk", flat=True)[:limit])
    return sum(_remove_alone(Remote, pk, Q(lease_token__isnull=True)) for pk in keys)


def prune_hosts(limit: int) -> int:
    """Hosts without remotes, in the same way."""
    alone = Host.objects.filter(remotes__isnull=True).order_by("pk")
    keys = list(alone.values_list("pk", flat=True)[:limit])
    return sum(_remove_alone(Host, pk, Q()) for pk in keys)


def _remove_alone(model: type[Model], pk: int, where: Q) -> bool:
    """Whether the row was removed, under its lock: it is still as `where` says, and Django finds nothing that is protected
    by it.
    """
    try:
        with transaction.atomic():
            row = model._default_manager.select_for_update(of=("self",)).filter(where, pk=pk).first()
            if row is not None:
                row.delete()
            return row is not None
    except ProtectedError:
        return False


def prune_bundles(limit: int) -> tuple[int, bool]:
    """Bundles that nothing refers to and nobody has used for BUNDLE_GRACE, and whether there may be more to look at.
    Their files go later (workers/collect.py).

    1. The `limit` bundles that were used longest ago are locked, so that nothing new can refer to them meanwhile.
    2. Those that something refers to have their last use set to now: they are looked at again after another grace.
    3. The rest is removed. A job that makes the same content at this moment waits for the lock (it locks the row to
       touch it), finds no row and makes a new one; one that came first has touched the row, which is then young.
    """
    with transaction.atomic():
        now = database_now()
        old = Bundle.objects.filter(last_used_at__lt=ago(now, settings.BUNDLE_GRACE)).order_by("last_used_at", "pk")
        keys = list(old.select_for_update(skip_locked=True, of=("self",)).values_list("pk", flat=True)[:limit])
        if not keys:
            return 0, False
        # A statement of its own: it sees what was written before the locks were had.
        needed = Bundle.objects.filter(referred_to(), pk__in=keys)
        kept = set(needed.values_list("pk", flat=True))
        Bundle.objects.filter(pk__in=kept).update(last_used_at=now)
        gone = Bundle.objects.filter(pk__in=set(keys) - kept)
        # Without Django's cascades: if something refers to one after all, the database refuses.
        pruned = gone._raw_delete(gone.db) if len(kept) < len(keys) else 0  # noqa: SLF001
        return pruned, len(keys) == limit


def referred_to() -> Q:
    """Bundles of a revision that is kept, or wanted or applied somewhere."""
    mine = OuterRef("pk")
    return (
        Q(Exists(Revision.objects.filter(bundle=mine)))
        | Q(Exists(Delivery.objects.filter(wanted_bundle=mine)))
        | Q(Exists(Delivery.objects.filter(applied_bundle=mine)))
    )


def touch_bundle(sha256: str) -> None:
    """Say that the bundle is in use, so that it stays for another grace; written no more often than that needs."""
    stale = Now() - timedelta(seconds=settings.BUNDLE_GRACE / 10)
    Bundle.objects.filter(sha256=sha256, last_used_at__lt=stale).update(last_used_at=Now())
