"""The resync: walk every GitRepo once a period, a page at a time, and repair what no rule allows.

What is repaired is counted, and the count should be 0: it would mean that some path forgot its work.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import F, Q

from repos.deliveries import matched_clusters, matcher, rematch, want
from repos.doorbells import ring_on_commit
from repos.events import record_event
from repos.forgotten import astray, left_out, mismatched, unscheduled_deliveries, unscheduled_jobs
from repos.leases import Leased, claim, database_now, finish, heal
from repos.models import Adoption, Chore, Cluster, Counter, Delivery, GitRepo, Mirror, Probe, Remote, SyncJob
from repos.refs import was_asked
from repos.registration import interval_seconds
from repos.remotes import refresh_interval, wanted_interval_seconds, wanted_intervals

log = structlog.get_logger(__name__)

# Seconds between two looks; beat's entry has the same interval.
EVERY_SECONDS = 5.0
LARGEST_PAGE = 500
LEASED: tuple[type[Leased], ...] = (Adoption, Chore, Cluster, Delivery, Mirror, Probe, Remote, SyncJob)


@dataclass
class Repairs:
    """What was repaired, by kind."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, gitrepo: GitRepo | None, message: str, now: datetime) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        Counter.add({("repairs", f"kind={kind}"): 1})
        record_event(gitrepo, "Repaired", message, now, warning=True)


def page_size(gitrepos: int, period_seconds: float) -> int:
    """How many GitRepos each look takes, so that a round over all of them fits into the period. Pure."""
    looks = max(1.0, period_seconds / EVERY_SECONDS - 1)
    return max(1, min(LARGEST_PAGE, math.ceil(gitrepos / looks)))


def resync() -> Repairs:
    """One look: heal instants that a clock left behind, and walk the next page of GitRepos."""
    repairs = Repairs()
    now = database_now()
    for model in LEASED:
        if healed := heal(model, now):
            Counter.add({("healed_schedules", f"model={model._meta.model_name}"): healed})
    Chore.objects.get_or_create(name=Chore.RESYNC, defaults={"due_at": now})
    for chore in claim(Chore, limit=1, seconds=settings.JOB_LEASE, where=Q(name=Chore.RESYNC)):
        _walk(chore, repairs)
    return repairs


def _walk(chore: Chore, repairs: Repairs) -> None:
    now = database_now()
    started = now if chore.cursor == 0 or chore.round_started_at is None else chore.round_started_at
    size = page_size(GitRepo.objects.count(), settings.GITREPO_SYNC_PERIOD)
    page = list(GitRepo.objects.filter(pk__gt=chore.cursor).order_by("pk").values_list("pk", "remote_id")[:size])
    odd = _odd_ones(page)
    for pk, remote_id in page:
        if pk not in odd:
            continue
        try:
            with transaction.atomic():
                repair(pk, remote_id, repairs)
        except Exception:
            # The round goes on: what can't be looked at must not keep the others from being looked at.
            log.exception("a GitRepo could not be looked at", gitrepo=pk)
    if len(page) == size:
        finish(chore, cursor=page[-1][0], round_started_at=started, **Chore.due_in(now, 0))
    else:
        left = settings.GITREPO_SYNC_PERIOD - (now - started).total_seconds()
        wait = max(0.0, left)
        finish(chore, cursor=0, round_started_at=None, rounds=F("rounds") + 1, **Chore.due_in(now, wait))


def _odd_ones(page: Sequence[tuple[int, int]]) -> set[int]:
    """Those of a page of (GitRepo, Remote) that may need a repair: a look without locks, in as many queries for all as for one.

    It asks what repair() asks, which then asks again under locks. Who can't be looked at is odd.
    """
    try:
        return _look_at([pk for pk, _ in page], {remote for _, remote in page})
    except Exception:  # noqa: BLE001 (repair() looks at them one by one, and says whose fault it is)
        return {pk for pk, _ in page}


def _look_at(keys: list[int], remotes: set[int]) -> set[int]:
    odd = {pk for (pk,) in GitRepo.objects.filter(left_out(), pk__in=keys).values_list("pk")}
    # Whether their adoption is on its way, and whether they were asked for, is for repair() to see.
    odd |= set(SyncJob.objects.filter(unscheduled_jobs(), gitrepo__in=keys).values_list("gitrepo_id", flat=True))
    for fault in (unscheduled_deliveries(), astray()):
        odd |= set(Delivery.objects.filter(fault, gitrepo__in=keys).values_list("gitrepo_id", flat=True))
    adopted = set(Adoption.objects.filter(remote__in=remotes).values_list("remote_id", flat=True))
    intervals = wanted_intervals(remotes)
    present: dict[int, set[int]] = {}
    held = Delivery.objects.filter(gitrepo__in=keys, removal=False)
    for pk, cluster in held.values_list("gitrepo_id", "cluster_id"):
        present.setdefault(pk, set()).add(cluster)
    waiting = set(Cluster.objects.filter(match_due_at__isnull=False).values_list("pk", flat=True))
    matched = matcher()
    for gitrepo in GitRepo.objects.filter(pk__in=keys).select_related("remote"):
        remote, interval = gitrepo.remote, intervals.get(gitrepo.remote_id)
        if (
            interval_seconds(gitrepo.polling_interval) != gitrepo.interval_seconds
            or interval != remote.interval_seconds
            or (interval is not None and remote.next_poll_at is None)
            or remote.pk not in adopted
        ):
            odd.add(gitrepo.pk)
        elif gitrepo.wanted_revision_id is not None and gitrepo.deleted_at is None and not gitrepo.paused:
            wanted = {cluster.pk for cluster in matched(gitrepo)}
            if mismatched(wanted, present.get(gitrepo.pk, set()), waiting):
                odd.add(gitrepo.pk)
    return odd


def repair(pk: int, remote_id: int, repairs: Repairs) -> None:
    """Look at one GitRepo with its remote, jobs and deliveries, all locked; nothing is adopted here."""
    remote = Remote.objects.select_for_update(of=("self",)).filter(pk=remote_id).first()
    gitrepo = GitRepo.objects.select_for_update(of=("self",)).filter(pk=pk).first()
    if remote is None or gitrepo is None or gitrepo.remote_id != remote.pk:
        return
    now = database_now()
    _refresh_default(gitrepo, remote)
    _repair_schedule(gitrepo, remote, repairs, now)
    _repair_adoption(gitrepo, remote, repairs, now)
    if not gitrepo.paused:
        _repair_jobs(gitrepo, repairs, now)
        _repair_deliveries(gitrepo, repairs, now)


def _refresh_default(gitrepo: GitRepo, remote: Remote) -> None:
    """GITREPO_POLLING_INTERVAL may have changed since the GitRepo was saved: no fault, and not counted."""
    seconds = interval_seconds(gitrepo.polling_interval)
    if seconds != gitrepo.interval_seconds:
        GitRepo.objects.filter(pk=gitrepo.pk).update(interval_seconds=seconds)
        refresh_interval(remote)


def _repair_schedule(gitrepo: GitRepo, remote: Remote, repairs: Repairs, now: datetime) -> None:
    interval = wanted_interval_seconds(remote)
    if interval is not None and remote.next_poll_at is None:
        Remote.objects.filter(pk=remote.pk).update(**Remote.due_in(now, 0))
        repairs.add("schedule", gitrepo, "the repository had no next poll: it is polled now", now)
        ring_on_commit("poll")
    if interval != remote.interval_seconds:
        refresh_interval(remote)
        repairs.add("interval", gitrepo, "the repository's interval was not what its GitRepos want", now)


def _repair_adoption(gitrepo: GitRepo, remote: Remote, repairs: Repairs, now: datetime) -> None:
    adoption = Adoption.objects.filter(remote=remote).first()
    if adoption is None:
        Adoption.objects.create(remote=remote, **Adoption.due_in(now, 0))
        repairs.add("adoption", gitrepo, "the repository's answers had nobody to adopt them", now)
    elif adoption.due_at is None and _is_left_out(gitrepo, remote):
        Adoption.objects.filter(pk=adoption.pk).update(**Adoption.due_in(now, 0))
        repairs.add("adoption", gitrepo, "the repository's last answer had not been adopted", now)
        ring_on_commit("control")


def _is_left_out(gitrepo: GitRepo, remote: Remote) -> bool:
    """Whether the stored answer is for the GitRepo, which has not taken it in, and no other answer is on its way."""
    return was_asked(gitrepo, remote.asked) and GitRepo.objects.filter(left_out(), pk=gitrepo.pk).exists()


def _repair_jobs(gitrepo: GitRepo, repairs: Repairs, now: datetime) -> None:
    stuck = SyncJob.objects.filter(unscheduled_jobs(), gitrepo=gitrepo)
    if fixed := stuck.update(**SyncJob.due_in(now, 0)):
        repairs.add("job", gitrepo, f"{fixed} sync job had no instant at which it is due", now)
        ring_on_commit("sync")


def _repair_deliveries(gitrepo: GitRepo, repairs: Repairs, now: datetime) -> None:
    stuck = Delivery.objects.filter(unscheduled_deliveries(), gitrepo=gitrepo)
    if fixed := stuck.update(**Delivery.due_in(now, 0)):
        repairs.add("delivery", gitrepo, f"{fixed} deliveries had no instant at which they are due", now)
        ring_on_commit("deliver")
    if gitrepo.wanted_revision is None or gitrepo.deleted_at is not None:
        return
    wanted = {cluster.pk for cluster in matched_clusters(gitrepo)}
    present = set(Delivery.objects.filter(gitrepo=gitrepo, removal=False).values_list("cluster_id", flat=True))
    waiting = set(Cluster.objects.filter(match_due_at__isnull=False).values_list("pk", flat=True))
    if mismatched(wanted, present, waiting):
        rematch(gitrepo, now)
        repairs.add("match", gitrepo, "the deliveries did not agree with the targets", now)
    others = Delivery.objects.filter(astray(), gitrepo=gitrepo)
    if clusters := list(Cluster.objects.filter(deliveries__in=others)):
        want(gitrepo, gitrepo.wanted_revision, clusters, now)
        repairs.add("wanted", gitrepo, f"{len(clusters)} deliveries wanted something else than the GitRepo", now)
