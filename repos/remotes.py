"""Remotes as GitRepos share them: finding, waking, and how often their followers want them polled.

Everything here runs in the caller's transaction, with the Remote's row locked where it says so.
"""

from datetime import datetime

from django.conf import settings
from django.db.models import F, Q

from repos.doorbells import ring_on_commit
from repos.leases import database_now
from repos.models import Adoption, GitRepo, Host, HostNotBefore, Remote
from repos.schedule import backoff_seconds
from repos.urls import parse_git_url


def remote_for(gitrepo: GitRepo) -> Remote:
    """The Remote that the GitRepo's url, credential and TLS settings name, made if it is new."""
    url = parse_git_url(gitrepo.url)
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
    wishes = GitRepo.objects.filter(wanting(), remote=remote).values_list("interval_seconds", "ref_failures").distinct()
    return min((backoff_seconds(i, f, settings.GITREPO_BACKOFF_CAP) for i, f in wishes.order_by()), default=None)


def not_before(host_id: int, credential_id: int | None, now: datetime) -> datetime:
    """The earliest instant at which the host may be polled with this credential: `now` unless it asked for patience."""
    until = HostNotBefore.objects.filter(host_id=host_id, credential_key=credential_id or 0).values_list(
        "until", flat=True
    )
    return max(now, until.first() or now)


def wake(remote: Remote, now: datetime) -> None:
    """Make the locked `remote` due, now or at its not-before instant, whatever poll is running."""
    due = not_before(remote.host_id, remote.credential_id, now)
    remote.wakes += 1
    Remote.objects.filter(pk=remote.pk).update(
        wakes=remote.wakes, next_poll_at=due, wait_seconds=(due - now).total_seconds()
    )
    ring_on_commit("poll")


def refresh_interval(remote: Remote) -> None:
    """Store how often the followers of the locked `remote` want it, and take it off the schedule if none does."""
    interval = wanted_interval_seconds(remote)
    rows = Remote.objects.filter(pk=remote.pk)
    if interval != remote.interval_seconds:
        remote.interval_seconds = interval
        rows.update(interval_seconds=interval)
    if interval is None:
        # A wake that no poll has answered keeps its instant: somebody still waits for it.
        rows.filter(answered__gte=F("wakes")).update(**Remote.not_due())
    elif remote.next_poll_at is None:
        rows.filter(next_poll_at__isnull=True).update(**Remote.due_in(database_now(), 0))
