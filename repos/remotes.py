"""Remotes as GitRepos share them: finding, waking, and how often their followers want them polled.

Everything here runs in the caller's transaction, with the Remote's row locked where it says so.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db.models import F, Q, QuerySet

from repos.doorbells import ring_on_commit
from repos.leases import database_now
from repos.models import Adoption, GitRepo, Host, HostNotBefore, Remote
from repos.quarantine import held_until
from repos.schedule import backoff_seconds, next_wait_seconds
from repos.statements import rows_of
from repos.urls import parse_git_url

# A host is left alone no longer than this. An instant further ahead was written by a clock that has been set back.
LONGEST_PATIENCE_SECONDS = 3600.0
# How long a host that says 429 without a Retry-After is left alone.
PATIENCE_SECONDS = 60.0


def remote_for(gitrepo: GitRepo) -> Remote:
    """The Remote that the GitRepo's url, credential and TLS settings name, made if it is new. Raises ValidationError."""
    try:
        url = parse_git_url(gitrepo.url)
    except ValidationError as error:
        raise ValidationError({"url": error.messages}) from None
    identity = Remote.identity_of(
        url.normalised, gitrepo.credential_id, gitrepo.ca_bundle, gitrepo.insecure_skip_tls_verify
    )
    name, port = url.host_key
    host, _ = Host.objects.get_or_create(name=name, port=port)
    remote, created = Remote.objects.get_or_create(
        identity=identity,
        defaults={
            "url": url.normalised,
            "host": host,
            "credential": gitrepo.credential,
            "ca_bundle": gitrepo.ca_bundle,
            "insecure_skip_tls_verify": gitrepo.insecure_skip_tls_verify,
        },
    )
    if created:
        Adoption.objects.get_or_create(remote=remote)
    return remote


def wanting() -> Q:
    """GitRepos that want their remote polled: those that poll, have a request, or never synced; never pinned ones."""
    return Q(deleted_at__isnull=True, commit="") & (
        Q(disable_polling=False) | Q(requested__gt=F("handled")) | Q(latest_revision=0)
    )


def wanted_interval_seconds(remote: Remote) -> float | None:
    """The shortest interval that a follower wants, its own backoff for a missing ref included; None if none wants any."""
    return wanted_intervals([remote.pk]).get(remote.pk)


def wanted_intervals(remotes: Iterable[int]) -> dict[int, float]:
    """The shortest interval that a follower of each remote wants, by the remotes' keys; nothing where none wants any."""
    wishes = GitRepo.objects.filter(wanting(), remote__in=list(remotes)).order_by()
    found: dict[int, float] = {}
    for remote, interval, failures in wishes.values_list("remote_id", "interval_seconds", "ref_failures").distinct():
        wish = backoff_seconds(interval, failures, settings.GITREPO_BACKOFF_CAP)
        found[remote] = min(wish, found.get(remote, wish))
    return found


def patience(host_ids: Iterable[int], now: datetime) -> dict[tuple[int, int], datetime]:
    """Until when hosts want to be left alone, by (host, credential or 0), where that is still to come."""
    wanted = set(host_ids)
    asked = [pk for (pk,) in rows_of(_not_before, now)]
    if not asked:
        return {}
    rows = HostNotBefore.objects.filter(pk__in=asked, host__in=wanted)
    return {
        (host, credential): until for host, credential, until in rows.values_list("host", "credential_key", "until")
    }


def _not_before(now: datetime) -> QuerySet[HostNotBefore, Any]:
    until = now + timedelta(seconds=LONGEST_PATIENCE_SECONDS)
    return HostNotBefore.objects.filter(until__gt=now, until__lte=until).values_list("pk")


def not_before(host_id: int, credential_id: int | None, now: datetime) -> datetime:
    """The earliest instant at which the host may be polled with this credential: `now` unless it asked for patience."""
    return patience([host_id], now).get((host_id, credential_id or 0), now)


def leave_alone(host_id: int, credential_id: int | None, seconds: float, now: datetime) -> datetime:
    """Keep that the host wants to be left alone with this credential for so many seconds, 3600 at most, unless it asked for
    longer before; until when. The row is locked, so that of two workers the one that waited sees what the other wrote.
    """
    until = now + timedelta(seconds=min(seconds, LONGEST_PATIENCE_SECONDS))
    rows = HostNotBefore.objects.select_for_update(no_key=True)
    row, _ = rows.get_or_create(host_id=host_id, credential_key=credential_id or 0, defaults={"until": until})
    if not until <= row.until <= now + timedelta(seconds=LONGEST_PATIENCE_SECONDS):
        row.until = until
        row.save(update_fields=["until"])
    return row.until


def wake(remote: Remote, now: datetime) -> None:
    """Make the locked `remote` due, now or at its not-before instant, whatever poll is running. One in quarantine keeps
    its instant: a webhook that rings all the time must not end a worker each time.
    """
    due = held_until(remote, now) or not_before(remote.host_id, remote.credential_id, now)
    remote.wakes += 1
    Remote.objects.filter(pk=remote.pk).update(
        wakes=remote.wakes, next_poll_at=due, wait_seconds=(due - now).total_seconds()
    )
    ring_on_commit("poll")


def refresh_interval(remote: Remote) -> None:
    """Store how often the followers of the locked `remote` want it, and make its schedule agree: it is taken off if none
    does, and comes sooner if they want it sooner (a ref that was missing is back), its own backoff kept.
    """
    interval, before = wanted_interval_seconds(remote), remote.interval_seconds
    rows = Remote.objects.filter(pk=remote.pk)
    if interval != before:
        remote.interval_seconds = interval
        rows.update(interval_seconds=interval)
    if interval is None:
        # A wake that no poll has answered keeps its instant: somebody still waits for it.
        rows.filter(answered__gte=F("wakes")).update(**Remote.not_due())
    elif remote.next_poll_at is None:
        rows.filter(next_poll_at__isnull=True).update(**Remote.due_in(database_now(), 0))
    elif before is not None and interval < before:
        now = database_now()
        wait = next_wait_seconds(
            interval,
            remote.consecutive_failures,
            cap_seconds=settings.GITREPO_BACKOFF_CAP,
            jitter=settings.GITREPO_POLLING_JITTER,
        )
        due = max(now + timedelta(seconds=wait), not_before(remote.host_id, remote.credential_id, now))
        sooner = rows.filter(next_poll_at__gt=due)
        sooner.update(next_poll_at=due, wait_seconds=(due - now).total_seconds())
