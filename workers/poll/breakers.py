"""Keeping each host's breaker: what a batch of polls says of their hosts, and what follows when one answers again."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db.models import Q, QuerySet

from repos.breaker import Word, closes, failures_after, opens
from repos.events import record_event
from repos.models import Host, Remote
from repos.statements import rows_of

log = structlog.get_logger(__name__)

# The remotes of a host that was left alone become due in this many steps, spread over GITREPO_POLLING_INTERVAL.
STEPS = 10
# More of one host are left to their own backoff.
MOST_RECALLED = 10_000


def listen(words: Mapping[int, Sequence[Word]], now: datetime) -> list[Host]:
    """Count what polls say of their hosts, by the hosts' keys; those whose breaker closed.

    A healthy host's row is neither written nor locked. Call it before Remotes are locked.
    """
    known: dict[int, int] = dict(rows_of(_failing, now))
    changing = [pk for pk in words if failures_after(known.get(pk, 0), words[pk]) != known.get(pk, 0)]
    if not changing:
        return []
    closed = []
    threshold = settings.GIT_HOST_BREAKER
    for host in Host.objects.select_for_update(no_key=True).filter(pk__in=changing).order_by("pk"):
        before, after = host.failures, failures_after(host.failures, words[host.pk])
        since = host.failing_since or now
        Host.objects.filter(pk=host.pk).update(failures=after, failing_since=since if after else None)
        if opens(before, after, threshold):
            message = f"{_name(host)}: {threshold} polls in a row got no answer: it is asked by one at a time"
            record_event(None, "HostSilent", message, now, warning=True)
            log.error("breaker opened", host=_name(host), failures=after, failing_since=since.isoformat())
        if closes(before, after, threshold):
            record_event(None, "HostAnswers", f"{_name(host)}: answers again", now)
            log.warning("breaker closed", host=_name(host), failures=before, failing_since=since.isoformat())
            closed.append(host)
    return closed


def _failing(_: datetime) -> QuerySet[Host, Any]:
    return Host.objects.filter(failures__gt=0).values_list("pk", "failures")


def _name(host: Host) -> str:
    return str(host) or "file://"


def recall(hosts: Sequence[Host], now: datetime) -> None:
    """Have the remotes of hosts that answer again polled soon, and not at the end of the backoff that the host's silence
    put them into. Those that are locked, held or in quarantine keep their instant; and so do those that failed long before
    the silence: a host with many broken repositories and few good ones would have them asked without backoff.
    """
    silenced = Q()
    for host in hosts:
        began = (host.failing_since or now) - timedelta(seconds=settings.GITREPO_BACKOFF_CAP)
        silenced |= Q(host=host, health_changed_at__gte=began)
    failing = Remote.objects.filter(
        silenced,
        host__in=hosts,
        consecutive_failures__gt=0,
        next_poll_at__gt=now + timedelta(seconds=settings.GITREPO_POLLING_INTERVAL),
        lease_until__isnull=True,
    )
    keys = list(failing.select_for_update(skip_locked=True, no_key=True).values_list("pk", flat=True)[:MOST_RECALLED])
    start_slowly(keys, now, 0.0)


def start_slowly(keys: Sequence[int], now: datetime, after_seconds: float) -> None:
    """Have remotes of a host that was left alone polled from `after_seconds` on, spread, not all at the same instant."""
    for step in range(STEPS):
        wait = after_seconds + settings.GITREPO_POLLING_INTERVAL * step / STEPS
        Remote.objects.filter(pk__in=keys[step::STEPS]).update(**Remote.due_in(now, wait))
