"""A host that wants to be left alone (429, Retry-After) is left alone by fetches as well, and says it to all through any."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from pytest_django import Settings

from repos import registration
from repos.leases import database_now
from repos.models import Credential, GitRepo, HostNotBefore, Remote, SyncJob
from tests.core import MAIN, adopt_all, answered, fresh, later, register
from tests.git_servers import Behaviour, GitServer, Repository, git_server
from workers import sync
from workers.git_errors import TooManyRequests
from workers.poll.claim import claim_remotes
from workers.sync import run_session

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folders")]
State = SyncJob.State


@pytest.fixture(autouse=True)
def over_http(settings: Settings) -> None:
    settings.GIT_ALLOW_HTTP = True
    settings.GITREPO_POLLING_INTERVAL = 15.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    (tmp_path / "served").mkdir()
    with git_server(tmp_path / "served") as server:
        yield server


def polled(server: GitServer, name: str, credential: Credential | None = None) -> GitRepo:
    """A GitRepo of that server whose first commit waits for its sync job."""
    source = Repository.make(server.root / f"{name}.git")
    source.commit({"app.yaml": name})
    gitrepo = register(name, url=server.url(source), credential=credential)
    answered(gitrepo.remote, {MAIN: source.head()})
    adopt_all()
    return gitrepo


def job(gitrepo: GitRepo) -> SyncJob:
    return SyncJob.objects.get(gitrepo=gitrepo)


def work() -> None:
    run_session(budget_seconds=20, stopping=lambda: False)


def waits(row: SyncJob) -> float:
    assert row.due_at is not None
    return (row.due_at - database_now()).total_seconds()


def test_a_429_to_a_fetch_is_one_for_everybody(server: GitServer) -> None:
    first = polled(server, "first")
    server.behaviour = Behaviour(status=429, of="fetch")
    work()
    assert (job(first).state, HostNotBefore.objects.get().host) == (State.FAILED, first.remote.host)
    assert "fewer requests" in job(first).last_error

    second = polled(server, "second")
    SyncJob.objects.update(due_at=later(-1))
    server.log.clear()
    work()

    assert server.log == []
    assert (job(second).state, job(second).failures) == (State.PENDING, 0)
    assert 50 < waits(job(second)) < 60 + 15
    assert 50 < waits(job(first)) < 60 + 15
    Remote.objects.update(next_poll_at=later(-1))
    assert claim_remotes(5) == []


def test_what_a_poll_was_told_counts_for_jobs_of_that_credential_alone(server: GitServer) -> None:
    token = Credential.objects.create(name="token", kind="token", secret="x")
    other, shop = polled(server, "other", token), polled(server, "shop")
    HostNotBefore.objects.create(host=shop.remote.host, until=later(200))
    work()

    assert (job(other).state, job(shop).state) == (State.SUCCEEDED, State.PENDING)
    assert 190 < waits(job(shop)) < 200 + 15
    assert not fresh(shop).wanted_revision

    HostNotBefore.objects.update(until=later(-1))
    SyncJob.objects.filter(due_at__isnull=False).update(due_at=later(-1))
    work()
    assert job(shop).state == State.SUCCEEDED


def test_who_has_to_ask_nobody_has_to_wait_for_nobody(server: GitServer) -> None:
    """The commit is here: for an edit, or for another GitRepo of the same remote."""
    shop = polled(server, "shop")
    work()
    HostNotBefore.objects.create(host=shop.remote.host, until=later(200))
    other = register("other", url=shop.url, paths=["app.yaml"])
    answered(fresh(other).remote, {MAIN: fresh(shop).observed_commit})
    adopt_all()
    server.log.clear()
    work()

    assert job(other).state == State.SUCCEEDED and server.log == []


def test_the_host_that_was_asked_is_the_one_that_is_left_alone(
    server: GitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the GitRepo's url is meanwhile."""
    shop = polled(server, "shop")
    asked = shop.remote.host

    def edited(*_: object) -> None:
        registration.edit(shop.pk, {"url": "https://git.example.com/elsewhere.git"})
        raise TooManyRequests

    monkeypatch.setattr(sync, "make", edited)
    work()

    assert HostNotBefore.objects.get().host == asked


@pytest.mark.django_db(transaction=True)
def test_a_host_that_is_gone_meanwhile_is_nobody_to_be_left_alone(
    server: GitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = polled(server, "shop")

    def purged(*_: object) -> None:
        remote = shop.remote
        GitRepo.objects.all().delete()
        remote.delete()
        remote.host.delete()
        raise TooManyRequests

    monkeypatch.setattr(sync, "make", purged)
    work()

    assert not HostNotBefore.objects.exists()


def test_an_instant_that_no_clock_should_have_written_holds_back_nobody(server: GitServer) -> None:
    shop = polled(server, "shop")
    HostNotBefore.objects.create(host=shop.remote.host, until=database_now() + timedelta(days=300))
    work()

    assert job(shop).state == State.SUCCEEDED
