"""What a remote answered becomes revisions: for whom, when, and in which pages."""

from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from repos import adoption as adopting
from repos.adoption import Adopted, adopt, adopt_page
from repos.leases import claim, database_now
from repos.models import Adoption, Event, GitRepo, Remote, Revision, SyncJob
from repos.registration import ask, edit, force
from tests.core import MAIN, A, B, adopt_all, answered, fresh, is_now_due, observed, open_job, register

pytestmark = pytest.mark.django_db


def test_all_followers_of_a_head_get_their_revision() -> None:
    followers = [register(f"r{number}") for number in range(3)]

    observed(followers[0], A)

    for gitrepo in followers:
        row = fresh(gitrepo)
        assert (row.observed_commit, row.latest_revision) == (A, 1)
        assert (row.adopted_remote, row.adopted_change) == (row.remote_id, row.remote.change)
        assert is_now_due(open_job(gitrepo).due_at)


def test_what_was_taken_in_is_not_taken_in_again() -> None:
    gitrepo = register()
    observed(gitrepo, A)
    SyncJob.objects.all().delete()
    Revision.objects.all().delete()  # would be made again

    Adoption.objects.update(**Adoption.due_in(database_now(), 0))
    adopt_all()

    assert not Revision.objects.exists()


@pytest.mark.parametrize(
    ("spec", "refs", "commit"),
    [
        pytest.param({"branch": "main"}, {MAIN: A, "refs/heads/dev": B}, A, id="branch"),
        pytest.param({"branch": "", "tag": "v1"}, {"refs/tags/v1": A}, A, id="tag"),
        pytest.param(
            {"branch": "", "semver": ">=1.0.0"}, {"refs/tags/v1.2.0": A, "refs/tags/v1.10.0": B}, B, id="semver"
        ),
        pytest.param({"branch": ""}, {"HEAD": B}, B, id="HEAD"),
    ],
)
def test_each_gets_what_it_follows(spec: dict[str, Any], refs: dict[str, str], commit: str) -> None:
    gitrepo = register(**spec)

    answered(gitrepo.remote, refs)
    adopt_all()

    assert fresh(gitrepo).observed_commit == commit


def test_polling_switched_off_keeps_pushes_out_also_on_a_shared_remote() -> None:
    polls, sleeps = register("polls"), register("sleeps", disable_polling=True)
    observed(polls, A)
    assert fresh(sleeps).observed_commit == A

    observed(polls, B)
    assert (fresh(polls).observed_commit, fresh(sleeps).observed_commit) == (B, A)

    force(sleeps.pk)
    observed(polls, B)
    assert fresh(sleeps).observed_commit == B


def test_a_paused_one_goes_on_observing() -> None:
    gitrepo = register()
    observed(gitrepo, A)
    edit(gitrepo.pk, {"paused": True})

    observed(gitrepo, B)

    assert (fresh(gitrepo).observed_commit, open_job(gitrepo).revision.commit) == (B, B)
    assert open_job(gitrepo).due_at is None


def test_a_missing_ref_belongs_to_the_gitrepo_and_backs_off() -> None:
    bad, good = register("bad", branch="gone"), register("good")
    for _ in range(3):
        answered(good.remote, {MAIN: A})
        adopt_all()

    assert (fresh(bad).ref_failures, fresh(good).ref_failures) == (3, 0)
    assert "gone" in fresh(bad).ref_error and fresh(good).ref_error == ""
    assert fresh(bad.remote).interval_seconds == 15  # the good one's
    assert fresh(bad).requested > fresh(bad).handled
    assert Event.objects.get(reason="RefNotFound").count == 3
    edit(good.pk, {"polling_interval": "10m"})
    assert fresh(bad.remote).interval_seconds == 15 * 2**3


def test_a_missing_ref_that_comes_back_is_polled_as_often_as_before() -> None:
    gitrepo = register()
    for _ in range(9):
        answered(gitrepo.remote, {})
        adopt_all()
    assert fresh(gitrepo.remote).interval_seconds == 300
    Remote.objects.update(**Remote.due_in(database_now(), 300))  # as the poll that found it scheduled the next one

    answered(gitrepo.remote, {MAIN: A})
    adopt_all()

    remote = fresh(gitrepo.remote)
    assert remote.interval_seconds == 15
    assert 15 <= remote.wait_seconds <= 16.5
    assert (remote.next_poll_at - database_now()).total_seconds() <= 16.5


def test_a_ref_that_was_not_asked_for_is_not_missing() -> None:
    """It moved here without a request, while a poll was running."""
    gitrepo = register()
    observed(gitrepo, A)
    Remote.objects.update(asked=["refs/heads/other"], refs={}, change=99)
    Adoption.objects.update(**Adoption.due_in(database_now(), 0))

    adopt_all()

    assert (fresh(gitrepo).ref_failures, fresh(gitrepo).observed_commit) == (0, A)


def test_pages_go_over_all_and_a_crash_between_them_repeats_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adopting, "PAGE", 2)
    followers = [register(f"r{number}") for number in range(5)]
    answered(followers[0].remote, {MAIN: A})

    first = Adopted()
    assert adopt_page(followers[0].remote_id, first)
    assert Revision.objects.count() == 2
    [adoption] = claim(Adoption, limit=1, seconds=30)  # another worker begins at the beginning
    assert adopt(adoption) == 0

    assert Revision.objects.count() == SyncJob.objects.count() == 5


def test_one_follower_that_cannot_take_it_in_does_not_hold_up_the_others() -> None:
    followers = [register(f"r{number}", branch="", semver=">=1.0.0") for number in range(3)]
    GitRepo.objects.filter(pk=followers[1].pk).update(semver="no range at all")
    answered(followers[0].remote, {"refs/tags/v1.0.0": A})

    assert adopt_all() == 1

    assert [fresh(gitrepo).observed_commit for gitrepo in followers] == [A, "", A]
    assert fresh(followers[1]).requested > fresh(followers[1]).handled


def test_the_adoption_of_a_remote_that_was_pruned_is_nothing() -> None:
    assert not adopt_page(12345, Adopted())


def test_a_requester_that_nothing_changed_for_costs_no_job() -> None:
    gitrepo = register()
    observed(gitrepo, A)
    assert ask(gitrepo.pk)
    observed(gitrepo, A)

    assert fresh(gitrepo).requested == fresh(gitrepo).handled
    assert Revision.objects.count() == 1


def test_the_number_of_queries_grows_only_with_the_revisions_made() -> None:
    def queries(count: int, name: str) -> int:
        followers = [register(f"{name}{number}", insecure_skip_tls_verify=name == "b") for number in range(count)]
        answered(followers[0].remote, {MAIN: A})
        with CaptureQueriesContext(connection) as captured:
            adopt_page(followers[0].remote_id, Adopted())
        return len(captured)

    few, many = queries(2, "a"), queries(12, "b")
    assert (many - few) / 10 <= 12
