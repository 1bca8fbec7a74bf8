"""What is wanted at each cluster: making, changing, holding and ending deliveries. Database only.

Every function runs in the caller's transaction, with the GitRepo's row locked, so that two of them never interleave.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from django.db.models import Case, F, Q, QuerySet, Value, When

from repos.doorbells import ring_on_commit
from repos.models import Cluster, ClusterGroup, Delivery, DeliveryRecord, GitRepo, Revision
from repos.targeting import is_target

State = Delivery.State
Outcome = DeliveryRecord.Outcome


def group_selectors() -> dict[str, dict[str, Any]]:
    return dict(ClusterGroup.objects.values_list("name", "selector"))


def matched_clusters(gitrepo: GitRepo) -> list[Cluster]:
    """The clusters that the GitRepo's targets match now; no more is read than they can mean."""
    targets = gitrepo.targets
    if not targets or gitrepo.deleted_at is not None:
        return []
    groups = group_selectors() if any("cluster_group" in target for target in targets) else {}
    clusters = Cluster.objects.only("pk", "name", "labels")
    if all("cluster" in target for target in targets):
        clusters = clusters.filter(name__in={target["cluster"] for target in targets})
    return [cluster for cluster in clusters if is_target(targets, cluster, groups)]


def matcher() -> Callable[[GitRepo], list[Cluster]]:
    """Says of each GitRepo, with the clusters and groups of this moment, which clusters its targets match."""
    groups, clusters = group_selectors(), list(Cluster.objects.only("pk", "name", "labels"))

    def matched(gitrepo: GitRepo) -> list[Cluster]:
        if gitrepo.deleted_at is not None:
            return []
        return [cluster for cluster in clusters if gitrepo.targets and is_target(gitrepo.targets, cluster, groups)]

    return matched


def due_columns(gitrepo: GitRepo, now: datetime) -> dict[str, Any]:
    """Due now, unless the GitRepo is paused."""
    return Delivery.not_due() if gitrepo.paused else Delivery.due_in(now, 0)


def want(gitrepo: GitRepo, revision: Revision, clusters: Sequence[Cluster], now: datetime) -> None:
    """Want `revision` (with its bundle) at each of `clusters`, superseding what was wanted there before."""
    wanted = {
        "wanted_revision": revision,
        "wanted_bundle": revision.bundle,
        "wanted_at": now,
        "removal": False,
        "state": State.WAITING,
        "failures": 0,
        "last_error": "",
        **due_columns(gitrepo, now),
    }
    ids = [cluster.pk for cluster in clusters]
    existing = Delivery.objects.filter(gitrepo=gitrepo, cluster__in=ids)
    there = existing.update(sequence=F("sequence") + 1, **wanted)
    Delivery.objects.bulk_create(
        [Delivery(gitrepo=gitrepo, cluster_id=pk, sequence=1, **wanted) for pk in _missing(existing, ids, there)]
    )
    close_records(gitrepo, ids, Outcome.SUPERSEDED, now, but=revision)
    open_records(revision, ids, now)
    if ids:
        ring_on_commit("deliver")


def open_records(revision: Revision, cluster_ids: Iterable[int], now: datetime) -> None:
    """The ledger's lines for `revision`, opened again where a cluster had been withdrawn."""
    DeliveryRecord.objects.bulk_create(
        [DeliveryRecord(revision=revision, cluster_id=pk, wanted_at=now) for pk in cluster_ids],
        update_conflicts=True,
        unique_fields=["revision", "cluster"],
        update_fields=["outcome", "error", "ended_at"],
    )


def _missing(rows: QuerySet[Any], cluster_ids: Sequence[int], there: int) -> list[int]:
    """The clusters of which `rows`, of which there are so many, have none. Asks only where some have one."""
    if there in (0, len(cluster_ids)):
        return [] if there else list(cluster_ids)
    known = set(rows.values_list("cluster_id", flat=True))
    return [pk for pk in cluster_ids if pk not in known]


def close_records(
    gitrepo: GitRepo, cluster_ids: Iterable[int], outcome: str, now: datetime, *, but: Revision | None = None
) -> None:
    """End the open lines of the ledger for these clusters with `outcome`."""
    records = DeliveryRecord.objects.filter(
        revision__gitrepo=gitrepo, cluster__in=list(cluster_ids), outcome__in=DeliveryRecord.OPEN
    )
    if but is not None:
        records = records.exclude(revision=but)
    records.update(outcome=outcome, ended_at=now)


def record_unchanged(revision: Revision, clusters: Sequence[Cluster], now: datetime) -> None:
    """The ledger's lines of a revision that changes nothing below the paths."""
    DeliveryRecord.objects.bulk_create(
        [
            DeliveryRecord(revision=revision, cluster=c, outcome=Outcome.UNCHANGED, wanted_at=now, ended_at=now)
            for c in clusters
        ],
        ignore_conflicts=True,
    )


def withdraw(gitrepo: GitRepo, deliveries: Iterable[Delivery], now: datetime) -> None:
    """End these deliveries: their content is removed, or left there as it is if the GitRepo keeps its resources."""
    deliveries = [d for d in deliveries if not d.removal]
    if not deliveries:
        return
    columns: dict[str, Any] = {
        "sequence": F("sequence") + 1,
        "removal": True,
        "wanted_revision": None,
        "wanted_bundle": None,
        "wanted_at": now,
        "failures": 0,
        "last_error": "",
    }
    if gitrepo.keep_resources:
        columns |= {"state": State.KEPT, **Delivery.not_due()}
    else:
        columns |= {"state": State.WAITING, **due_columns(gitrepo, now)}
    Delivery.objects.filter(pk__in=[d.pk for d in deliveries]).update(**columns)
    close_records(gitrepo, [d.cluster_id for d in deliveries], Outcome.WITHDRAWN, now)
    ring_on_commit("deliver")


def rematch(gitrepo: GitRepo, now: datetime, only: Cluster | None = None) -> None:
    """Make the locked GitRepo's deliveries agree with its targets, for all clusters or for `only` one of them."""
    deliveries = Delivery.objects.filter(gitrepo=gitrepo)
    if only is None:
        matched = matched_clusters(gitrepo)
    else:
        deliveries = deliveries.filter(cluster=only)
        alive = gitrepo.deleted_at is None
        matched = [only] if alive and is_target(gitrepo.targets, only, group_selectors()) else []
    by_cluster = {d.cluster_id: d for d in deliveries}
    matched_ids = {c.pk for c in matched}
    withdraw(gitrepo, [d for pk, d in by_cluster.items() if pk not in matched_ids], now)
    revision = gitrepo.wanted_revision
    if revision is None or gitrepo.deleted_at is not None:
        return
    joining = [c for c in matched if c.pk not in by_cluster or by_cluster[c.pk].removal]
    if joining:
        want(gitrepo, revision, joining, now)


def hold_all(gitrepo: GitRepo) -> None:
    """Take the GitRepo's deliveries off the queue: it is paused. What is being applied may end."""
    Delivery.objects.filter(gitrepo=gitrepo).update(**Delivery.not_due())


def unapplied() -> Q:
    """Deliveries with something left to do by themselves: not those that are held, kept, or as wanted."""
    return Q(state__in=[State.WAITING, State.FAILED])


def resume_all(gitrepo: GitRepo, now: datetime) -> None:
    Delivery.objects.filter(unapplied(), gitrepo=gitrepo).update(**Delivery.due_in(now, 0))
    ring_on_commit("deliver")


def approve(gitrepo: GitRepo, now: datetime) -> int:
    """Let the GitRepo's held deliveries go on, exactly as they are wanted now; how many there were."""
    held = Delivery.objects.filter(gitrepo=gitrepo, state=State.HELD)
    count = held.update(approved_sequence=F("sequence"), state=State.WAITING, **due_columns(gitrepo, now))
    ring_on_commit("deliver")
    return count


def unless_changed(read: Delivery, **columns: Any) -> dict[str, Case]:
    """The `columns` at the end of one try, for as long as nothing else is wanted than what was `read` at its beginning.

    What was wanted meanwhile has its own state and due instant already, and keeps them.
    """

    def unless(name: str, value: Any) -> Case:
        kind: Any = Delivery._meta.get_field(name)
        same = When(Q(sequence=read.sequence), then=Value(value, output_field=kind))
        return Case(same, default=F(name), output_field=kind)

    return {name: unless(name, value) for name, value in columns.items()}
