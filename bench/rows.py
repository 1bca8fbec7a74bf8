"""Fleets as they are after a while, written in bulk: what registration, a first poll and a first sync leave behind.

Registering 100 000 GitRepos one by one takes longer than what is measured; bench/registration.py measures that.
"""

import random
from collections.abc import Callable
from datetime import datetime, timedelta

from django.db import connection

from repos.heads import digest_of
from repos.leases import database_now
from repos.models import Adoption, Bundle, Event, GitRepo, Host, Remote, Revision, SyncJob
from repos.urls import parse_git_url

CHUNK = 5_000


def make_fleet(
    count: int, url_of: Callable[[int], str], refs_of: Callable[[int], dict[str, str]], *, interval_seconds: float
) -> None:
    """`count` GitRepos, `fleet-0` and so on, each with a Remote of its own that was polled and synced once, and is due at
    some instant of the next interval. `refs_of` says what its server answers: its main branch alone.
    """
    now = database_now()
    bundle, _ = Bundle.objects.get_or_create(
        sha256="f" * 64, defaults={"size_bytes": 1024, "files": 1, "last_used_at": now}
    )
    hosts: dict[tuple[str, int], Host] = {}
    for first in range(0, count, CHUNK):
        numbers = range(first, min(first + CHUNK, count))
        remotes = [_remote(url_of(n), refs_of(n), hosts, now, interval_seconds) for n in numbers]
        Remote.objects.bulk_create(remotes)
        Adoption.objects.bulk_create(Adoption(remote=remote, wanted=1) for remote in remotes)
        gitrepos = [
            GitRepo(
                name=f"fleet-{n}",
                url=remote.url,
                branch="main",
                polling_interval=f"{interval_seconds:g}s",
                interval_seconds=interval_seconds,
                remote=remote,
                requested=1,
                handled=1,
                follows_since=1,
                adopted_remote=remote.pk,
                adopted_change=1,
                observed_commit=next(iter(remote.refs.values())),
                observed_at=now,
                latest_revision=1,
            )
            for n, remote in zip(numbers, remotes, strict=True)
        ]
        GitRepo.objects.bulk_create(gitrepos)
        GitRepo.history.bulk_history_create(gitrepos, default_date=now)
        Event.objects.bulk_create(
            Event(gitrepo=g, reason="Registered", message=f"follows {g.url}", first_at=now, last_at=now)
            for g in gitrepos
        )
        _synced(gitrepos, bundle, now)
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")


def _remote(
    url: str, refs: dict[str, str], hosts: dict[tuple[str, int], Host], now: datetime, interval_seconds: float
) -> Remote:
    parsed = parse_git_url(url)
    name, port = parsed.host_key
    if (name, port) not in hosts:
        hosts[name, port], _ = Host.objects.get_or_create(name=name, port=port)
    asked = ["refs/heads/main"]
    wait = random.uniform(0, interval_seconds)
    return Remote(
        identity=Remote.identity_of(parsed.normalised, None, "", False),
        url=parsed.normalised,
        host=hosts[name, port],
        next_poll_at=now + timedelta(seconds=wait),
        wait_seconds=wait,
        interval_seconds=interval_seconds,
        wakes=1,
        answered=1,
        refs=refs,
        asked=asked,
        digest=digest_of(refs, asked),
        change=1,
    )


def _synced(gitrepos: list[GitRepo], bundle: Bundle, now: datetime) -> None:
    revisions = Revision.objects.bulk_create(
        Revision(
            gitrepo=gitrepo,
            number=1,
            commit=gitrepo.observed_commit,
            generation=1,
            reason=Revision.Reason.NEW_HEAD,
            outcome=Revision.Outcome.NO_TARGET,
            observed_at=now,
            synced_at=now,
            bundle=bundle,
        )
        for gitrepo in gitrepos
    )
    SyncJob.objects.bulk_create(
        SyncJob(
            gitrepo=revision.gitrepo,
            revision=revision,
            state=SyncJob.State.SUCCEEDED,
            created_at=now,
            started_at=now,
            finished_at=now,
        )
        for revision in revisions
    )
    for gitrepo, revision in zip(gitrepos, revisions, strict=True):
        gitrepo.wanted_revision = revision
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE repos_gitrepo SET wanted_revision_id = "
            "(SELECT r.id FROM repos_revision r WHERE r.gitrepo_id = repos_gitrepo.id) WHERE wanted_revision_id IS NULL"
        )
