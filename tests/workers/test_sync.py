"""The sync stage with real repositories: what a job makes, and what becomes of it when the world changes under it."""

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from django.conf import settings as django_settings
from pytest_django import Settings

from repos import registration
from repos.leases import Renewer, claim, database_now
from repos.models import Bundle, Credential, DeliveryRecord, Event, GitRepo, Mirror, Remote, Revision, SyncJob
from repos.status import ERR_SYNC, Facts, display_state
from tests.core import (
    MAIN,
    A,
    adopt_all,
    answered,
    cluster,
    delivery_of,
    expire,
    fresh,
    is_due,
    later,
    open_job,
    register,
)
from tests.git_servers import Repository
from workers import bundles, make, sync
from workers.deliver.outcome import make_again
from workers.fetch import mirror
from workers.sync import run_job, run_session

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folders")]
State, Outcome = SyncJob.State, Revision.Outcome
never: Callable[[], bool] = lambda: False  # noqa: E731


@pytest.fixture
def source(tmp_path: Path) -> Repository:
    source = Repository.make(tmp_path / "served" / "shop.git")
    source.commit({"deploy/app.yaml": "one", "README.md": "one"})
    return source


@pytest.fixture
def gitrepo(source: Repository) -> GitRepo:
    cluster()
    return register(url=source.file_url, paths=["deploy"], targets=[{"cluster": "prod-eu"}])


def polled(gitrepo: GitRepo, source: Repository) -> None:
    """What the remote has now is seen and adopted."""
    answered(fresh(gitrepo).remote, {MAIN: source.head()})
    adopt_all()


def died(times: int) -> None:
    """The due job was claimed so many times by workers that ended without a word."""
    for _ in range(times):
        expire(started())


def open_or_running(gitrepo: GitRepo) -> SyncJob:
    return SyncJob.objects.get(gitrepo=gitrepo, state__in=(*SyncJob.WAITING, State.RUNNING))


def work() -> int:
    """One session over everything that is due, retries included."""
    SyncJob.objects.filter(due_at__isnull=False).update(**SyncJob.due_in(later(-1), 0))
    return run_session(budget_seconds=20, stopping=never)


def started() -> SyncJob:
    """The one job that is due, claimed as a session claims it."""
    now = database_now()
    extra = {"state": State.RUNNING, "started_at": now}
    [job] = claim(SyncJob, limit=5, seconds=60, where=sync.free_jobs(), extra=lambda _: extra)
    return job


def newest(gitrepo: GitRepo) -> Revision:
    return Revision.objects.filter(gitrepo=gitrepo).order_by("-number")[0]


# -- a good run ----------------------------------------------------------------------------------------------------


def test_a_commit_becomes_a_bundle_that_its_clusters_want(gitrepo: GitRepo, source: Repository) -> None:
    polled(gitrepo, source)

    assert work() == 1

    revision = newest(gitrepo)
    assert (revision.outcome, revision.job.state) == (Outcome.SYNCED, State.SUCCEEDED)
    assert revision.bundle is not None and bundles.store().exists(revision.bundle.sha256)
    assert (revision.bundle.files, revision.job.due_at) == (1, None)
    assert fresh(gitrepo).wanted_revision == revision
    row = delivery_of(gitrepo)
    assert (row.wanted_revision, row.wanted_bundle) == (revision, revision.bundle)
    assert row.due_at is not None
    with bundles.open_bundle(revision.bundle.sha256) as content:
        assert [entry.path for entry, _ in content.entries()] == ["deploy/app.yaml"]
    mirror = Mirror.objects.get()
    assert mirror.size_bytes > 0 and mirror.lease_token is None
    assert work() == 0


def test_a_revision_without_clusters_says_so(source: Repository) -> None:
    gitrepo = register(url=source.file_url)
    polled(gitrepo, source)
    work()

    assert newest(gitrepo).outcome == Outcome.NO_TARGET
    assert newest(gitrepo).bundle is not None


def test_a_commit_that_changes_nothing_below_the_paths(gitrepo: GitRepo, source: Repository) -> None:
    polled(gitrepo, source)
    work()
    first = newest(gitrepo)
    source.commit({"README.md": "two"})
    polled(gitrepo, source)

    assert work() == 1

    second = newest(gitrepo)
    assert (second.outcome, second.bundle, fresh(gitrepo).wanted_revision) == (Outcome.UNCHANGED, first.bundle, second)
    assert (delivery_of(gitrepo).sequence, delivery_of(gitrepo).wanted_revision) == (1, first)
    assert DeliveryRecord.objects.get(revision=second).outcome == DeliveryRecord.Outcome.UNCHANGED
    assert Event.objects.filter(reason="Unchanged").exists()


def test_a_forced_sync_never_ends_as_unchanged(gitrepo: GitRepo, source: Repository) -> None:
    polled(gitrepo, source)
    work()
    registration.force(gitrepo.pk)
    polled(gitrepo, source)

    work()

    assert (newest(gitrepo).reason, newest(gitrepo).outcome) == (Revision.Reason.FORCE, Outcome.SYNCED)
    assert delivery_of(gitrepo).sequence == 2


def test_nor_does_what_supersedes_one(gitrepo: GitRepo, source: Repository) -> None:
    """The forced run never ran: the new head that took its place, and changes nothing, does its work."""
    polled(gitrepo, source)
    work()
    registration.force(gitrepo.pk)
    polled(gitrepo, source)
    source.commit({"README.md": "two"})
    polled(gitrepo, source)

    work()

    assert (newest(gitrepo).reason, newest(gitrepo).outcome) == (Revision.Reason.NEW_HEAD, Outcome.SYNCED)
    assert delivery_of(gitrepo).sequence == 2
    source.commit({"README.md": "three"})
    polled(gitrepo, source)
    work()
    assert newest(gitrepo).outcome == Outcome.UNCHANGED  # that was that


def test_a_bundle_that_is_gone_is_made_again(gitrepo: GitRepo, source: Repository) -> None:
    polled(gitrepo, source)
    work()
    source.commit({"README.md": "two"})
    polled(gitrepo, source)
    work()
    unchanged = newest(gitrepo)
    assert unchanged.bundle is not None
    for path in bundles.store().folder.rglob(f"{unchanged.bundle.sha256}*"):
        path.unlink()
    assert not bundles.store().exists(unchanged.bundle.sha256)

    make_again(fresh(gitrepo), database_now())
    assert open_job(gitrepo).revision == unchanged
    assert work() == 1

    assert bundles.store().exists(unchanged.bundle.sha256)
    assert fresh(gitrepo).wanted_revision == unchanged
    row = delivery_of(gitrepo)
    assert (row.wanted_revision, row.wanted_bundle, row.sequence) == (unchanged, unchanged.bundle, 2)


def test_what_was_unchanged_is_not_while_its_bundle_is_gone(gitrepo: GitRepo, source: Repository) -> None:
    polled(gitrepo, source)
    work()
    for path in bundles.store().folder.rglob("*.tar*"):
        path.unlink()
    source.commit({"README.md": "two"})
    polled(gitrepo, source)
    work()

    assert newest(gitrepo).outcome == Outcome.SYNCED
    assert Bundle.objects.count() == 1


# -- a bad run -----------------------------------------------------------------------------------------------------


def test_paths_that_match_nothing_fail_and_remove_nothing(gitrepo: GitRepo, source: Repository) -> None:
    polled(gitrepo, source)
    work()
    registration.edit(gitrepo.pk, {"paths": ["nowhere"]})
    polled(gitrepo, source)

    assert work() == 1

    job = open_job(gitrepo)
    assert (job.state, job.failures, job.lease_token) == (State.FAILED, 1, None)
    assert "nowhere" in job.last_error
    assert job.due_at is not None and job.due_at > database_now()
    assert (delivery_of(gitrepo).removal, delivery_of(gitrepo).sequence) == (False, 1)
    assert Event.objects.filter(reason="SyncFailed").exists()
    # The cause goes away, and nobody has to touch anything.
    source.commit({"nowhere/app.yaml": "here"})
    polled(gitrepo, source)
    work()
    assert newest(gitrepo).outcome == Outcome.SYNCED


def test_tries_come_slower_and_slower(gitrepo: GitRepo, source: Repository, settings: Settings) -> None:
    settings.GITREPO_POLLING_JITTER = 0.0
    registration.edit(gitrepo.pk, {"paths": ["nowhere"]})
    polled(gitrepo, source)
    waits = []
    for _ in range(10):
        work()
        waits.append(open_job(gitrepo).wait_seconds)

    assert waits == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert open_job(gitrepo).failures == 10


def test_a_commit_that_the_remote_no_longer_gives_asks_for_what_it_has_now(
    gitrepo: GitRepo, source: Repository
) -> None:
    answered(gitrepo.remote, {MAIN: A})
    adopt_all()
    assert fresh(gitrepo).requested == fresh(gitrepo).handled

    work()

    assert open_job(gitrepo).failures == 1
    assert fresh(gitrepo).requested > fresh(gitrepo).handled
    assert is_due(fresh(gitrepo.remote))
    polled(gitrepo, source)
    work()
    assert newest(gitrepo).commit == source.head()
    assert list(Revision.objects.order_by("number").values_list("outcome", flat=True)) == ["superseded", "synced"]


def test_a_failure_gives_way_to_a_newer_revision_that_waits(gitrepo: GitRepo, source: Repository) -> None:
    polled(gitrepo, source)
    job = started()
    source.commit({"deploy/app.yaml": "two"})
    polled(gitrepo, source)

    sync.fail(job, "network", "no route")

    assert (fresh(job).state, fresh(job.revision).outcome) == (State.SUPERSEDED, Outcome.SUPERSEDED)
    assert open_job(gitrepo).revision.commit == source.head()


def test_a_busy_mirror_puts_the_job_back_as_no_failure(gitrepo: GitRepo, source: Repository) -> None:
    polled(gitrepo, source)
    job = started()
    Mirror.objects.create(
        remote=gitrepo.remote, worker_host=django_settings.WORKER_HOST, due_at=later(-1), lease_until=later(30),
        lease_token=uuid.uuid4(),
    )  # fmt: skip

    with Renewer(60) as renewer:
        run_job(job, renewer)

    row = open_job(gitrepo)
    assert (row.state, row.failures, row.lease_token, row.last_error) == (State.PENDING, 0, None, "")
    assert row.due_at is not None and database_now() < row.due_at <= later(1)
    assert work() == 0  # and it is not claimed while that goes on
    expire(Mirror.objects.get())
    assert work() == 1


def test_a_busy_mirror_with_a_newer_revision_waiting(gitrepo: GitRepo, source: Repository) -> None:
    """Two may not wait: the older one goes."""
    polled(gitrepo, source)
    job = started()
    source.commit({"deploy/app.yaml": "two"})
    polled(gitrepo, source)

    sync.give_back(job, 0.5)

    assert fresh(job).state == State.SUPERSEDED
    assert open_job(gitrepo).revision.commit == source.head()


def test_a_mirror_that_cannot_be_repacked_costs_no_delivery(
    gitrepo: GitRepo, source: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    polled(gitrepo, source)
    monkeypatch.setattr(mirror, "MAX_PACKS", -1)
    monkeypatch.setattr(make, "MAINTAIN_SECONDS", -1000.0)

    assert work() == 1

    assert newest(gitrepo).outcome == Outcome.SYNCED


def test_a_job_that_kills_its_workers_is_shown_and_slowed_down(gitrepo: GitRepo, source: Repository) -> None:
    polled(gitrepo, source)
    died(times=3)

    job = sync.claim_job(suspects=True)

    row = fresh(job)
    assert job is not None and (row.state, row.failures, row.crashes) == (State.RUNNING, 3, 3)
    assert "ended the worker that tried it 3 times" in row.last_error
    assert 300 < (row.due_at - database_now()).total_seconds() <= 330
    assert Event.objects.get(reason="Quarantined").gitrepo == gitrepo
    assert display_state(Facts(fresh(gitrepo), row)) == ERR_SYNC
    expire(job)
    assert run_session(budget_seconds=20, stopping=never) == 0  # not before the cap is over
    assert work() == 1
    assert newest(gitrepo).outcome == Outcome.SYNCED
    assert (fresh(job).state, fresh(job).crashes, fresh(job).last_error) == (State.SUCCEEDED, 0, "")


def test_a_job_on_probation_goes_before_the_others(gitrepo: GitRepo, source: Repository) -> None:
    polled(gitrepo, source)
    died(times=2)
    other = register("other", url=source.file_url)
    SyncJob.objects.update(**SyncJob.due_in(later(-1), 0))
    polled(other, source)
    SyncJob.objects.filter(gitrepo=other).update(**SyncJob.due_in(later(-60), 0))

    assert sync.claim_job(suspects=False) == open_or_running(other)
    [job] = [sync.claim_job(suspects=True)]
    assert job is not None and (job.gitrepo, job.crashes) == (gitrepo, 2)
    assert fresh(job).last_error == ""  # on probation, and not yet in quarantine


def test_a_newer_revision_does_not_wait_for_a_quarantine(gitrepo: GitRepo, source: Repository) -> None:
    polled(gitrepo, source)
    died(times=3)
    job = sync.claim_job(suspects=True)
    expire(job)

    source.commit({"deploy/app.yaml": "two"})
    polled(gitrepo, source)

    assert run_session(budget_seconds=20, stopping=never) == 2
    assert fresh(job).state == State.SUPERSEDED
    assert (newest(gitrepo).commit, newest(gitrepo).outcome) == (source.head(), Outcome.SYNCED)


def test_a_secret_that_cannot_be_read_is_said(gitrepo: GitRepo, source: Repository, settings: Settings) -> None:
    polled(gitrepo, source)
    token = Credential.objects.create(name="team", kind="token", secret="s3cret")
    GitRepo.objects.update(credential=token)
    Remote.objects.update(credential=token)
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]

    work()

    assert "ENCRYPTION_KEYS" in open_job(gitrepo).last_error
    assert Mirror.objects.get().lease_token is None
