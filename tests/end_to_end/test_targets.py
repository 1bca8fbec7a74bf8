"""Scenarios T1 to T4: the spec and the targets change while work is under way."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.end_to_end.stack import Stack, wait_until
from tests.git_servers import Behaviour, GitServer, Repository, git_server

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with git_server(tmp_path_factory.mktemp("served")) as running:
        yield running


def two_branches(server: GitServer, name: str) -> Repository:
    repository = Repository.make(server.root / f"{name}.git")
    repository.commit({"deploy/app.yaml": "main\n", "other/app.yaml": "other\n"})
    repository.commit({"deploy/app.yaml": "next\n"}, branch="next", parent=repository.head())
    return repository


EDITS = {"branch": {"branch": "next"}, "paths": {"paths": ["other"]}, "url": {}}


@pytest.mark.parametrize("stage", ["poll", "fetch"])
def test_t1_an_edit_while_the_old_spec_is_at_work_drops_the_old_result(
    stack: Stack, server: GitServer, stage: str
) -> None:
    """A GitRepo for each field, side by side; each is edited as soon as its own poll, or fetch, is under way."""
    names = {field: f"t1-{stage}-{field}" for field in EDITS}
    repositories = {field: two_branches(server, name) for field, name in names.items()}
    other = two_branches(server, f"t1-{stage}-other")
    expected = {
        "branch": (repositories["branch"].head("next"), {"deploy/app.yaml": "next\n"}),
        "paths": (repositories["paths"].head(), {"other/app.yaml": "other\n"}),
        "url": (other.commit({"deploy/app.yaml": "elsewhere\n"}), {"deploy/app.yaml": "elsewhere\n"}),
    }
    folders = {field: stack.add_cluster(name) for field, name in names.items()}
    waiting = dict(names)

    def each_is_edited() -> bool:
        for field, name in list(waiting.items()):
            if any(request.of == stage for request in server.requests(f"/{name}.git/")):
                stack.api("PATCH", f"gitrepos/{name}/", EDITS[field] or {"url": server.url(other)})
                del waiting[field]
        return not waiting

    server.behaviour = Behaviour(delay_seconds=2.0, only=f"/t1-{stage}-")
    try:
        for field, name in names.items():
            stack.add_gitrepo(
                name,
                server.url(repositories[field]),
                branch="main",
                paths=["deploy"],
                polling_interval="1h",
                targets=[{"cluster": name}],
            )
        wait_until(f"the {stage} of each is under way, and it is edited", each_is_edited, 60, every=0.05)
    finally:
        server.behaviour = Behaviour()

    for field, (commit, files) in expected.items():
        name = names[field]
        stack.wait_delivered(name, commit)
        current = folders[field] / name / "current"
        assert {str(p.relative_to(current)): p.read_text() for p in current.rglob("*.yaml")} == files
        # Nothing that belonged to the old spec was ever delivered.
        applied = stack.sql(
            "SELECT r.generation, count(*) FROM repos_deliveryrecord x JOIN repos_revision r ON r.id = x.revision_id "
            "JOIN repos_gitrepo g ON g.id = r.gitrepo_id WHERE g.name = %s AND x.outcome = 'delivered' "
            "GROUP BY r.generation",
            name,
        )
        assert [generation for generation, _ in applied] == [2]


def test_t2_labels_groups_and_targets_match_and_unmatch_without_a_new_revision(stack: Stack) -> None:
    repository = Repository.make(stack.repositories / "t2.git")
    commit = repository.commit({"app.yaml": "1\n"})
    folders = {name: stack.add_cluster(name, {"t2": "no"}) for name in ("t2-a", "t2-b", "t2-c")}
    stack.api("POST", "clustergroups/", {"name": "t2-group", "selector": {"matchLabels": {"t2group": "yes"}}})
    stack.add_gitrepo(
        "t2", repository.file_url, branch="main", polling_interval="1h",
        targets=[{"cluster_selector": {"matchLabels": {"t2": "yes"}}}, {"cluster_group": "t2-group"}],
    )  # fmt: skip
    wait_until("synced without a target", lambda: stack.gitrepo("t2")["status"]["commit"] == commit, 20)

    def has(name: str) -> bool:
        return (folders[name] / "t2/current/app.yaml").exists()

    stack.api("PATCH", "clusters/t2-a/", {"labels": {"t2": "yes"}})
    wait_until("a label matches", lambda: has("t2-a"), 20)
    stack.api("PATCH", "clusters/t2-b/", {"labels": {"t2group": "yes"}})
    wait_until("a group matches", lambda: has("t2-b"), 20)
    stack.api("PATCH", "clustergroups/t2-group/", {"selector": {"matchLabels": {"t2": "no"}}})
    wait_until("the group's members change", lambda: has("t2-c") and not has("t2-b"), 20)
    stack.api("PATCH", "gitrepos/t2/", {"targets": [{"cluster": "t2-b"}]})
    wait_until("the targets change", lambda: has("t2-b") and not has("t2-a") and not has("t2-c"), 20)

    stack.api("PATCH", "gitrepos/t2/", {"keep_resources": True})
    stack.api("PATCH", "gitrepos/t2/", {"targets": []})
    time.sleep(3)
    assert has("t2-b")
    assert len(stack.api("GET", "gitrepos/t2/revisions/")["results"]) == 1
    assert stack.gitrepo("t2")["generation"] == 1


def label(stack: Stack, on: str) -> bool:
    """Whether the door took the label; 503 says that nothing was changed."""
    status, answer = stack.request("PATCH", "/api/v1/clusters/c/", {"labels": {"on": on}})
    assert status in (200, 503), answer
    return status == 200


def test_t2_match_unmatch_and_match_while_a_worker_is_frozen_ends_with_the_content_there(
    own_stack: Callable[..., Stack],
) -> None:
    stack = own_stack({"DELIVERY_LEASE": "3s", "JOB_LEASE": "3s", "DELIVERY_TIMEOUT": "10s"})
    repository = Repository.make(stack.repositories / "frozen.git")
    commit = repository.commit({f"f{n}.yaml": "x" * 2000 for n in range(300)})
    folder = stack.add_cluster("c", {"on": "yes"})
    stack.add_gitrepo(
        "frozen", repository.file_url, branch="main", polling_interval="1h",
        targets=[{"cluster_selector": {"matchLabels": {"on": "yes"}}}],
    )  # fmt: skip
    stack.wait_delivered("frozen", commit)

    frozen = stack.parts["worker1"]
    for round_ in range(3):
        frozen.signal(signal.SIGSTOP)
        # Longer than its leases. On SQLite it may hold the one write lock, and then nobody writes before it goes on.
        thaw = threading.Timer(5, frozen.signal, [signal.SIGCONT])
        thaw.start()
        for on in ("no", "yes"):
            wait_until("the label is saved", partial(label, stack, on), 60)
            time.sleep(0.3 * round_)
        thaw.join()
        wait_until(
            "matched and settled",
            lambda: (
                stack.gitrepo("frozen")["status"]["ready_clusters"] == "1/1"
                and stack.sql("SELECT count(*) FROM repos_cluster WHERE match_due_at IS NOT NULL") == [(0,)]
            ),
            40,
        )
        assert len(list((folder / "frozen/current").glob("*.yaml"))) == 300


def test_t3_deleted_and_registered_again_under_its_name_ends_with_the_new_content(stack: Stack) -> None:
    old = Repository.make(stack.repositories / "t3-old.git")
    old_commit = old.commit({"old.yaml": "old\n", **{f"many/{n}": "x" for n in range(200)}})
    folder = stack.add_cluster("t3")
    spec = {"branch": "main", "polling_interval": "1h", "targets": [{"cluster": "t3"}]}
    stack.add_gitrepo("t3", old.file_url, **spec)
    stack.wait_delivered("t3", old_commit)

    for round_ in range(5):
        new = Repository.make(stack.repositories / f"t3-{round_}.git")
        commit = new.commit({"new.yaml": f"{round_}\n", **{f"many/{n}": "y" for n in range(200)}})
        # A delivery of the old one is under way while it is deleted.
        stack.api("POST", "gitrepos/t3/sync/")
        time.sleep(0.25 * round_)
        stack.api("DELETE", "gitrepos/t3/")
        stack.add_gitrepo("t3", new.file_url, **spec)
        stack.wait_delivered("t3", commit)
        wait_until(
            "the old one is gone",
            lambda: stack.sql("SELECT count(*) FROM repos_gitrepo WHERE deleted_at IS NOT NULL") == [(0,)],
            20,
        )
        assert (folder / "t3/current/new.yaml").read_text() == f"{round_}\n"
        assert not (folder / "t3/current/old.yaml").exists()


def test_t4_a_force_on_one_of_several_that_share_a_remote_syncs_that_one(stack: Stack) -> None:
    repository = Repository.make(stack.repositories / "t4.git")
    commit = repository.commit({"app.yaml": "1\n"})
    stack.add_cluster("t4")
    names = ["t4-a", "t4-b", "t4-c"]
    for name in names:
        stack.add_gitrepo(name, repository.file_url, branch="main", polling_interval="1h", targets=[{"cluster": "t4"}])
    for name in names:
        stack.wait_delivered(name, commit)
    stack.api("POST", "gitrepos/t4-b/sync/")

    wait_until("forced", lambda: len(stack.api("GET", "gitrepos/t4-b/revisions/")["results"]) == 2, 20)
    stack.wait_delivered("t4-b", commit)
    time.sleep(3)
    for name in ("t4-a", "t4-c"):
        assert len(stack.api("GET", f"gitrepos/{name}/revisions/")["results"]) == 1
