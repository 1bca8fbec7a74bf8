"""Work that waits too long: due and taken by nobody, or taken by a worker that is gone."""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models import Exists, Max, OuterRef, Q

from repos.capped import live_leases
from repos.doctor.bounds import CHORE_SECONDS, RAREST_CHORE_SECONDS, bound_seconds
from repos.doctor.finding import Finding
from repos.leases import Leased
from repos.models import Adoption, Chore, Cluster, Delivery, GitRepo, Mirror, Remote, SyncJob
from repos.remotes import patience

WORKERS = "see that beat runs, and workers for the queue {queue} (WORKER_QUEUES); their logs say what they do"
LONGEST_SLACK_SECONDS = 5.0


def longest_lease() -> timedelta:
    """A lease further ahead than this is none."""
    longest = max(settings.POLL_LEASE, settings.JOB_LEASE, settings.DELIVERY_LEASE)
    return timedelta(seconds=longest + LONGEST_SLACK_SECONDS)


def waits(model: type[Leased], now: datetime) -> Q:
    """Rows that are due and that nobody holds, in words of the doctor's own."""
    free = Q(lease_until__isnull=True) | Q(lease_until__lte=now) | Q(lease_until__gt=now + longest_lease())
    return Q(**{f"{model.DUE}__lte": now}) & free


def waited_seconds(due: datetime, lease_until: datetime | None, now: datetime) -> float:
    """Since when nobody has taken it: since it is due, or since the lease of who had it ran out. Pure."""
    since = max(due, lease_until) if lease_until is not None and lease_until <= now else due
    return (now - since).total_seconds()


def late(
    subject: str, row: dict[str, Any], due: str, now: datetime, bound: float, queue: str, *, what: str = "it"
) -> Iterator[Finding]:
    """The finding about one waiting row (with its `due` and lease columns), if it has waited longer than `bound`."""
    if row["crashes"]:
        # Tried apart from all others, in a part of each session.
        bound += bound_seconds(0)
    waited = waited_seconds(row[due], row["lease_until"], now)
    if waited <= bound:
        return
    advice = WORKERS.format(queue=queue)
    if row["lease_until"] is not None:
        owner = row["lease_owner"] or "a worker"
        message = (
            f"{owner} had {what} and is gone; its lease ran out {waited:.0f} s ago, and {bound:.0f} s is the bound"
        )
        yield Finding("expired-lease", subject, message, advice)
    else:
        message = f"{what} has been due for {waited:.0f} s and nobody has taken it; {bound:.0f} s is the bound"
        yield Finding("overdue", subject, message, advice)


LEASE_COLUMNS = ("lease_until", "lease_owner", "crashes")


def remotes(now: datetime) -> Iterator[Finding]:
    """Excused as far as their host makes them wait: it asked for patience, or all of its places are in use, or it is down
    and gets one poll at a time.
    """
    columns = ("pk", "url", "next_poll_at", "host_id", "credential_id", "host__failures", *LEASE_COLUMNS)
    rows = list(Remote.objects.filter(waits(Remote, now)).order_by("next_poll_at").values(*columns))
    due = Counter(row["host_id"] for row in rows)
    live = live_leases(Remote, "host", now)
    patient = patience(due, now)
    for row in rows:
        host = row["host_id"]
        if (host, row["credential_id"] or 0) in patient:
            continue
        down = row["host__failures"] >= settings.GIT_HOST_BREAKER
        abreast = 1 if down else settings.GIT_HOST_CONCURRENCY
        ahead = due[host] if down or live[host] else 0
        bound = bound_seconds(settings.POLL_LEASE, ahead=ahead, abreast=abreast, each_seconds=settings.GIT_TIMEOUT)
        yield from late(f"remote {row['url']}", row, "next_poll_at", now, bound, "poll", what="its poll")


def adoptions(now: datetime) -> Iterator[Finding]:
    rows = Adoption.objects.filter(waits(Adoption, now)).order_by("due_at")
    bound = bound_seconds(settings.JOB_LEASE)
    for row in rows.values("due_at", "remote__url", *LEASE_COLUMNS):
        subject = f"remote {row['remote__url']}"
        yield from late(subject, row, "due_at", now, bound, "control", what="the adoption of its last answer")


def jobs(now: datetime) -> Iterator[Finding]:
    """Excused while the GitRepo's last job runs, and for as long as fetches of the same remote, or of others in all
    processes, may take.
    """
    other = SyncJob.objects.filter(gitrepo=OuterRef("gitrepo"), state=SyncJob.State.RUNNING).exclude(pk=OuterRef("pk"))
    waiting = SyncJob.objects.filter(waits(SyncJob, now), ~Exists(other)).order_by("due_at")
    rows = list(waiting.values("due_at", "gitrepo__name", "revision__number", "gitrepo__remote_id", *LEASE_COLUMNS))
    if not rows:
        return
    of_remote = Counter(row["gitrepo__remote_id"] for row in rows)
    fetching = live_leases(Mirror, "remote", now)
    running = live_leases(SyncJob, "gitrepo", now)
    last = SyncJob.objects.aggregate(last=Max("started_at"))["last"]
    busy = bool(running) or (last is not None and (now - last).total_seconds() < bound_seconds(0))
    for row in rows:
        ahead = max(int(busy), of_remote[row["gitrepo__remote_id"]] if fetching[row["gitrepo__remote_id"]] else 0)
        bound = bound_seconds(settings.JOB_LEASE, ahead=ahead, each_seconds=settings.GIT_FETCH_TIMEOUT)
        subject = f"gitrepo {row['gitrepo__name']}"
        what = f"the sync job of revision {row['revision__number']}"
        yield from late(subject, row, "due_at", now, bound, "sync", what=what)


def deliveries(now: datetime) -> Iterator[Finding]:
    """Excused as far as their cluster, or others in all threads, make them wait."""
    waiting = Delivery.objects.filter(waits(Delivery, now)).order_by("due_at")
    rows = list(waiting.values("due_at", "gitrepo__name", "cluster__name", "cluster_id", *LEASE_COLUMNS))
    due = Counter(row["cluster_id"] for row in rows)
    live = live_leases(Delivery, "cluster", now)
    for row in rows:
        ahead, abreast = int(bool(live)), 1
        if live[row["cluster_id"]]:
            ahead, abreast = due[row["cluster_id"]], settings.DELIVERY_CLUSTER_CONCURRENCY
        bound = bound_seconds(
            settings.DELIVERY_LEASE, ahead=ahead, abreast=abreast, each_seconds=settings.DELIVERY_TIMEOUT
        )
        subject = f"delivery of {row['gitrepo__name']} at {row['cluster__name']}"
        yield from late(subject, row, "due_at", now, bound, "deliver")


def matching(now: datetime) -> Iterator[Finding]:
    rows = list(Cluster.objects.filter(waits(Cluster, now)).order_by("match_due_at"))
    busy = Cluster.objects.filter(lease_until__gt=now).exists()
    ahead = len(rows) if busy else 0
    bound = bound_seconds(settings.JOB_LEASE, ahead=ahead, each_seconds=settings.JOB_LEASE)
    for cluster in rows:
        row = {"match_due_at": cluster.match_due_at, **{name: getattr(cluster, name) for name in LEASE_COLUMNS}}
        subject = f"cluster {cluster.name}"
        yield from late(subject, row, "match_due_at", now, bound, "control", what="the match of its labels")


def chores(now: datetime) -> Iterator[Finding]:
    """The resync and the like: none at all means that beat or the queue control is not served."""
    rows = Chore.objects.filter(waits(Chore, now)).values("name", "due_at", *LEASE_COLUMNS)
    for row in rows:
        # No tick rings for a chore: one whose message is lost waits for the next.
        bound = bound_seconds(settings.JOB_LEASE) + 2 * CHORE_SECONDS.get(row["name"], RAREST_CHORE_SECONDS)
        yield from late(f"chore {row['name']}", row, "due_at", now, bound, "control", what=f"the {row['name']}")
    bound = bound_seconds(settings.JOB_LEASE) + RAREST_CHORE_SECONDS
    old = GitRepo.objects.filter(created_at__lt=now - timedelta(seconds=bound))
    if not Chore.objects.filter(name=Chore.RESYNC).exists() and old.exists():
        message = f"no resync has ever begun, and there are GitRepos older than {bound:.0f} s"
        yield Finding("overdue", "chore resync", message, WORKERS.format(queue="control"))


QUESTIONS = (remotes, adoptions, jobs, deliveries, matching, chores)


def ask(now: datetime) -> Iterator[Finding]:
    for question in QUESTIONS:
        yield from question(now)
