"""Choosing the remotes that a session asks next: due, unleased, and within what each host allows."""

import random
import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet

from repos.breaker import is_open
from repos.capped import claim_capped
from repos.events import record_event
from repos.leases import claimable, database_now, give_back, held, longest_lease_seconds, suspect
from repos.models import Counter, Host, Remote
from repos.quarantine import is_quarantined, sentence, wait_seconds
from repos.refs import followed_ref
from repos.remotes import patience
from repos.statements import THEN, among, fetched, rounded_up, rows_of

log = structlog.get_logger(__name__)

# What has been due for longer was due when the last claim looked.
LEFT_BEHIND = timedelta(seconds=0.1)
# So many of what was left, the oldest, are looked at before all of it is.
MOST_LEFT = 100


@dataclass(frozen=True, slots=True)
class Follow:
    """One thing that followers of a remote follow, and who does: `name` is one of them, `count` how many there are."""

    branch: str
    tag: str
    semver: str
    name: str
    count: int
    commit: str = ""

    @property
    def ref(self) -> str:
        return followed_ref(self)


@dataclass(frozen=True, slots=True)
class ClaimedRemote:
    """A leased Remote as it was read at the claim, with what its followers follow."""

    remote: Remote
    # Of the claim, or, where it had to wait for a slot after that, of its turn: from here on its poll counts.
    claimed_at: datetime
    follows: tuple[Follow, ...]
    # The same on the monotonic clock.
    begun: float = field(default_factory=time.monotonic, compare=False)

    def in_turn(self) -> "ClaimedRemote":
        """The same, whose turn has come now."""
        now = time.monotonic()
        return replace(self, claimed_at=self.claimed_at + timedelta(seconds=now - self.begun), begun=now)

    @property
    def lag_seconds(self) -> float:
        """How late the poll is against the schedule."""
        due = self.remote.next_poll_at
        return max(0.0, (self.claimed_at - due).total_seconds()) if due else 0.0

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for the answer."""
        return self.remote.answered < self.remote.wakes

    @property
    def asked(self) -> list[str]:
        return sorted({follow.ref for follow in self.follows})


def claim_remotes(limit: int) -> list[ClaimedRemote]:
    """Lease at most `limit` due remotes that are no suspects, never more than GIT_HOST_CONCURRENCY of one host over all
    workers, and one at a time of a host whose breaker is open.

    A remote whose host has asked for patience meanwhile goes back, to be due when that is over.
    """
    return _claim(limit, suspects=False)


def _oldest_due(now: datetime, most: int, _: float) -> QuerySet[Remote, Any]:
    due = Remote.objects.filter(claimable(Remote, now)).exclude(suspect())
    return due.order_by("next_poll_at").values_list("answered", "wakes")[:most]


def due_and_awaited(most: int) -> list[bool]:
    """For each due remote that is no suspect, `most` of them at most, whether somebody waits for its poll."""
    found = rows_of(_oldest_due, database_now(), rounded_up(most), longest_lease_seconds())
    return [answered < wakes for answered, wakes in found[:most]]


def full_hosts(held: Collection[int]) -> set[int]:
    """Asked right after a claim that found less than there was room for: those of the hosts `held` of which it had to leave
    something. A host whose breaker is open is not among them: it is asked by one at a time whatever becomes free.
    """
    now = database_now() - LEFT_BEHIND
    asked = (now, settings.GIT_HOST_BREAKER, longest_lease_seconds())
    oldest = rows_of(_oldest_left, *asked)
    found = {host for (host,) in oldest}
    if len(oldest) == MOST_LEFT and (others := set(held) - found):
        # They may all be of one host that is slow, and hide the others.
        found.update(_left(*asked).filter(host__in=others).values_list("host", flat=True).distinct())
    return found & set(held)


def _left(now: datetime, _: int, __: float) -> QuerySet[Remote, Any]:
    due = Remote.objects.filter(claimable(Remote, now)).exclude(suspect())
    return due.exclude(host__in=Host.objects.filter(is_open()))


def _oldest_left(now: datetime, breaker: int, longest: float) -> QuerySet[Remote, Any]:
    return _left(now, breaker, longest).order_by("next_poll_at").values_list("host")[:MOST_LEFT]


def claim_suspect() -> list[ClaimedRemote]:
    """Lease one due remote whose last claims ended without a word, to be asked with no other beside it."""
    with transaction.atomic():
        found = _claim(1, suspects=True)
        for claimed in found:
            if is_quarantined(claimed.remote):
                _quarantine(claimed)
    return found


def _quarantine(claimed: ClaimedRemote) -> None:
    """Store the next try and what is shown before this one, which may be the last thing that this process does."""
    remote, now = claimed.remote, claimed.claimed_at
    message = sentence(remote.crashes)
    healthy = remote.consecutive_failures == 0
    failures = max(remote.consecutive_failures + 1, remote.crashes)
    # Not in `remote` itself, whose instant is the one that it was due at.
    due = Remote.due_in(now, wait_seconds(remote.interval_seconds or 0.0, random.random()))  # noqa: S311
    shown = {"consecutive_failures": failures, "last_error": message}
    shown |= {"health_changed_at": now} if healthy else {}
    held(remote).update(**due, **shown)
    for name, value in shown.items():
        setattr(remote, name, value)
    record_event(remote, "Quarantined", message, now, warning=True)
    Counter.add({("polls", "result=crashed"): 1})
    log.error("quarantined", repository=remote.url, cause="crashed", error=message)


def _claim(limit: int, *, suspects: bool) -> list[ClaimedRemote]:
    rows, now = claim_capped(
        Remote,
        group="host",
        cap=settings.GIT_HOST_CONCURRENCY,
        single=_open_hosts(),
        limit=limit,
        seconds=settings.POLL_LEASE,
        defer=("identity", "refs", "asked", "recent", "returning", "created_at"),
        related=("credential",),
        suspects=suspects,
    )
    patient = patience({row.host_id for row in rows}, now) if rows else {}
    welcome = []
    for row in rows:
        until = patient.get((row.host_id, row.credential_id or 0))
        if until is None:
            welcome.append(row)
        else:
            # A little later than the first, as all others that were put off.
            slowly = settings.GITREPO_POLLING_INTERVAL * random.random()  # noqa: S311
            give_back(row, **Remote.due_in(now, (until - now).total_seconds() + slowly))
    follows = follows_of([row.pk for row in welcome])
    return [ClaimedRemote(row, now, tuple(follows.get(row.pk, ()))) for row in welcome]


def _with_open_breaker(_: datetime, __: int) -> QuerySet[Host, Any]:
    return Host.objects.filter(is_open()).values_list("pk")


def _open_hosts() -> list[int]:
    return [pk for (pk,) in rows_of(_with_open_breaker, THEN, settings.GIT_HOST_BREAKER)]


FOLLOWS = (
    "SELECT remote_id, branch, tag, semver, min(name), count(*) FROM repos_gitrepo "
    "WHERE deleted_at IS NULL AND \"commit\" = '' AND remote_id {} GROUP BY remote_id, branch, tag, semver"
)


def follows_of(remotes: list[int]) -> dict[int, list[Follow]]:
    """What the unpinned followers of each remote follow."""
    found: dict[int, list[Follow]] = {}
    condition, parameters = among(remotes)
    for remote, *follow in fetched(FOLLOWS.format(condition), parameters) if remotes else ():
        found.setdefault(remote, []).append(Follow(*follow))
    return found
