"""Scenarios D1 and D2: polling disabled, and paused."""

import time
from functools import partial

import pytest

from tests.end_to_end.stack import Stack, wait_until
from tests.git_servers import Repository

pytestmark = pytest.mark.end_to_end


def observes(stack: Stack, name: str, commit: str) -> bool:
    return bool(stack.gitrepo(name)["status"]["observed_commit"] == commit)


def text_at(stack: Stack, cluster: str, name: str) -> str:
    return (stack.clusters / cluster / name / "current/deploy/app.yaml").read_text()


def test_d1_disabled_polling_syncs_once_ignores_pushes_and_delivers_head_when_forced(stack: Stack) -> None:
    """rancher/fleet#780; with a remote of its own, and with one that another GitRepo polls, side by side."""
    alone, shared = "d1-alone", "d1-shared"
    repositories = {name: Repository.make(stack.repositories / f"{name}.git") for name in (alone, shared)}
    firsts = {name: repository.commit({"deploy/app.yaml": "1\n"}) for name, repository in repositories.items()}
    for name, repository in repositories.items():
        stack.add_cluster(name)
        spec = {"branch": "main", "paths": ["deploy"], "targets": [{"cluster": name}], "polling_interval": "1s"}
        if name == shared:
            stack.add_gitrepo(f"{name}-polls", repository.file_url, **spec)
            stack.wait_delivered(f"{name}-polls", firsts[name])
        stack.add_gitrepo(name, repository.file_url, disable_polling=True, **spec)
    for name, first in firsts.items():
        stack.wait_delivered(name, first)
    wait_until("off the schedule", lambda: stack.gitrepo(alone)["status"]["next_poll_at"] is None, 10)

    seconds = {name: repository.commit({"deploy/app.yaml": "2\n"}) for name, repository in repositories.items()}
    stack.wait_delivered(f"{shared}-polls", seconds[shared])
    time.sleep(5)
    for name, first in firsts.items():
        assert stack.gitrepo(name)["status"]["observed_commit"] == first
        assert text_at(stack, name, name) == "1\n"

    for name in repositories:
        stack.api("POST", f"gitrepos/{name}/sync/")
    for name, second in seconds.items():
        stack.wait_delivered(name, second)
        assert text_at(stack, name, name) == "2\n"

    # The force was for that once.
    for repository in repositories.values():
        repository.commit({"deploy/app.yaml": "3\n"})
    time.sleep(5)
    for name in repositories:
        assert text_at(stack, name, name) == "2\n"


def test_d1_a_forced_sync_delivers_a_head_that_went_back(stack: Stack) -> None:
    repository = Repository.make(stack.repositories / "d1-back.git")
    first = repository.commit({"deploy/app.yaml": "1\n"})
    stack.add_cluster("d1-back")
    stack.add_gitrepo(
        "d1-back",
        repository.file_url,
        branch="main",
        paths=["deploy"],
        disable_polling=True,
        targets=[{"cluster": "d1-back"}],
    )
    stack.wait_delivered("d1-back", first)
    second = repository.commit({"deploy/app.yaml": "2\n"})
    stack.api("POST", "gitrepos/d1-back/sync/")
    stack.wait_delivered("d1-back", second)

    repository.git("update-ref", "refs/heads/main", first)
    stack.api("POST", "gitrepos/d1-back/sync/")
    stack.wait_delivered("d1-back", first)
    assert text_at(stack, "d1-back", "d1-back") == "1\n"


def test_d2_paused_goes_on_observing_and_delivers_the_newest_on_resume(stack: Stack) -> None:
    repository = Repository.make(stack.repositories / "d2.git")
    first = repository.commit({"deploy/app.yaml": "1\n"})
    stack.add_cluster("d2")
    stack.add_gitrepo(
        "d2",
        repository.file_url,
        branch="main",
        paths=["deploy"],
        polling_interval="1s",
        targets=[{"cluster": "d2"}],
    )
    stack.wait_delivered("d2", first)
    stack.api("POST", "gitrepos/d2/pause/")

    for number in (2, 3):
        commit = repository.commit({"deploy/app.yaml": f"{number}\n"})
        wait_until(
            f"commit {number} is observed",
            partial(observes, stack, "d2", commit),
            15,
        )
    time.sleep(3)
    status = stack.gitrepo("d2")["status"]
    assert (status["display_state"], status["commit"]) == ("Paused", first)
    assert text_at(stack, "d2", "d2") == "1\n"

    stack.api("POST", "gitrepos/d2/resume/")
    stack.wait_delivered("d2", repository.head())
    assert text_at(stack, "d2", "d2") == "3\n"
    outcomes = [r["outcome"] for r in stack.api("GET", "gitrepos/d2/revisions/")["results"]]
    assert outcomes == ["synced", "superseded", "synced"]
