"""Rows that no rule allows: some path forgot its work. The resync repairs them, and the doctor tells of them."""

from collections.abc import Set

from django.db.models import Exists, F, OuterRef, Q

from repos.deliveries import unapplied
from repos.models import GitRepo, SyncJob
from repos.remotes import wanting


def unscheduled_remotes() -> Q:
    """Remotes that a GitRepo wants polled and that have no next poll, with no adoption on its way that sets it."""
    wanted = GitRepo.objects.filter(wanting(), remote=OuterRef("pk"))
    return Q(next_poll_at__isnull=True, adoption__due_at__isnull=True) & Q(Exists(wanted))


def unscheduled_jobs() -> Q:
    """Open jobs that are not paused and have no instant at which they are due."""
    return Q(
        state__in=(*SyncJob.WAITING, SyncJob.State.RUNNING),
        due_at__isnull=True,
        gitrepo__paused=False,
    )


def unscheduled_deliveries() -> Q:
    """Deliveries that are not paused, have something left to do, and no instant at which they are due."""
    return unapplied() & Q(due_at__isnull=True, gitrepo__paused=False)


def left_out() -> Q:
    """GitRepos that want their remote's stored answer and have not taken it in, while no other answer is on its way.

    Whether they follow what was asked for (repos.refs.was_asked) is for the caller to see.
    """
    not_taken_in = (
        Q(adopted_remote__isnull=True)
        | ~Q(adopted_remote=F("remote"))
        | Q(adopted_change__isnull=True)
        | ~Q(adopted_change=F("remote__change"))
        | Q(requested__gt=F("handled"))
    )
    answered = Q(follows_since__lte=F("remote__answered"), remote__answered__gte=F("remote__wakes"))
    return wanting() & not_taken_in & answered & Q(ref_error="")


def astray() -> Q:
    """Deliveries that want something else than their GitRepo: its newest synced revision's bundle. Not those at a cluster
    that waits for its match, for they may be about to end.
    """
    other = Q(wanted_bundle__isnull=True) | ~Q(wanted_bundle=F("gitrepo__wanted_revision__bundle"))
    return other & Q(
        removal=False,
        gitrepo__deleted_at__isnull=True,
        gitrepo__wanted_revision__bundle__isnull=False,
        cluster__match_due_at__isnull=True,
    )


def mismatched(matched: Set[int], present: Set[int], waiting: Set[int]) -> set[int]:
    """The clusters at which deliveries and targets disagree; one that waits for its own match is not forgotten, it is
    next. Pure.
    """
    return set((matched ^ present) - waiting)
