"""Is the newest revision of each GitRepo what its remote, its spec and its requests say?"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import F, OuterRef, Q, QuerySet, Subquery

from repos.doctor.bounds import SLACK_SECONDS, TRIES
from repos.doctor.finding import WARNING, Finding
from repos.models import Adoption, GitRepo, Remote, Revision
from repos.refs import head_of, was_asked
from repos.remotes import patience

ADVICE = "sync the GitRepo (POST …/sync/) to go on with it; report it as a fault of fleetsync, with the workers' logs"


@dataclass(frozen=True, slots=True)
class Follower:
    """The part of a GitRepo that says what its newest revision should be."""

    pk: int
    name: str
    branch: str
    tag: str
    semver: str
    commit: str
    follows_since: int
    newest_number: int | None
    newest_commit: str | None
    newest_reason: str | None


def followers() -> QuerySet[GitRepo]:
    """GitRepos that poll by themselves, or never synced, with their newest revision; pinned ones follow nothing."""
    newest = Revision.objects.filter(gitrepo=OuterRef("pk")).order_by("-number")
    return (
        GitRepo.objects.alive()
        .filter(Q(disable_polling=False) | Q(latest_revision=0), commit="")
        .annotate(
            newest_number=Subquery(newest.values("number")[:1]),
            newest_commit=Subquery(newest.values("commit")[:1]),
            newest_reason=Subquery(newest.values("reason")[:1]),
        )
    )


FIELDS = (
    "pk", "name", "branch", "tag", "semver", "commit", "follows_since",
    "newest_number", "newest_commit", "newest_reason",
)  # fmt: skip


def by_remote(rows: QuerySet[GitRepo]) -> dict[int, list[Follower]]:
    """Those of `rows` that are not rolled back, by their remote's key."""
    found: dict[int, list[Follower]] = {}
    for remote, *values in rows.order_by("pk").values_list("remote", *FIELDS).iterator():
        follower = Follower(*values)
        if follower.newest_reason != Revision.Reason.ROLLBACK:
            found.setdefault(remote, []).append(follower)
    return found


def heads(_: datetime) -> Iterator[Finding]:
    """Stored heads that are nobody's newest revision. While their adoption is due they wait, which has a bound of its own;
    here it counts whether it is due at all, and whether it fails again and again.
    """
    following = by_remote(followers())
    stalled = {
        remote: tries
        for remote, due, tries in Adoption.objects.annotate(tries=F("failures") + F("crashes")).values_list(
            "remote", "due_at", "tries"
        )
        if due is None or tries >= TRIES
    }
    remotes = Remote.objects.filter(change__gt=0).order_by("pk")
    for pk, url, refs, asked, answered in remotes.values_list("pk", "url", "refs", "asked", "answered").iterator():
        for follower in following.get(pk, ()) if pk in stalled else ():
            if follower.follows_since > answered or not was_asked(follower, asked):
                continue
            head = head_of(follower, refs)
            if head is None or head.commit == follower.newest_commit:
                continue
            tries = f", and its adoption came to nothing {stalled[pk]} times" if stalled[pk] else ""
            message = (
                f"{url} has {head.commit[:12]} at {head.ref}, and the newest revision is "
                f"{shown(follower.newest_commit)}{tries}"
            )
            yield Finding("not-newest", f"gitrepo {follower.name}", message, ADVICE)


def shown(commit: str | None) -> str:
    return commit[:12] if commit else "none"


def edits(_: datetime) -> Iterator[Finding]:
    """Edits and forced syncs that nothing will turn into a revision: their request is handled, and they are not."""
    handled = Q(requested__lte=F("handled")) | ~Q(commit="")
    newest = Revision.objects.filter(gitrepo=OuterRef("pk")).order_by("-number").values("generation")[:1]
    rows = GitRepo.objects.alive().filter(handled).annotate(newest_generation=Subquery(newest)).order_by("pk")
    edited = rows.exclude(newest_generation=None).exclude(newest_generation=F("generation"))
    for name, generation, newest_generation in edited.values_list("name", "generation", "newest_generation"):
        message = f"its spec has generation {generation}, and its newest revision is of generation {newest_generation}"
        yield Finding("not-newest", f"gitrepo {name}", message, ADVICE)
    forced = rows.filter(force_sync_generation__gt=F("handled_force"))
    for name, wanted, done in forced.values_list("name", "force_sync_generation", "handled_force"):
        message = f"forced sync {wanted} was asked for, and {done} is the last one that has a revision"
        yield Finding("not-newest", f"gitrepo {name}", message, ADVICE)


def requests(now: datetime) -> Iterator[Finding]:
    """Open requests whose remote is well and is not asked soon. Where it fails, or asked for patience, they wait with it;
    where its poll is due, that has a bound of its own.
    """
    soon = now + timedelta(seconds=SLACK_SECONDS)
    rows = GitRepo.objects.alive().filter(
        Q(remote__next_poll_at__gt=soon) | Q(remote__next_poll_at=None),
        commit="",
        requested__gt=F("handled"),
        remote__answered__lt=F("requested"),
        remote__consecutive_failures=0,
        remote__host__failures__lt=settings.GIT_HOST_BREAKER,
    )
    columns = (
        "name",
        "requested",
        "remote__answered",
        "remote__next_poll_at",
        "remote__host_id",
        "remote__credential_id",
    )
    found = list(rows.order_by("pk").values_list(*columns))
    patient = patience({row[4] for row in found}, now)
    for name, requested, answered, due, host, credential in found:
        if (host, credential or 0) in patient:
            continue
        when = f"only in {(due - now).total_seconds():.0f} s" if due is not None else "never"
        message = f"its request {requested} is open, the remote has answered {answered}, and is asked again {when}"
        yield Finding("not-newest", f"gitrepo {name}", message, ADVICE)


def adoptions_that_fail(now: datetime) -> Iterator[Finding]:
    """An adoption that failed and is tried again: a warning, until `heads` says that somebody is left out by it."""
    rows = Adoption.objects.filter(failures__gt=0, due_at__isnull=False).order_by("pk")
    for url, failures, due in rows.values_list("remote__url", "failures", "due_at"):
        message = f"the adoption of its last answer failed {failures} times, the next try is {seconds_until(due, now)}"
        yield Finding("failing", f"remote {url}", message, "see the logs of the workers for the queue control", WARNING)


def seconds_until(due: datetime | None, now: datetime) -> str:
    if due is None:
        return "not set"
    seconds = (due - now).total_seconds()
    return f"in {seconds:.0f} s" if seconds > 0 else "due now"


QUESTIONS = (heads, edits, requests, adoptions_that_fail)


def ask(now: datetime) -> Iterator[Finding]:
    for question in QUESTIONS:
        yield from question(now)
