"""Choosing the remotes that a session asks next: due, unleased, and within what each host allows."""

from dataclasses import dataclass
from datetime import datetime

from django.conf import settings
from django.db.models import Count, Min, Q

from repos.leases import claim_capped, finish
from repos.models import GitRepo, Remote
from repos.refs import followed_ref
from repos.remotes import patience


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
    claimed_at: datetime
    follows: tuple[Follow, ...]

    @property
    def lag_seconds(self) -> float:
        """How late the claim is against the schedule."""
        due = self.remote.next_poll_at
        return max(0.0, (self.claimed_at - due).total_seconds()) if due else 0.0

    @property
    def asked(self) -> list[str]:
        return sorted({follow.ref for follow in self.follows})


def claim_remotes(limit: int) -> list[ClaimedRemote]:
    """Lease at most `limit` due remotes, never more than GIT_HOST_CONCURRENCY of one host over all workers.

    A remote whose host has asked for patience meanwhile goes back, to be due when that is over.
    """
    rows, now = claim_capped(
        Remote,
        group="host",
        cap=settings.GIT_HOST_CONCURRENCY,
        limit=limit,
        seconds=settings.POLL_LEASE,
        defer=("refs", "recent", "returning"),
        related=("credential",),
    )
    patient = patience({row.host_id for row in rows}, now) if rows else {}
    welcome = []
    for row in rows:
        until = patient.get((row.host_id, row.credential_id or 0))
        if until is None:
            welcome.append(row)
        else:
            finish(row, **Remote.due_in(now, (until - now).total_seconds()))
    follows = follows_of([row.pk for row in welcome])
    return [ClaimedRemote(row, now, tuple(follows.get(row.pk, ()))) for row in welcome]


def follows_of(remotes: list[int]) -> dict[int, list[Follow]]:
    """What the unpinned followers of each remote follow."""
    found: dict[int, list[Follow]] = {}
    followers = GitRepo.objects.filter(Q(deleted_at__isnull=True, commit=""), remote__in=remotes)
    groups = followers.order_by().values_list("remote_id", "branch", "tag", "semver").annotate(Min("name"), Count("pk"))
    for remote, branch, tag, semver, name, count in groups:
        found.setdefault(remote, []).append(Follow(branch, tag, semver, name, count))
    return found
