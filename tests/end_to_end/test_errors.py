"""Scenario E5: where an error shows, and what stays."""

import urllib.request
from collections.abc import Iterator

import pytest

from tests.end_to_end.stack import POLL_LINE, Stack, wait_until
from tests.git_servers import Behaviour, GitServer, Repository, git_server

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with git_server(tmp_path_factory.mktemp("served")) as running:
        yield running


def metrics(stack: Stack) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{stack.port}/metrics", timeout=20) as answer:
        return str(answer.read().decode())


def test_e5_an_error_is_in_the_status_the_events_the_log_and_a_metric(stack: Stack, server: GitServer) -> None:
    repository = Repository.make(server.root / "e5.git")
    commit = repository.commit({"app.yaml": "1\n"})
    stack.add_gitrepo("e5", server.url(repository), branch="main", polling_interval="1s")
    wait_until("well", lambda: stack.gitrepo("e5")["status"]["commit"] == commit, 20)
    server.behaviour = Behaviour(status=502, only="e5.git")

    status = wait_until(
        "three failures", lambda: (s := stack.gitrepo("e5")["status"])["consecutive_failures"] >= 3 and s, 30
    )
    assert status["display_state"] == "ErrPolling"
    assert "5xx" in status["last_error"]
    assert status["last_success_at"]
    assert status["last_success_at"] < status["last_poll_at"]
    polling = next(c for c in status["conditions"] if c["type"] == "GitPolling")
    assert (polling["status"], polling["message"]) == ("False", status["last_error"])
    events = stack.api("GET", "gitrepos/e5/events/")["results"]
    assert any(event["type"] == "Warning" and event["reason"] == "PollFailed" for event in events)
    failed = [line for line in stack.lines(POLL_LINE, gitrepo="e5") if line["result"] == "server"]
    assert len(failed) >= 3
    assert 'fleetsync_polls_total{result="server"}' in metrics(stack)
    assert 'fleetsync_gitrepo_consecutive_failures{gitrepo="e5"}' in metrics(stack)

    server.behaviour = Behaviour()
    wait_until("well again", lambda: stack.gitrepo("e5")["status"]["consecutive_failures"] == 0, 30)
    status = stack.gitrepo("e5")["status"]
    assert (status["display_state"], status["last_error"]) == ("Ready", "")
    stack.api("DELETE", "gitrepos/e5/")
    wait_until("its series is gone", lambda: 'gitrepo="e5"' not in metrics(stack), 10)


def test_e5_a_missing_branch_is_the_gitrepos_own_error(stack: Stack) -> None:
    repository = Repository.make(stack.repositories / "e5-branch.git")
    commit = repository.commit({"app.yaml": "1\n"})
    for name, branch in (("e5-there", "main"), ("e5-missing", "gone")):
        stack.add_gitrepo(name, repository.file_url, branch=branch, polling_interval="1s")

    wait_until("the error shows", lambda: "gone" in stack.gitrepo("e5-missing")["status"]["last_error"], 20)
    there = stack.gitrepo("e5-there")["status"]
    assert (there["last_error"], there["observed_commit"]) == ("", commit)

    repository.git("update-ref", "refs/heads/gone", commit)
    wait_until(
        "it recovers by itself",
        lambda: stack.gitrepo("e5-missing")["status"]["observed_commit"] == commit,
        60,
    )
    assert stack.gitrepo("e5-missing")["status"]["last_error"] == ""
