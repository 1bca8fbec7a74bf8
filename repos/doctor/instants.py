"""Instants that are missing where work should happen, or that lie further ahead than anything sets them."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from repos.doctor.bounds import HORIZON_SLACK_SECONDS, poll_horizon_seconds
from repos.doctor.finding import Finding
from repos.doctor.waiting import longest_lease
from repos.forgotten import left_out, unscheduled_deliveries, unscheduled_jobs, unscheduled_remotes
from repos.leases import Leased
from repos.models import Adoption, Chore, Cluster, Delivery, GitRepo, Mirror, Probe, Remote, SyncJob
from repos.refs import was_asked
from repos.remotes import patience

REPAIRED = "the resync repairs it within GITREPO_SYNC_PERIOD; report it as a fault of fleetsync, with the workers' logs"
NOW = "sync the GitRepo (POST …/sync/) to have it at once; " + REPAIRED


def unscheduled_polls(_: datetime) -> Iterator[Finding]:
    for url in Remote.objects.filter(unscheduled_remotes()).order_by("pk").values_list("url", flat=True):
        yield Finding("unscheduled", f"remote {url}", "GitRepos want it polled, and it has no next poll", NOW)


def unscheduled_work(_: datetime) -> Iterator[Finding]:
    rows = SyncJob.objects.filter(unscheduled_jobs()).order_by("pk")
    for name, number, state in rows.values_list("gitrepo__name", "revision__number", "state"):
        message = f"the {state} sync job of revision {number} has no instant at which it is due"
        yield Finding("unscheduled", f"gitrepo {name}", message, NOW)
    waiting = Delivery.objects.filter(unscheduled_deliveries()).order_by("pk")
    for name, cluster, state in waiting.values_list("gitrepo__name", "cluster__name", "state"):
        message = f"it is {state} and has no instant at which it is due"
        yield Finding("unscheduled", f"delivery of {name} at {cluster}", message, NOW)


def unadopted(_: datetime) -> Iterator[Finding]:
    """Answers that nobody will adopt: the adoption is missing, or not due while a follower is left out."""
    without = Remote.objects.filter(adoption__isnull=True, gitrepos__deleted_at__isnull=True, gitrepos__isnull=False)
    for url in without.order_by("pk").values_list("url", flat=True).distinct():
        yield Finding("unscheduled", f"remote {url}", "its answers have nobody to adopt them", REPAIRED)
    rest = GitRepo.objects.filter(left_out(), remote__adoption__due_at__isnull=True, remote__adoption__isnull=False)
    for gitrepo in rest.select_related("remote").defer("remote__refs", "remote__recent").order_by("pk"):
        if was_asked(gitrepo, gitrepo.remote.asked):
            message = "it has not taken in its remote's last answer, and no adoption is due"
            yield Finding("unscheduled", f"gitrepo {gitrepo.name}", message, NOW)


# Each kind of leased work, and how a person would name a row of it.
SUBJECTS: tuple[tuple[type[Leased], str, tuple[str, ...]], ...] = (
    (Remote, "remote {}", ("url",)),
    (Adoption, "adoption for remote {}", ("remote__url",)),
    (SyncJob, "sync job {1} of gitrepo {0}", ("gitrepo__name", "revision__number")),
    (Delivery, "delivery of {} at {}", ("gitrepo__name", "cluster__name")),
    (Cluster, "cluster {}", ("name",)),
    (Chore, "chore {}", ("name",)),
    (Mirror, "mirror of {} on {}", ("remote__url", "worker_host")),
    (Probe, "{} probe {}", ("kind", "pk")),
)


def beyond_horizon(now: datetime) -> Iterator[Finding]:
    for model, text, columns in SUBJECTS:
        yield from _due_beyond(model, text, columns, now)
        absurd = now + longest_lease() + timedelta(seconds=HORIZON_SLACK_SECONDS)
        for *name, until in model._default_manager.filter(lease_until__gt=absurd).values_list(*columns, "lease_until"):
            message = f"its lease runs for another {(until - now).total_seconds():.0f} s, longer than any is given for"
            yield _beyond(text.format(*name), message)
    yield from _polls_beyond(now)


def _due_beyond(model: type[Leased], text: str, columns: tuple[str, ...], now: datetime) -> Iterator[Finding]:
    ahead = {f"{model.DUE}__gt": now + timedelta(seconds=HORIZON_SLACK_SECONDS)}
    rows: Any = model._default_manager.filter(**ahead).order_by("pk")
    for due, wait, *name in rows.values_list(model.DUE, "wait_seconds", *columns).iterator():
        seconds = (due - now).total_seconds()
        if seconds > wait + HORIZON_SLACK_SECONDS:
            message = f"it is due in {seconds:.0f} s, and whoever set that meant to wait {wait:.0f} s"
            yield _beyond(text.format(*name), message)


def _polls_beyond(now: datetime) -> Iterator[Finding]:
    """Polls further ahead than interval, backoff and the host's patience explain."""
    nearest = now + timedelta(seconds=poll_horizon_seconds(None))
    columns = ("url", "host_id", "credential_id", "interval_seconds", "next_poll_at", "wait_seconds")
    rows = list(Remote.objects.filter(next_poll_at__gt=nearest).order_by("pk").values_list(*columns))
    patient = patience({row[1] for row in rows}, now)
    slack = timedelta(seconds=HORIZON_SLACK_SECONDS)
    for url, host, credential, interval, due, wait in rows:
        horizon = poll_horizon_seconds(interval)
        until = patient.get((host, credential or 0), now)
        seconds = (due - now).total_seconds()
        told = seconds > wait + HORIZON_SLACK_SECONDS
        if seconds > horizon and due > until + slack and not told:
            message = (
                f"its next poll is in {seconds:.0f} s, and {horizon:.0f} s is the furthest that anything schedules"
            )
            yield _beyond(f"remote {url}", message)


def _beyond(subject: str, message: str) -> Finding:
    advice = (
        "if GITREPO_BACKOFF_CAP, GITREPO_POLLING_JITTER or a lease was lowered just now, wait the old time; else look for "
        "a clock that was set: the resync heals such instants every few seconds, so see that beat and control run"
    )
    return Finding("beyond-horizon", subject, message, advice)


def without_a_cause(_: datetime) -> Iterator[Finding]:
    """Failures that nobody can understand."""
    advice = "see the workers' logs of that time; report it as a fault of fleetsync"
    none = "it has failed, and no cause is stored"
    for url in Remote.objects.filter(consecutive_failures__gt=0, last_error="").values_list("url", flat=True):
        yield Finding("failed-without-cause", f"remote {url}", none, advice)
    missing = GitRepo.objects.alive().filter(ref_failures__gt=0, ref_error="")
    for name in missing.values_list("name", flat=True):
        yield Finding("failed-without-cause", f"gitrepo {name}", none, advice)
    failed = SyncJob.objects.filter(state=SyncJob.State.FAILED, last_error="")
    for name, number in failed.values_list("gitrepo__name", "revision__number"):
        yield Finding("failed-without-cause", f"sync job {number} of gitrepo {name}", none, advice)
    states = (Delivery.State.FAILED, Delivery.State.HELD)
    stopped = Delivery.objects.filter(state__in=states, last_error="")
    for name, cluster, state in stopped.values_list("gitrepo__name", "cluster__name", "state"):
        yield Finding(
            "failed-without-cause", f"delivery of {name} at {cluster}", f"it is {state}, and no cause is stored", advice
        )


QUESTIONS = (
    unscheduled_polls,
    unscheduled_work,
    unadopted,
    beyond_horizon,
    without_a_cause,
)


def ask(now: datetime) -> Iterator[Finding]:
    for question in QUESTIONS:
        yield from question(now)
