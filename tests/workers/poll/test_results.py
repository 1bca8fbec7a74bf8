"""What a poll found is written for its holder alone, by schedule or at once, and one bad value holds back nobody."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from repos import registration
from repos.leases import database_now
from repos.models import Adoption, Counter, Event, GitRepo, Remote
from repos.remotes import wake
from tests.core import MAIN, A, B, C, adopt_all, expire, fresh, later, observed, register
from workers.access import access_of, fetch_access_of
from workers.poll.claim import ClaimedRemote, claim_remotes
from workers.poll.engine import PollError, PollResult
from workers.poll.results import store

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def no_jitter(settings: Settings) -> None:
    settings.GITREPO_POLLING_JITTER = 0.0


def claimed() -> ClaimedRemote:
    """The one Remote, due and claimed."""
    Remote.objects.filter(next_poll_at__isnull=False).update(next_poll_at=later(-2))
    [found] = claim_remotes(5)
    return found


def says(claim: ClaimedRemote, refs: dict[str, str] | None = None, *, redirected_to: str = "", **error: Any) -> int:
    result = PollResult(claim.remote.pk, 0.5, refs or {}, PollError(**error) if error else None, redirected_to)
    return store([(claim, result)])


def broken(claim: ClaimedRemote, cause: str = "server", **more: Any) -> int:
    return says(claim, cause=cause, message="the server said 502", **more)


def waits(remote: Any) -> float:
    """Seconds until the next poll."""
    return float((fresh(remote).next_poll_at - database_now()).total_seconds())


@pytest.fixture
def remote() -> Remote:
    return register().remote


# -- a good answer -------------------------------------------------------------------------------------------------


def test_an_answer_is_stored_and_makes_its_adoption_due(remote: Remote) -> None:
    claim = claimed()
    assert says(claim, {MAIN: A}) == 1

    row = fresh(remote)
    assert (row.refs, row.asked, row.change, row.answered) == ({MAIN: A}, [MAIN], 1, 1)
    assert (row.lease_token, row.consecutive_failures, row.last_error) == (None, 0, "")
    assert row.last_success_at is not None and row.last_poll_at == claim.claimed_at
    assert row.last_lag_seconds >= 2
    assert Adoption.objects.get().due_at is not None
    assert Counter.objects.get(name="polls").label == "result=ok"


def test_the_next_poll_is_an_interval_after_the_start_of_this_one(remote: Remote) -> None:
    claim = claimed()
    says(claim, {MAIN: A})

    assert fresh(remote).next_poll_at == claim.claimed_at + timedelta(seconds=15)


def test_the_jitter_only_adds(remote: Remote, settings: Settings) -> None:
    settings.GITREPO_POLLING_JITTER = 0.10
    for _ in range(20):
        claim = claimed()
        says(claim, {MAIN: A})
        gap = (fresh(remote).next_poll_at - claim.claimed_at).total_seconds()
        assert 15 <= gap <= 16.5


def test_an_answer_that_changes_nothing_costs_no_adoption(remote: Remote) -> None:
    says(claimed(), {MAIN: A})
    adopt_all()

    says(claimed(), {MAIN: A})

    assert Adoption.objects.get().due_at is None
    assert fresh(remote).change == 1


def test_a_poll_slower_than_its_interval_is_due_at_once_and_only_once(remote: Remote) -> None:
    claim = claimed()
    late = ClaimedRemote(claim.remote, claim.claimed_at - timedelta(seconds=100), claim.follows)
    says(late, {MAIN: A})

    assert waits(remote) <= 0
    assert len(claim_remotes(5)) == 1
    assert claim_remotes(5) == []


def test_a_disabled_one_is_taken_off_the_schedule() -> None:
    gitrepo = register(disable_polling=True)
    says(claimed(), {MAIN: A})
    adopt_all()

    assert fresh(gitrepo.remote).next_poll_at is None


def test_what_was_not_asked_for_is_not_stored(remote: Remote) -> None:
    says(claimed(), {MAIN: A, "refs/heads/main-2": B, "refs/pull/1/head": C})

    assert fresh(remote).refs == {MAIN: A}


def test_a_remote_without_followers_is_asked_for_nothing() -> None:
    gitrepo = register()
    Remote.objects.update(next_poll_at=later(-1))
    GitRepo.objects.filter(pk=gitrepo.pk).update(commit=A, branch="")

    assert claimed().asked == []


# -- wakes ---------------------------------------------------------------------------------------------------------


def test_a_wake_during_the_poll_is_not_lost(remote: Remote) -> None:
    claim = claimed()
    wake(fresh(remote), database_now())

    says(claim, {MAIN: A})

    assert waits(remote) <= 0
    assert (fresh(remote).answered, fresh(remote).wakes) == (1, 2)


def test_a_wake_during_a_poll_that_fails_is_not_lost_either(remote: Remote) -> None:
    claim = claimed()
    wake(fresh(remote), database_now())

    broken(claim)

    assert waits(remote) <= 0
    assert fresh(remote).answered == 0


def test_a_wake_of_one_that_nobody_polls_by_schedule(remote: Remote) -> None:
    gitrepo = GitRepo.objects.get()
    observed(gitrepo, A)
    registration.edit(gitrepo.pk, {"disable_polling": True})
    says(claimed(), {MAIN: A})
    assert fresh(remote).next_poll_at is None
    registration.ask(gitrepo.pk)
    claim = claimed()
    registration.ask(gitrepo.pk)

    says(claim, {MAIN: B})

    assert waits(remote) <= 0


def test_an_interval_that_became_shorter_during_the_poll_counts(remote: Remote) -> None:
    Remote.objects.update(interval_seconds=300)
    claim = claimed()
    Remote.objects.update(interval_seconds=15)

    says(claim, {MAIN: A})

    assert waits(remote) <= 0


# -- errors --------------------------------------------------------------------------------------------------------


def test_errors_back_off_to_the_cap_and_one_good_poll_ends_them(remote: Remote) -> None:
    gaps = []
    for _ in range(7):
        claim = claimed()
        broken(claim)
        gaps.append((fresh(remote).next_poll_at - claim.claimed_at).total_seconds())
    assert gaps == [30, 60, 120, 240, 300, 300, 300]
    assert (fresh(remote).consecutive_failures, fresh(remote).last_error) == (7, "the server said 502")
    assert Event.objects.get(reason="PollFailed").count == 7

    claim = claimed()
    says(claim, {MAIN: A})

    row = fresh(remote)
    assert (row.consecutive_failures, row.last_error) == (0, "")
    assert row.next_poll_at == claim.claimed_at + timedelta(seconds=15)
    assert row.health_changed_at > row.created_at


def test_an_error_keeps_the_last_success_and_its_refs(remote: Remote) -> None:
    says(claimed(), {MAIN: A})
    before = fresh(remote)

    broken(claimed())

    row = fresh(remote)
    assert (row.last_success_at, row.refs, row.change) == (before.last_success_at, {MAIN: A}, 1)
    assert row.answered == 1


def test_an_error_answers_no_request(remote: Remote) -> None:
    broken(claimed())

    assert fresh(remote).answered == 0
    assert Adoption.objects.get().due_at is None


def test_a_message_that_no_database_takes_is_made_one_that_it_does(remote: Remote) -> None:
    says(claimed(), cause="server", message="a\0b \ud800 " + "x" * 5000)

    assert len(fresh(remote).last_error) == 1024
    assert fresh(remote).last_error.startswith("a\ufffdb")


def same_host(name: str, **spec: Any) -> Remote:
    return register(name, url=f"https://git.example.com/{name}.git", **spec).remote


# -- the fence, and one bad value ----------------------------------------------------------------------------------


def test_a_late_answer_is_dropped(remote: Remote) -> None:
    late = claimed()
    expire(remote)
    [current] = claim_remotes(5)

    assert says(late, {MAIN: A}) == 0
    # Whoever reads the metrics sees that somebody came too late.
    assert Counter.objects.get(name="fenced_writes", label="stage=poll").value == 1

    row = fresh(remote)
    assert (row.refs, row.change, row.lease_token) == ({}, 0, current.remote.lease_token)
    assert Adoption.objects.get().due_at is None
    assert says(current, {MAIN: B}) == 1


def test_one_bad_row_does_not_hold_back_the_others() -> None:
    """Its write fails, and its next poll is scheduled all the same."""
    remotes = [same_host(f"r{number}") for number in range(5)]
    Remote.objects.update(next_poll_at=later(-1))
    claims = claim_remotes(10)
    results = [(claim, PollResult(claim.remote.pk, 0.1, {MAIN: A})) for claim in claims]
    bad = claims[2].remote
    # No column holds it, on either database.
    results[2] = (claims[2], PollResult(bad.pk, "soon", {MAIN: A}))  # type: ignore[arg-type]

    assert store(results) == 4

    for remote in remotes:
        row = fresh(remote)
        assert row.lease_token is None
        assert row.next_poll_at > database_now()
        assert (row.refs == {}) == (row.pk == bad.pk)
        assert (row.consecutive_failures > 0) == (row.pk == bad.pk)


def test_a_result_that_nobody_understands_is_one_bad_row_too() -> None:
    good, bad = same_host("good"), same_host("bad", branch="", semver=">=1.0.0")
    GitRepo.objects.filter(name="bad").update(semver="no range")
    Remote.objects.update(next_poll_at=later(-1))
    refs = {MAIN: A, "refs/tags/v1.0.0": B}

    store([(claim, PollResult(claim.remote.pk, 0.1, refs)) for claim in claim_remotes(5)])

    assert fresh(good).refs == {MAIN: A}
    assert fresh(bad).lease_token is None and "log" in fresh(bad).last_error
    assert 25 < waits(bad) <= 30


def test_a_bad_row_that_was_woken_is_due_at_once(remote: Remote) -> None:
    claim = claimed()
    wake(fresh(remote), database_now())

    store([(claim, PollResult(remote.pk, "soon", {MAIN: A}))])  # type: ignore[arg-type]

    assert waits(remote) <= 0


def test_the_number_of_queries_does_not_grow_with_the_batch() -> None:
    def queries(count: int, host: str) -> int:
        for number in range(count):
            register(f"{host}{number}", url=f"https://{host}.example.com/{number}.git")
        Remote.objects.filter(host__name__startswith=host).update(next_poll_at=later(-1))
        claims = [c for c in claim_remotes(50) if c.remote.url.startswith(f"https://{host}.")]
        store([(claim, PollResult(claim.remote.pk, 0.1, {MAIN: A})) for claim in claims])  # moved: one write each
        Remote.objects.update(next_poll_at=later(-1))
        claims = [c for c in claim_remotes(50) if c.remote.url.startswith(f"https://{host}.")]
        Remote.objects.exclude(host__name__startswith=host).update(lease_until=None)
        with CaptureQueriesContext(connection) as captured:
            assert store([(claim, PollResult(claim.remote.pk, 0.1, {MAIN: A})) for claim in claims]) == count
        return len(captured)

    assert queries(2, "few") == queries(10, "many")


def test_a_clock_that_is_set_back_during_a_poll_puts_nothing_off(remote: Remote) -> None:
    says(replace(claimed(), claimed_at=later(3600)), {MAIN: A})

    row = fresh(remote)
    assert waits(remote) <= 15 and row.wait_seconds <= 15
    assert row.last_poll_at <= database_now()


# -- a repository that moved ---------------------------------------------------------------------------------------


def test_where_a_host_leads_is_kept_for_the_fetch_and_said_once(remote: Remote) -> None:
    new = "https://git.example.com/team/new.git"
    for _ in range(2):
        says(claimed(), {MAIN: A}, redirected_to=new)
        Remote.objects.update(next_poll_at=later(-1))

    assert fetch_access_of(fresh(remote)).url == new
    assert access_of(fresh(remote)).url == remote.url
    assert [new in event.message for event in Event.objects.filter(reason="Redirected")] == [True]

    says(claimed(), {MAIN: A})

    assert fetch_access_of(fresh(remote)).url == remote.url


def test_an_error_says_nothing_of_where_it_leads(remote: Remote) -> None:
    says(claimed(), {MAIN: A}, redirected_to="https://git.example.com/team/new.git")
    Remote.objects.update(next_poll_at=later(-1))

    broken(claimed())

    assert fresh(remote).redirected_to == "https://git.example.com/team/new.git"
