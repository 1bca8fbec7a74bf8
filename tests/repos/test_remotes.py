"""Remotes as GitRepos share them: how often they are wanted, and how patiently they are asked."""

from datetime import timedelta

import pytest
from pytest_django import Settings

from repos.leases import database_now
from repos.models import Adoption, GitRepo, Host, HostNotBefore, Remote
from repos.registration import delete, edit
from repos.remotes import not_before, refresh_interval, remote_for, wake, wanted_interval_seconds
from tests.core import A, fresh, later, observed, register

pytestmark = pytest.mark.django_db


def test_a_remote_is_made_with_its_host_and_its_adoption() -> None:
    remote = remote_for(GitRepo(url="https://GIT.example.com:8443/x.git"))

    assert (remote.host.name, remote.host.port) == ("git.example.com", 8443)
    assert Adoption.objects.get().remote == remote
    assert remote_for(GitRepo(url="https://git.example.com:8443/x.git")) == remote
    assert Host.objects.count() == 1


@pytest.mark.parametrize(
    ("intervals", "wanted"),
    [
        pytest.param(["5m", "30s", "1m"], 30.0, id="the shortest"),
        pytest.param(["5m", ""], 15.0, id="the default"),
        pytest.param(["5m"], 300.0, id="the only one"),
    ],
)
def test_a_remote_is_polled_as_its_most_eager_follower_wants(intervals: list[str], wanted: float) -> None:
    made = [register(f"r{number}", polling_interval=text) for number, text in enumerate(intervals)]

    assert fresh(made[0].remote).interval_seconds == wanted


@pytest.mark.parametrize(
    ("columns", "wants"),
    [
        pytest.param({}, True, id="polls"),
        pytest.param({"disable_polling": True}, False, id="does not poll"),
        pytest.param({"disable_polling": True, "requested": 9}, True, id="has a request of its own"),
        pytest.param({"disable_polling": True, "latest_revision": 0}, True, id="never synced"),
        pytest.param({"commit": A, "branch": ""}, False, id="pinned"),
        pytest.param({"commit": A, "requested": 9}, False, id="pinned, with a request"),
        pytest.param({"deleted_at": "now"}, False, id="deleted"),
        pytest.param({"paused": True}, True, id="paused: goes on observing"),
    ],
)
def test_who_wants_a_remote_polled(columns: dict[str, object], wants: bool) -> None:
    gitrepo = register()
    if "latest_revision" not in columns:
        observed(gitrepo, A)
    GitRepo.objects.update(handled=1, requested=1)
    GitRepo.objects.update(**{**columns, **({"deleted_at": database_now()} if "deleted_at" in columns else {})})

    assert (wanted_interval_seconds(gitrepo.remote) is not None) == wants


def test_waking_makes_it_due_and_is_counted() -> None:
    gitrepo = register()
    Remote.objects.update(**Remote.due_in(database_now(), 500))
    remote = fresh(gitrepo.remote)

    wake(remote, database_now())

    stored = fresh(remote)
    assert stored.wakes == remote.wakes == 2
    assert stored.next_poll_at <= database_now()


def test_a_host_that_wants_patience_is_not_woken_before() -> None:
    remote = register().remote
    until = later(40)
    HostNotBefore.objects.create(host=remote.host, credential_key=0, until=until)
    HostNotBefore.objects.create(host=remote.host, credential_key=77, until=later(400))

    wake(remote, database_now())

    assert fresh(remote).next_poll_at == until
    assert 39 <= fresh(remote).wait_seconds <= 40


@pytest.mark.parametrize(
    ("seconds", "waits"),
    [
        pytest.param(-5, False, id="over"),
        pytest.param(30, True, id="to come"),
        pytest.param(86400, False, id="written by a clock that was ahead"),
    ],
)
def test_until_when_a_host_is_left_alone(seconds: float, waits: bool) -> None:
    host = Host.objects.create(name="x", port=443)
    HostNotBefore.objects.create(host=host, credential_key=0, until=later(seconds))
    now = database_now()

    assert (not_before(host.pk, None, now) > now) == waits
    assert not_before(host.pk, 5, now) == now


def test_a_remote_that_nobody_wants_is_taken_off_the_schedule() -> None:
    gitrepo = register(disable_polling=True)
    observed(gitrepo, A)

    assert fresh(gitrepo.remote).next_poll_at is None
    assert fresh(gitrepo.remote).wait_seconds == 0


def test_a_wake_that_is_not_answered_keeps_its_instant() -> None:
    gitrepo = register(disable_polling=True)
    observed(gitrepo, A)
    remote = fresh(gitrepo.remote)
    wake(remote, database_now())

    refresh_interval(fresh(remote))

    assert fresh(remote).next_poll_at is not None


def test_a_schedule_that_was_lost_comes_back_with_the_next_look() -> None:
    gitrepo = register()
    Remote.objects.update(**Remote.not_due())

    refresh_interval(fresh(gitrepo.remote))

    assert fresh(gitrepo.remote).next_poll_at <= database_now()


def test_coming_sooner_keeps_the_remotes_own_backoff(settings: Settings) -> None:
    settings.GITREPO_POLLING_JITTER = 0.0
    gitrepo = register(polling_interval="5m")
    Remote.objects.update(consecutive_failures=3, **Remote.due_in(database_now(), 300))
    GitRepo.objects.update(interval_seconds=15)

    refresh_interval(fresh(gitrepo.remote))

    assert fresh(gitrepo.remote).wait_seconds == pytest.approx(120, abs=1)


def test_a_longer_interval_moves_nothing() -> None:
    quick, slow = register("quick"), register("slow", polling_interval="10m")
    due = database_now() + timedelta(seconds=12)
    Remote.objects.update(next_poll_at=due, wait_seconds=12)

    delete(quick.pk)

    assert fresh(slow.remote).interval_seconds == 600
    assert fresh(slow.remote).next_poll_at == due


def test_switching_polling_on_polls_at_once() -> None:
    gitrepo = register(disable_polling=True)
    observed(gitrepo, A)

    edit(gitrepo.pk, {"disable_polling": False})

    assert fresh(gitrepo.remote).next_poll_at <= database_now()
    assert fresh(gitrepo.remote).interval_seconds == 15
