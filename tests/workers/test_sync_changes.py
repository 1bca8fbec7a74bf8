"""The sync stage when the world changes under a job: edits, newer revisions, lost leases, deletions."""

import contextlib
import threading
from collections.abc import Iterator

import pytest
from django.db import connections, transaction

from repos import registration
from repos.leases import Renewer
from repos.models import Delivery, GitRepo, SyncJob
from tests.core import (
    adopt_all,
    answered,
    cluster,
    delivery_of,
    expire,
    fresh,
    is_due,
    later,
    open_job,
)
from tests.git_servers import Repository
from tests.workers.test_sync import Outcome, State, gitrepo, never, newest, polled, source, started, work
from workers import sync
from workers.make import Made, Work, make
from workers.sync import begin, conclude, run_job, run_session

__all__ = ["gitrepo", "source"]


pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folders")]


@contextlib.contextmanager
def in_the_middle() -> Iterator[tuple[Work, Made]]:
    """A job that has fetched and bundled, and has not written it yet; then it does."""
    job = started()
    with Renewer(60) as renewer:
        work = begin(job)
        made = make(work, renewer)
    yield work, made
    conclude(work, made)


# -- the world changes under it ------------------------------------------------------------------------------------


def test_a_newer_commit_while_it_runs_lets_it_end_and_follows(gitrepo: GitRepo, source: Repository) -> None:
    polled(gitrepo, source)
    with in_the_middle() as (first, _):
        source.commit({"deploy/app.yaml": "two"})
        polled(gitrepo, source)
        assert work() == 0  # one at a time

    assert fresh(first.revision).outcome == Outcome.SYNCED
    assert fresh(gitrepo).wanted_revision == first.revision
    assert work() == 1
    assert fresh(gitrepo).wanted_revision.commit == source.head()
    assert delivery_of(gitrepo).sequence == 2


@pytest.mark.parametrize("changes", [{"paths": ["README.md"]}, {"branch": "dev"}], ids=["paths", "branch"])
def test_an_edit_of_the_source_during_the_fetch_drops_the_result(
    gitrepo: GitRepo, source: Repository, changes: dict[str, object]
) -> None:
    source.commit({"deploy/app.yaml": "dev"}, branch="dev")
    polled(gitrepo, source)
    with in_the_middle() as (work_done, _):
        registration.edit(gitrepo.pk, changes)

    assert fresh(work_done.job).state == State.SUPERSEDED
    assert fresh(work_done.revision).outcome == Outcome.SUPERSEDED
    assert not Delivery.objects.exists() and fresh(gitrepo).wanted_revision is None
    branch = fresh(gitrepo).branch
    answered(gitrepo.remote, {f"refs/heads/{branch}": source.head(branch)})
    adopt_all()
    work()
    assert newest(gitrepo).outcome == Outcome.SYNCED
    assert newest(gitrepo).generation == 2


def test_a_job_for_an_older_spec_is_not_begun(gitrepo: GitRepo, source: Repository) -> None:
    polled(gitrepo, source)
    registration.edit(gitrepo.pk, {"paths": ["README.md"]})

    with pytest.raises(sync.Dropped):
        begin(started())

    assert newest(gitrepo).outcome == Outcome.SUPERSEDED


def test_another_remote_during_the_fetch_runs_it_again(gitrepo: GitRepo, source: Repository) -> None:
    polled(gitrepo, source)
    with in_the_middle() as (done, _):
        registration.edit(gitrepo.pk, {"insecure_skip_tls_verify": True})

    row = open_job(gitrepo)
    assert (row.pk, row.state, row.failures) == (done.job.pk, State.PENDING, 0)
    assert is_due(row)
    assert not Delivery.objects.exists()
    assert work() == 1
    assert newest(gitrepo).outcome == Outcome.SYNCED


def test_a_pause_during_the_fetch_lets_it_end_and_holds_its_deliveries(gitrepo: GitRepo, source: Repository) -> None:
    polled(gitrepo, source)
    with in_the_middle():
        registration.edit(gitrepo.pk, {"paused": True})

    assert newest(gitrepo).outcome == Outcome.SYNCED
    assert delivery_of(gitrepo).due_at is None
    registration.edit(gitrepo.pk, {"paused": False})
    assert delivery_of(gitrepo).due_at is not None


def test_a_pause_before_it_begins_puts_it_back(gitrepo: GitRepo, source: Repository) -> None:
    polled(gitrepo, source)
    job = started()
    registration.edit(gitrepo.pk, {"paused": True})

    with pytest.raises(sync.Dropped):
        begin(job)

    assert (open_job(gitrepo).state, open_job(gitrepo).due_at) == (State.PENDING, None)
    registration.edit(gitrepo.pk, {"paused": False})
    assert work() == 1


def test_a_resume_right_after_it_read_the_pause_is_not_lost(gitrepo: GitRepo, source: Repository) -> None:
    """The job read "paused"; the resume found no job that waits; then the job went back."""
    polled(gitrepo, source)
    job = started()
    registration.edit(gitrepo.pk, {"paused": True})
    registration.edit(gitrepo.pk, {"paused": False})

    sync.give_back(job, 0.0)

    assert open_job(gitrepo).due_at is not None


def test_a_failure_while_paused_waits_for_the_resume(gitrepo: GitRepo, source: Repository) -> None:
    polled(gitrepo, source)
    job = started()
    registration.edit(gitrepo.pk, {"paused": True})

    sync.fail(job, "network", "no route")

    assert (open_job(gitrepo).state, open_job(gitrepo).due_at) == (State.FAILED, None)
    registration.edit(gitrepo.pk, {"paused": False})
    assert is_due(open_job(gitrepo))


def test_targets_that_changed_during_the_fetch_are_those_that_count(gitrepo: GitRepo, source: Repository) -> None:
    cluster("prod-us")
    polled(gitrepo, source)
    with in_the_middle():
        registration.edit(gitrepo.pk, {"targets": [{"cluster": "prod-us"}]})

    assert delivery_of(gitrepo).cluster.name == "prod-us"


@pytest.mark.parametrize("when", ["claimed", "fetched"])
def test_a_gitrepo_that_is_deleted_meanwhile(gitrepo: GitRepo, source: Repository, when: str) -> None:
    polled(gitrepo, source)
    if when == "claimed":
        job = started()
        registration.delete(gitrepo.pk)
        with Renewer(60) as renewer:
            run_job(job, renewer)
    else:
        with in_the_middle():
            registration.delete(gitrepo.pk)

    assert not GitRepo.objects.exists() and not Delivery.objects.exists()
    assert work() == 0


def test_a_tombstone_gets_no_content(gitrepo: GitRepo, source: Repository) -> None:
    polled(gitrepo, source)
    work()
    source.commit({"deploy/app.yaml": "two"})
    polled(gitrepo, source)
    with in_the_middle() as (done, _):
        registration.delete(gitrepo.pk)

    assert fresh(done.job).state == State.SUPERSEDED
    assert delivery_of(gitrepo).removal


def test_a_worker_that_lost_its_lease_writes_nothing(gitrepo: GitRepo, source: Repository) -> None:
    polled(gitrepo, source)
    with in_the_middle() as (frozen, _):
        expire(frozen.job)
        again = started()
        assert again.pk == frozen.job.pk and again.crashes == 1

    assert fresh(again).lease_token == again.lease_token
    assert fresh(frozen.revision).outcome == Outcome.OPEN
    assert not Delivery.objects.exists() and fresh(gitrepo).wanted_revision is None


def test_an_older_revision_that_runs_once_more_takes_nothing_back(gitrepo: GitRepo, source: Repository) -> None:
    polled(gitrepo, source)
    work()
    older = newest(gitrepo)
    source.commit({"deploy/app.yaml": "two"})
    polled(gitrepo, source)
    work()
    SyncJob.objects.filter(revision=older).update(state=State.PENDING, **SyncJob.due_in(later(-1), 0))

    work()

    assert fresh(gitrepo).wanted_revision == newest(gitrepo) != older
    assert SyncJob.objects.get(revision=older).state == State.SUPERSEDED


def test_a_session_stops_when_it_is_told_to(gitrepo: GitRepo, source: Repository) -> None:
    polled(gitrepo, source)

    assert run_session(budget_seconds=20, stopping=lambda: True) == 0
    assert run_session(budget_seconds=0, stopping=never) == 0


@pytest.mark.skipif("not __import__('tests.core').core.is_postgresql()", reason="PostgreSQL's locks")
@pytest.mark.django_db(transaction=True)
def test_a_job_is_claimed_though_somebody_has_its_gitrepo_locked(gitrepo: GitRepo, source: Repository) -> None:
    """While a rollout to many clusters writes its ends one after the other, that is nearly always so."""
    polled(gitrepo, source)
    locked, over = threading.Event(), threading.Event()

    def holds() -> None:
        with transaction.atomic():
            GitRepo.objects.select_for_update().get(pk=gitrepo.pk)
            locked.set()
            over.wait(20)
        connections.close_all()

    thread = threading.Thread(target=holds)
    thread.start()
    assert locked.wait(10)
    try:
        assert sync.claim_job(suspects=False) is not None
    finally:
        over.set()
        thread.join()
