"""What a GitRepo's rows say to people."""

from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from repos import registration, status
from repos.leases import claim
from repos.models import Delivery, GitRepo, Remote, SyncJob
from repos.status import Facts, conditions, display_state, facts_of, message, status_json, statuses
from tests.core import A, B, cluster, observed, open_job, register, synced

AT = datetime(2030, 1, 1, tzinfo=UTC)


def gitrepo(**columns: Any) -> GitRepo:
    remote = Remote(last_error=columns.pop("remote_error", ""))
    return GitRepo(**{"name": "shop", "latest_revision": 1, "remote": remote, "created_at": AT, **columns})


def job(state: str, failures: int = 0, error: str = "") -> SyncJob:
    return SyncJob(state=state, failures=failures, last_error=error, created_at=AT, finished_at=AT)


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        pytest.param(Facts(gitrepo(latest_revision=0)), status.PENDING, id="nothing seen yet"),
        pytest.param(Facts(gitrepo()), status.READY, id="nothing to do"),
        pytest.param(Facts(gitrepo(), states={"applied": 3, "removed": 1, "kept": 1}), status.READY, id="applied"),
        pytest.param(Facts(gitrepo(), job("pending")), status.WAIT_SYNC, id="a job waits"),
        pytest.param(Facts(gitrepo(), job("running")), status.WAIT_SYNC, id="a job runs"),
        pytest.param(Facts(gitrepo(), job("failed", 1)), status.ERR_SYNC, id="a job failed"),
        pytest.param(Facts(gitrepo(), job("running", 1)), status.ERR_SYNC, id="a job is retried"),
        pytest.param(Facts(gitrepo(), job("succeeded", 4)), status.READY, id="a job that failed before it succeeded"),
        pytest.param(Facts(gitrepo(), states={"waiting": 1, "applied": 9}), status.WAIT_APPLIED, id="one cluster waits"),
        pytest.param(Facts(gitrepo(), states={"failed": 1, "applied": 9}), status.ERR_APPLIED, id="one cluster failed"),
        pytest.param(Facts(gitrepo(), states={"held": 1, "waiting": 1}), status.HELD, id="held"),
        pytest.param(Facts(gitrepo(paused=True), job("pending")), status.PAUSED, id="paused"),
        pytest.param(Facts(gitrepo(remote_error="502"), states={"applied": 1}), status.ERR_POLLING, id="remote"),
        pytest.param(Facts(gitrepo(ref_error="no branch")), status.ERR_POLLING, id="ref"),
        pytest.param(Facts(gitrepo(remote_error="502", commit=A)), status.READY, id="pinned: asks nobody"),
        pytest.param(
            Facts(gitrepo(remote_error="502", paused=True), job("failed", 1), {"failed": 1}), status.ERR_APPLIED,
            id="the worst of all",
        ),
    ],
)  # fmt: skip
def test_display_states(facts: Facts, state: str) -> None:
    assert display_state(facts) == state
    ready = next(c for c in conditions(facts) if c.type == "Ready")
    assert ready.status == (state == status.READY)
    assert ready.reason == ("" if state == status.READY else state)


def test_the_message_is_the_error_behind_it() -> None:
    assert message(Facts(gitrepo())) == ""
    assert message(Facts(gitrepo(remote_error="502"))) == "502"
    assert message(Facts(gitrepo(remote_error="502"), job("failed", 1, "no key"))) == "no key"
    assert message(Facts(gitrepo(), job("succeeded", 1, "old"))) == ""
    assert message(Facts(gitrepo(remote_error="502"), delivery_error="eu: disk full")) == "eu: disk full"


def test_every_condition_is_there_with_its_time() -> None:
    found = {c.type: c for c in conditions(Facts(gitrepo(ref_error="no branch"), job("running")))}

    assert set(found) == {"Ready", "GitPolling", "Reconciling", "Stalled", "Accepted"}
    assert [c.status for c in found.values()] == [False, False, True, True, True]
    assert found["GitPolling"].as_json() == {
        "type": "GitPolling", "status": "False", "reason": "PollFailed", "message": "no branch",
        "last_transition_time": AT,
    }  # fmt: skip


def test_polling_that_is_switched_off_is_no_fault() -> None:
    facts = Facts(gitrepo(disable_polling=True))
    polling = next(c for c in conditions(facts) if c.type == "GitPolling")

    assert (polling.status, polling.reason, display_state(facts)) == (False, "Disabled", status.READY)


@pytest.mark.django_db
def test_the_status_of_a_gitrepo_on_its_way() -> None:
    cluster()
    row = register(targets=[{"cluster": "prod-eu"}])
    observed(row, A)
    assert told(row)["display_state"] == status.WAIT_SYNC
    assert (told(row)["commit"], told(row)["observed_commit"], told(row)["ready_clusters"]) == ("", A, "0/0")

    SyncJob.objects.update(state="succeeded", due_at=None)
    synced(row, commit=B)
    registration.edit(row.pk, {"keep_resources": True})
    assert (told(row)["commit"], told(row)["wanted_commit"], told(row)["ready_clusters"]) == ("", B, "0/1")

    Delivery.objects.update(state="failed", last_error="disk full", due_at=None)
    assert told(row)["message"] == "prod-eu: disk full"

    Delivery.objects.update(state="applied")
    assert (told(row)["display_state"], told(row)["commit"], told(row)["ready_clusters"]) == (status.READY, B, "1/1")
    assert told(row)["observed_generation"] == 1


@pytest.mark.django_db
def test_a_failing_job_shows_while_it_waits_for_its_next_try() -> None:
    row = register()
    observed(row, A)
    claim(SyncJob, limit=1, seconds=30)
    SyncJob.objects.filter(pk=open_job(row).pk).update(state="failed", failures=2, last_error="no route")

    assert (told(row)["display_state"], told(row)["message"]) == (status.ERR_SYNC, "no route")


def told(row: GitRepo) -> dict[str, Any]:
    read = GitRepo.objects.select_related("remote", "wanted_revision").get(pk=row.pk)
    return status_json(facts_of([read])[row.pk])


@pytest.mark.django_db
def test_a_page_costs_as_many_queries_as_one_row() -> None:
    cluster()

    def queries(names: list[str]) -> int:
        for name in names:
            row = register(name, targets=[{"cluster": "prod-eu"}])
            observed(row, A)
            synced(row, commit=B)
            registration.edit(row.pk, {"keep_resources": True})
        page = list(GitRepo.objects.select_related("remote", "wanted_revision"))
        with CaptureQueriesContext(connection) as captured:
            assert len(statuses(page)) == len(page)
        return len(captured)

    assert queries(["one"]) == queries(["two", "three", "four"]) <= 4


@pytest.mark.django_db
def test_nothing_asked_nothing_told() -> None:
    assert statuses([]) == {}
