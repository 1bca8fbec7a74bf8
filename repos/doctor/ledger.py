"""Does the ledger tell what jobs and deliveries did, and does each delivery want and have what its GitRepo says?"""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.db.models import Exists, F, OuterRef, Q

from repos.deliveries import group_selectors
from repos.doctor.finding import Finding
from repos.forgotten import astray, mismatched
from repos.models import Cluster, Delivery, DeliveryRecord, GitRepo, Revision, SyncJob
from repos.targeting import is_target

State, Outcome = Delivery.State, DeliveryRecord.Outcome
ENDED_JOBS = (SyncJob.State.SUCCEEDED, SyncJob.State.SUPERSEDED)
# Outcomes that agree with a delivery which has what it wants.
ARRIVED = (Outcome.DELIVERED, Outcome.UNCHANGED)

FAULT = "report it as a fault of fleetsync, with the workers' logs; a forced sync (POST …/sync/) writes a new line"
AGAIN = (
    "sync the GitRepo (POST …/sync/): it is delivered anew; report it as a fault of fleetsync, with the workers' logs"
)


def revisions(_: datetime) -> Iterator[Finding]:
    """Revisions that are open and that no job will end."""
    rows = Revision.objects.filter(Q(job__isnull=True) | Q(job__state__in=ENDED_JOBS), outcome=Revision.Outcome.OPEN)
    for name, number, state in rows.order_by("pk").values_list("gitrepo__name", "number", "job__state"):
        job = f"its job is {state}" if state else "it has no job"
        yield Finding("ledger", f"revision {number} of gitrepo {name}", f"it has no outcome, and {job}", FAULT)


def records(_: datetime) -> Iterator[Finding]:
    """Lines that are open though their delivery wants something else or has ended, and failed ones without a cause."""
    mine = Delivery.objects.filter(gitrepo=OuterRef("revision__gitrepo"), cluster=OuterRef("cluster"))
    going_on = mine.filter(
        removal=False, wanted_revision=OuterRef("revision"), state__in=(State.WAITING, State.FAILED, State.HELD)
    )
    rows = DeliveryRecord.objects.filter(~Exists(going_on), outcome__in=DeliveryRecord.OPEN).order_by("pk")
    columns = ("revision__gitrepo__name", "revision__number", "cluster__name", "outcome")
    for name, number, cluster, outcome in rows.values_list(*columns):
        message = f"its line for revision {number} is {outcome}, and the delivery does not want that revision any more"
        yield Finding("ledger", f"delivery of {name} at {cluster}", message, FAULT)
    unexplained = DeliveryRecord.objects.filter(outcome__in=(Outcome.FAILED, Outcome.HELD), error="").order_by("pk")
    for name, number, cluster, outcome in unexplained.values_list(*columns):
        message = f"its line for revision {number} is {outcome}, and no cause is stored"
        yield Finding("failed-without-cause", f"delivery of {name} at {cluster}", message, FAULT)


def lines(_: datetime) -> Iterator[Finding]:
    """Deliveries whose line is missing, or says something else."""
    record = DeliveryRecord.objects.filter(cluster=OuterRef("cluster"))
    rows = Delivery.objects.filter(removal=False, wanted_revision__isnull=False).order_by("pk")
    columns = ("gitrepo__name", "cluster__name", "wanted_revision__number", "state")
    without = rows.filter(~Exists(record.filter(revision=OuterRef("wanted_revision"))))
    for name, cluster, number, state in without.values_list(*columns):
        message = f"it is {state}, and the ledger has no line for the wanted revision {number}"
        yield Finding("ledger", f"delivery of {name} at {cluster}", message, FAULT)
    told = record.filter(revision=OuterRef("wanted_revision"))
    contradicted = rows.filter(
        Q(state=State.APPLIED) & Exists(told.exclude(outcome__in=ARRIVED))
        | Q(state__in=(State.WAITING, State.FAILED, State.HELD))
        & Exists(told.filter(outcome__in=(Outcome.SUPERSEDED, Outcome.WITHDRAWN)))
    )
    for name, cluster, number, state in contradicted.values_list(*columns):
        message = f"it is {state}, and the ledger says something else of the wanted revision {number}"
        yield Finding("ledger", f"delivery of {name} at {cluster}", message, FAULT)


def content(_: datetime) -> Iterator[Finding]:
    """Deliveries that want something else than their GitRepo, or are recorded as applied with something else."""
    columns = ("gitrepo__name", "cluster__name")
    for name, cluster in Delivery.objects.filter(astray()).order_by("pk").values_list(*columns):
        message = "it wants another bundle than its GitRepo's newest synced revision"
        yield Finding("wrong-content", f"delivery of {name} at {cluster}", message, AGAIN)
    done = Delivery.objects.filter(state__in=(State.APPLIED, State.REMOVED))
    other = done.filter(~same("bundle") | ~same("revision") | ~same("sequence", "sequence") | ~same("epoch", "epoch"))
    more = ("state", "sequence", "epoch", "applied_sequence", "applied_epoch")
    for name, cluster, state, sequence, epoch, applied, applied_epoch in other.order_by("pk").values_list(
        *columns, *more
    ):
        message = (
            f"it is {state}, as ({applied_epoch}, {applied}), and what is wanted is ({epoch}, {sequence}): the two are not "
            "the same order, revision and bundle"
        )
        yield Finding("wrong-content", f"delivery of {name} at {cluster}", message, AGAIN)
    ends = Q(state__in=(State.REMOVED, State.KEPT))
    crossed = Delivery.objects.filter(ends & Q(removal=False) | Q(state__in=(State.APPLIED, State.HELD), removal=True))
    for name, cluster, state in crossed.order_by("pk").values_list(*columns, "state"):
        message = f"it is {state}, which is not how a delivery of its kind ends"
        yield Finding("wrong-content", f"delivery of {name} at {cluster}", message, AGAIN)


def same(name: str, wanted: str = "") -> Q:
    """Whether `applied_<name>` is what is wanted; nothing equals nothing."""
    wanted = wanted or f"wanted_{name}"
    equal = Q(**{f"applied_{name}": F(wanted)})
    if wanted.startswith("wanted_"):
        equal |= Q(**{f"applied_{name}__isnull": True, f"{wanted}__isnull": True})
    return equal


def matches(_: datetime) -> Iterator[Finding]:
    """Clusters that the targets match without a delivery, or the other way round."""
    clusters = list(Cluster.objects.only("pk", "name", "labels"))
    names = {cluster.pk: cluster.name for cluster in clusters}
    waiting = set(Cluster.objects.filter(match_due_at__isnull=False).values_list("pk", flat=True))
    present: dict[int, set[int]] = {}
    for gitrepo, cluster in Delivery.objects.filter(removal=False).values_list("gitrepo", "cluster"):
        present.setdefault(gitrepo, set()).add(cluster)
    groups = group_selectors()
    # Thousands of GitRepos share a few lists of targets.
    known: dict[str, set[int]] = {}

    def matched(targets: Any) -> set[int]:
        key = json.dumps(targets, sort_keys=True)
        if key not in known:
            known[key] = {cluster.pk for cluster in clusters if is_target(targets, cluster, groups)}
        return known[key]

    synced = GitRepo.objects.alive().filter(wanted_revision__isnull=False).order_by("pk")
    for pk, name, targets in synced.values_list("pk", "name", "targets").iterator():
        there = present.get(pk, set())
        try:
            wanted = matched(targets)
        except (ValueError, TypeError, KeyError) as error:
            message = f"its targets cannot be matched: {error}"[:300]
            yield Finding("ledger", f"gitrepo {name}", message, "correct its targets")
            continue
        for cluster in sorted(mismatched(wanted, there, waiting)):
            message = "it is a target, and there is no delivery" if cluster in wanted else "it is no target any more"
            advice = "save the GitRepo's targets again; the resync repairs it within GITREPO_SYNC_PERIOD; " + FAULT
            yield Finding("ledger", f"delivery of {name} at {names.get(cluster, cluster)}", message, advice)


QUESTIONS = (revisions, records, lines, content, matches)


def ask(now: datetime) -> Iterator[Finding]:
    for question in QUESTIONS:
        yield from question(now)
