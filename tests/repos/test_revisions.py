"""When a head becomes a revision, and what that does to older work."""

import pytest

from repos.leases import claim, database_now
from repos.models import GitRepo, Revision, SyncJob
from repos.refs import Head
from repos.revisions import observe, reason_for, supersede_waiting
from tests.core import MAIN, A, B, fresh, open_job, register

Reason = Revision.Reason


def revision(commit: str, generation: int = 1) -> Revision:
    return Revision(commit=commit, generation=generation, number=1)


@pytest.mark.parametrize(
    ("last", "commit", "generation", "forced", "reason"),
    [
        pytest.param(None, A, 1, False, Reason.NEW_HEAD, id="the first one"),
        pytest.param(None, A, 1, True, Reason.NEW_HEAD, id="the first one, forced: there is nothing to force"),
        pytest.param(None, A, 7, False, Reason.NEW_HEAD, id="the first one, after edits"),
        pytest.param(revision(A), A, 1, False, None, id="the same commit"),
        pytest.param(revision(A), B, 1, False, Reason.NEW_HEAD, id="another commit"),
        pytest.param(revision(A), A, 2, False, Reason.SPEC, id="an edit"),
        pytest.param(revision(A), B, 2, False, Reason.SPEC, id="an edit with another commit"),
        pytest.param(revision(A), A, 1, True, Reason.FORCE, id="forced"),
        pytest.param(revision(A), B, 1, True, Reason.FORCE, id="forced with another commit"),
        pytest.param(revision(A), B, 2, True, Reason.FORCE, id="forced and edited: never unchanged"),
    ],
)
def test_reasons(last: Revision | None, commit: str, generation: int, forced: bool, reason: str | None) -> None:
    assert reason_for(last, commit, generation, forced=forced) == reason


@pytest.fixture
def gitrepo(db: None) -> GitRepo:
    return register()


def see(gitrepo: GitRepo, commit: str, answered: int | None = None) -> Revision | None:
    return observe(fresh(gitrepo), Head(MAIN, commit), database_now(), answered=answered)


def test_revisions_are_numbered_upwards_and_a_return_is_one_too(gitrepo: GitRepo) -> None:
    for commit in (A, B, A):
        see(gitrepo, commit)

    rows = list(Revision.objects.order_by("number").values_list("number", "commit", "outcome"))
    assert rows == [(1, A, "superseded"), (2, B, "superseded"), (3, A, "")]
    assert fresh(gitrepo).latest_revision == 3
    assert (fresh(gitrepo).observed_commit, open_job(gitrepo).revision.number) == (A, 3)


def test_the_same_head_again_is_none(gitrepo: GitRepo) -> None:
    see(gitrepo, A)

    assert see(gitrepo, A) is None
    assert SyncJob.objects.count() == 1


def test_a_new_revision_supersedes_the_waiting_job_and_leaves_the_running_one_alone(gitrepo: GitRepo) -> None:
    see(gitrepo, A)
    [running] = claim(SyncJob, limit=1, seconds=60, extra=lambda _: {"state": SyncJob.State.RUNNING})
    see(gitrepo, B)
    waiting = open_job(gitrepo)

    see(gitrepo, A)

    assert (fresh(running).state, fresh(running).lease_token) == (SyncJob.State.RUNNING, running.lease_token)
    assert fresh(running).revision.outcome == ""
    assert (fresh(waiting).state, fresh(waiting).due_at) == (SyncJob.State.SUPERSEDED, None)
    assert fresh(waiting.revision).outcome == "superseded"
    assert open_job(gitrepo).revision.number == 3


def test_superseding_nothing_does_nothing(gitrepo: GitRepo) -> None:
    supersede_waiting(gitrepo, database_now())


def test_a_job_of_a_paused_gitrepo_waits_without_an_instant(gitrepo: GitRepo) -> None:
    GitRepo.objects.update(paused=True)

    see(gitrepo, A)

    assert open_job(gitrepo).due_at is None
    assert fresh(gitrepo).observed_commit == A


def test_requests_beyond_the_answer_stay_open_and_the_head_counts(gitrepo: GitRepo) -> None:
    GitRepo.objects.update(requested=5, handled=1, force_sync_generation=2, handled_force=1)

    made = see(gitrepo, A, answered=4)
    again = see(gitrepo, B, answered=4)

    assert made is not None and again is not None and again.reason == Reason.NEW_HEAD
    row = fresh(gitrepo)
    assert (row.handled, row.handled_force) == (4, 1)
    forced = see(gitrepo, B, answered=5)
    assert forced is not None and forced.reason == Reason.FORCE
    assert (fresh(gitrepo).handled, fresh(gitrepo).handled_force) == (5, 2)


def test_observing_clears_the_missing_ref(gitrepo: GitRepo) -> None:
    GitRepo.objects.update(ref_failures=3, ref_error="no branch")

    see(gitrepo, A)

    assert (fresh(gitrepo).ref_failures, fresh(gitrepo).ref_error) == (0, "")
