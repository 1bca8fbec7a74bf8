"""Scenarios J1, J2, J4 and J6: which jobs there are, and which are not."""

import time

import pytest

from tests.end_to_end.stack import Stack, wait_until
from tests.git_servers import Repository

pytestmark = pytest.mark.end_to_end


def jobs(stack: Stack, name: str) -> list[tuple[str, str]]:
    """(state, reason) of a GitRepo's jobs, oldest first."""
    return [
        (state, reason)
        for state, reason in stack.sql(
            "SELECT j.state, r.reason FROM repos_syncjob j JOIN repos_revision r ON r.id = j.revision_id "
            "JOIN repos_gitrepo g ON g.id = j.gitrepo_id WHERE g.name = %s ORDER BY r.number",
            name,
        )
    ]


@pytest.fixture
def delivered(stack: Stack, request: pytest.FixtureRequest) -> tuple[str, Repository]:
    """A GitRepo named for the test, delivered once to a cluster of the same name, with an interval of an hour."""
    name = request.node.name.replace("_", "-")[:60].strip("-")
    repository = Repository.make(stack.repositories / f"{name}.git")
    commit = repository.commit({"deploy/app.yaml": "1\n", "docs/index.md": "1\n"})
    stack.add_cluster(name)
    stack.add_gitrepo(
        name,
        repository.file_url,
        branch="main",
        paths=["deploy"],
        polling_interval="1h",
        targets=[{"cluster": name}],
    )
    stack.wait_delivered(name, commit)
    return name, repository


def test_j4_the_first_sync_makes_one_job(stack: Stack, delivered: tuple[str, Repository]) -> None:
    """rancher/fleet#4984."""
    time.sleep(3)
    assert jobs(stack, delivered[0]) == [("succeeded", "new head")]


def test_j1_a_commit_an_edit_and_a_forced_sync_make_one_job_each(
    stack: Stack, delivered: tuple[str, Repository]
) -> None:
    name, repository = delivered
    stack.api("PATCH", f"gitrepos/{name}/", {"polling_interval": "1s"})
    second = repository.commit({"deploy/app.yaml": "2\n"})
    stack.wait_delivered(name, second)
    time.sleep(3)
    assert jobs(stack, name)[1:] == [("succeeded", "new head")]

    stack.api("PATCH", f"gitrepos/{name}/", {"paths": ["deploy", "docs"]})
    wait_until("the edit's job has ended", lambda: jobs(stack, name)[2:] == [("succeeded", "spec")], 20)
    stack.api("POST", f"gitrepos/{name}/sync/")
    wait_until("the forced job has ended", lambda: jobs(stack, name)[3:] == [("succeeded", "force")], 20)
    time.sleep(3)
    assert len(jobs(stack, name)) == 4


def test_j1_what_is_no_part_of_the_content_makes_no_job(stack: Stack, delivered: tuple[str, Repository]) -> None:
    name, _ = delivered
    for change in ({"polling_interval": "2s"}, {"paused": True}, {"paused": False}, {"keep_resources": True}):
        stack.api("PATCH", f"gitrepos/{name}/", change)
    time.sleep(4)
    assert len(jobs(stack, name)) == 1
    assert stack.gitrepo(name)["generation"] == 1


def test_j1_two_forced_syncs_in_quick_succession_are_both_handled(
    stack: Stack, delivered: tuple[str, Repository]
) -> None:
    name, _ = delivered
    for _ in range(2):
        stack.api("POST", f"gitrepos/{name}/sync/")

    wait_until("both are handled", lambda: stack.gitrepo(name)["status"]["observed_force_sync_generation"] == 2, 20)
    wait_until("no job is open", lambda: all(state == "succeeded" for state, _ in jobs(stack, name)), 20)
    forced = jobs(stack, name)[1:]
    assert len(forced) in (1, 2)
    assert all(reason == "force" for _, reason in forced)


def test_j2_commits_faster_than_jobs_are_delivered_again_and_again_and_end_on_the_newest(
    stack: Stack, delivered: tuple[str, Repository]
) -> None:
    name, repository = delivered
    stack.api("PATCH", f"gitrepos/{name}/", {"polling_interval": "1s"})
    seen, newest, end = set(), "", time.monotonic() + 15
    number = 1
    while time.monotonic() < end:
        number += 1
        newest = repository.commit({"deploy/app.yaml": f"{number}\n"})
        stack.api("POST", f"gitrepos/{name}/sync/")
        seen.add(stack.gitrepo(name)["status"]["commit"])
    stack.wait_delivered(name, newest)

    assert (stack.clusters / name / name / "current/deploy/app.yaml").read_text() == f"{number}\n"
    # Not only the first and the last: some of what came between was delivered while more came.
    assert len(seen - {""}) >= 3
    states = {state for state, _ in jobs(stack, name)}
    assert states <= {"succeeded", "superseded"}
    outcomes = stack.sql(
        "SELECT r.outcome, count(*) FROM repos_revision r JOIN repos_gitrepo g ON g.id = r.gitrepo_id "
        "WHERE g.name = %s GROUP BY r.outcome",
        name,
    )
    assert {outcome for outcome, _ in outcomes} <= {"synced", "superseded", "unchanged"}


def test_j6_a_commit_that_changes_nothing_below_the_paths_is_not_delivered(
    stack: Stack, delivered: tuple[str, Repository]
) -> None:
    name, repository = delivered
    stack.api("PATCH", f"gitrepos/{name}/", {"polling_interval": "1s"})
    sequence = stack.sql(
        "SELECT max(sequence) FROM repos_delivery d JOIN repos_gitrepo g ON g.id = d.gitrepo_id WHERE g.name = %s",
        name,
    )
    commit = repository.commit({"docs/index.md": "2\n"})

    stack.wait_delivered(name, commit)
    assert (
        stack.sql(
            "SELECT max(sequence) FROM repos_delivery d JOIN repos_gitrepo g ON g.id = d.gitrepo_id WHERE g.name = %s",
            name,
        )
        == sequence
    )
    revisions = stack.api("GET", f"gitrepos/{name}/revisions/")["results"]
    assert (revisions[0]["commit"], revisions[0]["outcome"]) == (commit, "unchanged")


def test_j6_paths_that_match_nothing_are_an_error_and_nothing_is_removed(
    stack: Stack, delivered: tuple[str, Repository]
) -> None:
    name, repository = delivered
    stack.api("PATCH", f"gitrepos/{name}/", {"paths": ["depoly"]})

    status = wait_until(
        "the error is shown",
        lambda: (s := stack.gitrepo(name)["status"])["display_state"] == "ErrSync" and s,
        20,
    )
    assert "depoly" in status["message"]
    assert (stack.clusters / name / name / "current/deploy/app.yaml").read_text() == "1\n"

    stack.api("PATCH", f"gitrepos/{name}/", {"paths": ["deploy"]})
    stack.wait_delivered(name, repository.head())
