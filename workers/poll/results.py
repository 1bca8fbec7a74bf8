"""Writing what polls found: leases given back, schedules set, moved refs stored, all in short transactions."""

from collections import Counter as Tally
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import structlog
from django.conf import settings
from django.db import DatabaseError, transaction
from django.db.models import Case, F, Q, Value, When

from fleetsync.failpoints import hit
from fleetsync.logging import log_each
from repos.breaker import Word, heard
from repos.bulk import finish_many
from repos.doorbells import ring_on_commit
from repos.events import cut, record_event
from repos.heads import digest_of, only_asked, take_in
from repos.leases import database_now, finish
from repos.models import Adoption, Counter, Remote
from repos.refs import Head, head_of
from repos.remotes import PATIENCE_SECONDS, leave_alone, patience
from repos.schedule import next_wait_seconds
from repos.statements import lock_in_order
from workers.poll.breakers import listen, recall, start_slowly
from workers.poll.claim import ClaimedRemote, Follow
from workers.poll.engine import PollResult

log = structlog.get_logger(__name__)

# A head that came back is asked for again this soon when somebody waits for the answer.
CONFIRM_SECONDS = 2.0

# The row may have been woken, be wanted more often, or have lost its last follower, while it was being polled.
WOKEN = "(t.wakes <> v.wakes_read OR t.interval_seconds < v.interval_read)"
NEXT_POLL_AT = (
    f"CASE WHEN {WOKEN} THEN v.woken_at "
    "WHEN t.interval_seconds IS NULL AND v.answered >= t.wakes THEN NULL ELSE v.next_poll_at END"
)
WAIT_SECONDS = f"CASE WHEN {WOKEN} THEN v.woken_wait ELSE v.wait_seconds END"
EXTRA = {
    "wakes_read": "wakes",
    "interval_read": "interval_seconds",
    "woken_at": "next_poll_at",
    "woken_wait": "wait_seconds",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One answered claim: what was claimed, what came back, and what it means for the stored refs."""

    claimed: ClaimedRemote
    result: PollResult
    refs: dict[str, str]
    digest: str
    moved: bool
    # Somebody follows a ref that the answer does not have.
    missing: bool
    heads: dict[Follow, Head | None]


def understand(claimed: ClaimedRemote, result: PollResult) -> Finding:
    """What a result means. Pure but for a cache."""
    refs = only_asked(result.refs, claimed.asked)
    digest = digest_of(refs, claimed.asked)
    heads: dict[Follow, Head | None] = {}
    if result.error is None:
        frozen = tuple(sorted(refs.items()))
        heads = {follow: _head(follow, digest, frozen) for follow in claimed.follows}
    moved = result.error is None and digest != claimed.remote.digest
    return Finding(claimed, result, refs, digest, moved, None in heads.values(), heads)


class _Refs(tuple[tuple[str, str], ...]):
    """Refs that are never compared: their digest stands for them in the cache's key."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=4096)
def _cached_head(follow: Follow, digest: str, refs: _Refs) -> Head | None:  # noqa: ARG001 (the digest is the key)
    return head_of(follow, dict(refs))


def _head(follow: Follow, digest: str, refs: tuple[tuple[str, str], ...]) -> Head | None:
    return _cached_head(follow, digest, _Refs(refs))


def store(answers: Sequence[tuple[ClaimedRemote, PollResult]]) -> int:
    """Write the results of a batch and log each; how many were still ours. One bad value never holds back the others."""
    findings = []
    for claimed, result in answers:
        try:
            findings.append(understand(claimed, result))
        except Exception:
            log.exception("a poll result is not understood", repository=claimed.remote.url)
            _give_back(claimed)
    try:
        return _store(findings)
    except (DatabaseError, ValueError, TypeError) as error:
        log.warning("a batch of poll results is written one by one", rows=len(findings), error=str(error)[:200])
    stored = 0
    for finding in findings:
        try:
            stored += _store([finding])
        except (DatabaseError, ValueError, TypeError) as error:
            repository = finding.claimed.remote.url
            log.error("a poll result could not be written", repository=repository, error=str(error)[:200])
            _give_back(finding.claimed)
    return stored


def _give_back(claimed: ClaimedRemote) -> None:
    """Schedule the next poll of a remote whose result could not be written, with nothing that came from the result."""
    remote, now = claimed.remote, database_now()
    failures = remote.consecutive_failures + 1
    wait = next_wait_seconds(
        remote.interval_seconds or settings.GITREPO_POLLING_INTERVAL,
        failures,
        cap_seconds=settings.GITREPO_BACKOFF_CAP,
        jitter=settings.GITREPO_POLLING_JITTER,
    )
    woken = ~Q(wakes=remote.wakes)
    try:
        finish(
            remote,
            consecutive_failures=failures,
            last_error="the answer could not be stored: see the worker's log",
            next_poll_at=Case(When(woken, then=Value(now)), default=Value(now + timedelta(seconds=wait))),
            wait_seconds=wait,
        )
    except DatabaseError as error:
        # The lease runs out, and the remote is polled again.
        log.error("a remote could not be given back", repository=remote.url, error=str(error)[:200])


def _store(findings: Sequence[Finding]) -> int:
    with transaction.atomic():
        now = database_now()
        answering = listen(_words(findings), now)
        patient = _be_patient(findings, now)
        # The updates below have no order.
        lock_in_order(Remote, {f.claimed.remote.pk for f in findings})
        if answering:
            recall(answering, now)
        _hold_others(findings, patient, now)
        unsettled = _store_moved(findings)
        _store_redirects(findings, now)
        rows = [
            (f.claimed.remote, _columns(f, now, patient.get(_account(f), now), f.claimed.remote.pk in unsettled))
            for f in findings
        ]
        mine = finish_many(
            rows,
            expressions={"next_poll_at": NEXT_POLL_AT, "wait_seconds": WAIT_SECONDS},
            extra=EXTRA,
            returning="next_poll_at",
        )
        concerned = [f.claimed.remote.pk for f in findings if f.claimed.remote.pk in mine and _concerns_followers(f)]
        if concerned:
            adoptions = Adoption.objects.filter(remote__in=concerned)
            adoptions.update(wanted=F("wanted") + 1, **Adoption.due_in(now, 0))
            ring_on_commit("control")
        for finding in findings:
            if finding.claimed.remote.pk in mine:
                _record_health(finding, now)
        counted = Tally(("polls", f"result={_result(f)}") for f in findings)
        counted["fenced_writes", "stage=poll"] = len(findings) - len(mine)
        Counter.add(counted)
        hit("poll.commit")
    # In Fleet's words, so that anybody can see from the log alone who is being followed.
    log_each(__name__, "Reconciling GitRepo status", [_line(finding, mine) for finding in findings])
    return len(mine)


def _words(findings: Sequence[Finding]) -> dict[int, list[Word]]:
    """What the polls say of their hosts. A remote without followers was not asked."""
    words: dict[int, list[Word]] = {}
    for finding in findings:
        if finding.claimed.follows:
            error = finding.result.error
            words.setdefault(finding.claimed.remote.host_id, []).append(heard(error.cause if error else None))
    return words


def _result(finding: Finding) -> str:
    return finding.result.error.cause if finding.result.error else "ok"


def _record_health(finding: Finding, now: datetime) -> None:
    """An event for each failed poll (the same one raises a count), and one for the recovery."""
    remote, error = finding.claimed.remote, finding.result.error
    if error is not None:
        record_event(remote, "PollFailed", error.message, now, warning=True)
    elif remote.consecutive_failures:
        record_event(remote, "PollRecovered", f"answers again after {remote.consecutive_failures} failed polls", now)


def _concerns_followers(finding: Finding) -> bool:
    remote = finding.claimed.remote
    return finding.result.error is None and (finding.moved or finding.missing or remote.answered < remote.wakes)


def _account(finding: Finding) -> tuple[int, int]:
    """Whom the host knows: (host, credential or 0)."""
    return finding.claimed.remote.host_id, finding.claimed.remote.credential_id or 0


def _patience_seconds(finding: Finding) -> float:
    """For how long the host wants to be left alone, by this answer; 0 if it says nothing of that."""
    error = finding.result.error
    if error is None:
        return 0.0
    # Hosts send Retry-After with 429, and as well with 503 or 403.
    return error.retry_after_seconds or (PATIENCE_SECONDS if error.cause == "rate-limit" else 0.0)


def _refused(findings: Sequence[Finding]) -> dict[tuple[int, int], float]:
    """How many seconds of patience were asked for, by account."""
    seconds: dict[tuple[int, int], float] = {}
    for finding in findings:
        if asked := _patience_seconds(finding):
            seconds[_account(finding)] = max(asked, seconds.get(_account(finding), 0.0))
    return seconds


def _be_patient(findings: Sequence[Finding], now: datetime) -> dict[tuple[int, int], datetime]:
    """Keep until when hosts want to be left alone; what is known of that for the hosts of all findings."""
    known = patience({finding.claimed.remote.host_id for finding in findings}, now)
    for account, seconds in sorted(_refused(findings).items()):
        known[account] = leave_alone(*account, seconds, now)
    return known


def _hold_others(findings: Sequence[Finding], patient: dict[tuple[int, int], datetime], now: datetime) -> None:
    """Put off the remotes of a host that asked for patience, so that their rows say when: beginning as it ends, and spread.
    Those that are locked or being polled right now are put off by their claim (workers.poll.claim).
    """
    for account in sorted(_refused(findings)):
        host, credential = account
        until = patient[account]
        others = Remote.objects.filter(
            host=host, credential=credential or None, next_poll_at__lt=until, lease_until__isnull=True
        )
        keys = list(others.select_for_update(skip_locked=True, no_key=True).values_list("pk", flat=True))
        start_slowly(keys, now, (until - now).total_seconds())


def _store_moved(findings: Sequence[Finding]) -> set[int]:
    """Store the refs of the answers that moved; the remotes with a head that came back and was not there last time: it
    waits for a second poll's word. Where heads come and go at every poll, nobody waits longer than that.
    """
    moved = {f.claimed.remote.pk: f for f in findings if f.moved}
    unsettled = set()
    stored = Remote.objects.filter(pk__in=moved).order_by("pk")
    for remote in stored.only("refs", "recent", "returning", "asked"):
        finding = moved[remote.pk]
        # What nobody follows any more was not asked for, and its absence says nothing.
        before = only_asked(remote.refs, finding.claimed.asked)
        heads = take_in(before, remote.recent, remote.returning, finding.refs)
        if heads.returning and not remote.returning:
            unsettled.add(remote.pk)
        columns: dict[str, Any] = {
            "refs": heads.refs,
            "recent": heads.recent,
            "returning": heads.returning,
            "asked": finding.claimed.asked,
            # An answer that is not believed yet must look like news the next time.
            "digest": "" if heads.returning else finding.digest,
        }
        if heads.refs != remote.refs or remote.asked != finding.claimed.asked:
            columns["change"] = F("change") + 1
        Remote.objects.filter(pk=remote.pk, lease_token=finding.claimed.remote.lease_token).update(**columns)
    return unsettled


def _store_redirects(findings: Sequence[Finding], now: datetime) -> None:
    """Keep where a host leads those who ask for a repository, so that fetches ask there (git itself is told to follow no
    redirect, because it would take the credential along).
    """
    for finding in findings:
        remote, led_to = finding.claimed.remote, finding.result.redirected_to
        if finding.result.error is None and led_to != remote.redirected_to:
            mine = Remote.objects.filter(pk=remote.pk, lease_token=remote.lease_token).update(redirected_to=led_to)
            if mine and led_to:
                message = (
                    f"the host redirects to {led_to}: change the url, before the old one is given to somebody else"
                )
                record_event(remote, "Redirected", message, now, warning=True)


def _columns(finding: Finding, now: datetime, patient_until: datetime, unsettled: bool) -> dict[str, Any]:
    """The columns that one poll writes back to its Remote, whose host wants to be left alone until `patient_until`."""
    claimed, result = finding.claimed, finding.result
    remote = claimed.remote
    ok = result.error is None
    failures = 0 if ok else remote.consecutive_failures + 1
    # Somebody waits for an answer that this one is not yet.
    asked_again = ok and unsettled and remote.answered < remote.wakes
    wait = next_wait_seconds(
        remote.interval_seconds or settings.GITREPO_POLLING_INTERVAL,
        failures,
        cap_seconds=settings.GITREPO_BACKOFF_CAP,
        jitter=settings.GITREPO_POLLING_JITTER,
    )
    # A clock that was set back meanwhile must not make the claim one of the future, and the wait an honest hour.
    started = min(claimed.claimed_at, now)
    scheduled = started + timedelta(seconds=wait)
    if asked_again:
        scheduled = now + timedelta(seconds=min(CONFIRM_SECONDS, wait))
    scheduled = max(scheduled, patient_until)
    if _patience_seconds(finding) > settings.GITREPO_BACKOFF_CAP:
        # Those that it put off come first, or what it says again would put them off for ever.
        scheduled = max(scheduled, patient_until + timedelta(seconds=settings.GITREPO_POLLING_INTERVAL))
    return {
        "next_poll_at": scheduled,
        "wait_seconds": max(0.0, (scheduled - now).total_seconds()),
        "last_poll_at": started,
        "last_poll_seconds": result.seconds,
        "last_lag_seconds": claimed.lag_seconds,
        "last_success_at": now if ok else remote.last_success_at,
        "consecutive_failures": failures,
        "last_error": "" if result.error is None else cut(result.error.message),
        "health_changed_at": now if bool(failures) != bool(remote.consecutive_failures) else remote.health_changed_at,
        "answered": remote.wakes if ok and not asked_again else remote.answered,
        "wakes_read": remote.wakes,
        "interval_read": remote.interval_seconds,
        "woken_at": patient_until,
        "woken_wait": (patient_until - now).total_seconds(),
    }


def _line(finding: Finding, schedules: dict[int, datetime | None]) -> dict[str, Any]:
    """What the log says of one poll."""
    claimed, result = finding.claimed, finding.result
    first = next(iter(claimed.follows), None)
    head = finding.heads.get(first) if first else None
    scheduled = schedules.get(claimed.remote.pk)
    return {
        "gitrepo": first.name if first else "",
        "gitrepos": sum(follow.count for follow in claimed.follows),
        "repository": claimed.remote.url,
        "commit": head.commit if head else "",
        "result": _result(finding),
        "error": result.error.message if result.error else "",
        "claimed_at": claimed.claimed_at.isoformat(),
        "lag_seconds": round(claimed.lag_seconds, 3),
        "poll_seconds": round(result.seconds, 3),
        "next_poll_at": scheduled.isoformat() if scheduled else "",
        "owned": claimed.remote.pk in schedules,
    }
