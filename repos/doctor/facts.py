"""What is true of the world and of the past: failures that are shown and retried, repairs, crashes. And the broker."""

from collections.abc import Iterator
from datetime import datetime

import redis
from django.conf import settings

from fleetsync.redis import redis_client
from repos.doctor.finding import ERROR, WARNING, Finding
from repos.doctor.instants import SUBJECTS
from repos.doctor.newest import seconds_until
from repos.doorbells import ENOUGH_WAITING, TASKS
from repos.models import Counter, Delivery, GitRepo, Host, Remote, SyncJob

REPAIRS = "repairs"
# The repairs that an operator has looked at (`manage.py doctor --seen-repairs`).
SEEN = "repairs_seen"
# Claims in a row that ended without a word.
CRASHES = 2
# Several ticks and commits may ring at once; more waiting doorbells than this mean that nobody takes them.
LONGEST_QUEUE = 4 * ENOUGH_WAITING


def repairs(_: datetime) -> Iterator[Finding]:
    seen = dict(Counter.objects.filter(name=SEEN).values_list("label", "value"))
    for label, value in Counter.objects.filter(name=REPAIRS).order_by("label").values_list("label", "value"):
        count = int(value - seen.get(label, 0.0))
        if count > 0:
            yield Finding(
                REPAIRS,
                f"resync, {label}",
                f"it had to repair {count} rows that no rule allows",
                "see the events with the reason Repaired; report it as a fault of fleetsync unless somebody wrote to the "
                "database by hand; then `manage.py doctor --seen-repairs`",
                count=count,
            )


def see_repairs() -> int:
    """Count the repairs of until now as seen; how many kinds there were."""
    rows = list(Counter.objects.filter(name=REPAIRS).order_by("label").values_list("label", "value"))
    for label, value in rows:
        Counter.objects.update_or_create(name=SEEN, label=label, defaults={"value": value})
    return len(rows)


def failing(now: datetime) -> Iterator[Finding]:
    polls = Remote.objects.filter(consecutive_failures__gt=0, next_poll_at__isnull=False).order_by("pk")
    for url, failures, error, due in polls.values_list("url", "consecutive_failures", "last_error", "next_poll_at"):
        message = f"{failures} polls failed in a row, the next is {seconds_until(due, now)}: {error}"
        yield Finding("failing", f"remote {url}", message, "do what the message says; it is tried again", WARNING)
    for host in Host.objects.filter(failures__gte=settings.GIT_HOST_BREAKER).order_by("pk"):
        message = f"{host.failures} polls in a row did not reach it: it is asked one poll at a time"
        yield Finding("failing", f"host {host}", message, "see whether the host is up and can be reached", WARNING)
    missing = GitRepo.objects.alive().exclude(ref_error="").order_by("pk")
    for name, error in missing.values_list("name", "ref_error"):
        yield Finding("failing", f"gitrepo {name}", error, "do what the message says; it is tried again", WARNING)
    jobs = SyncJob.objects.filter(state=SyncJob.State.FAILED).order_by("pk")
    for name, error, failures, due in jobs.values_list("gitrepo__name", "last_error", "failures", "due_at"):
        message = f"its sync job failed {failures} times, the next try is {seconds_until(due, now)}: {error}"
        yield Finding("failing", f"gitrepo {name}", message, "do what the message says; it is tried again", WARNING)
    failed = Delivery.objects.filter(state=Delivery.State.FAILED).order_by("pk")
    columns = ("gitrepo__name", "cluster__name", "last_error", "failures", "due_at")
    for name, cluster, error, failures, due in failed.values_list(*columns):
        message = f"it failed {failures} times, the next try is {seconds_until(due, now)}: {error}"
        subject = f"delivery of {name} at {cluster}"
        yield Finding("failing", subject, message, "do what the message says; it is tried again", WARNING)


def held(_: datetime) -> Iterator[Finding]:
    rows = Delivery.objects.filter(state=Delivery.State.HELD).order_by("pk")
    for name, cluster, error in rows.values_list("gitrepo__name", "cluster__name", "last_error"):
        advice = "approve it (POST …/approve/), or push a commit that keeps the files"
        yield Finding("held", f"delivery of {name} at {cluster}", error, advice, WARNING)


def crashed(_: datetime) -> Iterator[Finding]:
    for model, text, columns in SUBJECTS:
        rows = model._default_manager.filter(crashes__gte=CRASHES).order_by("pk")
        for crashes, *name in rows.values_list("crashes", *columns):
            message = f"the workers that had it ended without a word {crashes} times in a row"
            advice = "see the workers' logs and their memory; it is tried again, and others are not kept waiting"
            yield Finding("crashed", text.format(*name), message, advice, WARNING)


def broker(_: datetime) -> Iterator[Finding]:
    """Asked with a short timeout. A Redis that tells nobody its settings is not asked for them."""
    client = redis_client()
    try:
        lengths = {queue: int(client.llen(queue)) for queue in TASKS}
    except (redis.RedisError, OSError) as error:
        message = f"it does not answer ({type(error).__name__}): work is done all the same, and starts later"
        yield Finding("broker", "redis", message, "see that Redis runs, and REDIS_URL", WARNING)
        return
    for queue, length in lengths.items():
        if length > LONGEST_QUEUE:
            message = f"{length} doorbells wait, and healthy workers leave no more than {LONGEST_QUEUE}"
            yield Finding("broker", f"queue {queue}", message, f"see that workers serve the queue {queue}", WARNING)
    try:
        policy = dict(client.config_get("maxmemory-policy")).get("maxmemory-policy", "")
    except (redis.RedisError, OSError):
        return
    if policy not in ("", "noeviction"):
        message = f"its maxmemory-policy is {policy}: it throws doorbells away, and the queues' own keys with them"
        yield Finding("broker", "redis", message, "set maxmemory-policy to noeviction", ERROR)


QUESTIONS = (repairs, failing, held, crashed)


def ask(now: datetime) -> Iterator[Finding]:
    for question in QUESTIONS:
        yield from question(now)
