"""From a server's answers to what GitRepos adopt: the table's cases that are decided in the database, through poll sessions
over the engine.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from repos import registration
from repos.leases import database_now
from repos.models import Credential, GitRepo, HostNotBefore, Remote, Revision
from tests.core import A, B, C, adopt_all, fresh, later, register
from tests.git_servers import GitServer, Repository, git_server
from tests.workers.poll.conformance.answers import GOOD, MAIN, discovery, listed, refs_of, result, status, v0
from tests.workers.poll.conformance.stand_in import Reply, by_method, stand_in
from workers.poll.engine import Engine
from workers.poll.session import Session

pytestmark = pytest.mark.django_db

Poll = Callable[[], None]
V2 = (discovery(),)


@pytest.fixture
def poll(engine: Engine) -> Poll:
    """Everything due in one session, and its adoption."""

    def run() -> None:
        Session(engine, limit=50, budget_seconds=20.0, stopping=lambda: False).run()
        adopt_all()

    return run


@pytest.fixture
def again(poll: Poll) -> Poll:
    """Everything is due, polled and adopted."""

    def run() -> None:
        Remote.objects.update(next_poll_at=later(-1))
        poll()

    return run


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    (tmp_path / "served").mkdir()
    with git_server(tmp_path / "served") as server:
        yield server


@pytest.fixture
def repository(tmp_path: Path, server: GitServer) -> Repository:
    repository = Repository.make(tmp_path / "served" / "shop.git")
    repository.commit({"a": "a"})
    return repository


def adopted(gitrepo: GitRepo) -> list[str]:
    """The commits of its revisions, the oldest first."""
    return list(Revision.objects.filter(gitrepo=gitrepo).order_by("number").values_list("commit", flat=True))


# -- refs that move ------------------------------------------------------------------------------------------------------


def test_a_push_is_adopted_once(again: Poll, server: GitServer, repository: Repository) -> None:
    gitrepo = register(url=server.url(repository))
    first = repository.head()
    again()
    second = repository.commit({"a": "b"})
    again()
    again()

    assert adopted(gitrepo) == [first, second]


def test_head_renamed(again: Poll, server: GitServer, repository: Repository) -> None:
    """Who follows HEAD goes along to the new name; who follows the old name is told that it is gone, and keeps its commit."""
    follows_head = register("head", url=server.url(repository), branch="")
    follows_main = register("main", url=server.url(repository))
    first = repository.head()
    again()
    repository.git("branch", "-m", "main", "trunk")
    repository.git("symbolic-ref", "HEAD", "refs/heads/trunk")
    second = repository.commit({"a": "b"}, branch="trunk")
    again()

    assert adopted(follows_head) == [first, second]
    assert adopted(follows_main) == [first]
    assert "main" in fresh(follows_main).ref_error and not fresh(follows_head).ref_error
    assert fresh(follows_main.remote).consecutive_failures == 0


def test_a_branch_deleted_and_made_again(again: Poll, server: GitServer, repository: Repository) -> None:
    gitrepo = register(url=server.url(repository))
    first = repository.head()
    again()
    repository.git("update-ref", "-d", MAIN)
    again()
    assert fresh(gitrepo).ref_error and fresh(gitrepo).observed_commit == first
    second = repository.commit({"a": "from the start"})
    again()
    assert not fresh(gitrepo).ref_error
    assert adopted(gitrepo) == [first, second]


def test_a_branch_deleted_and_made_again_at_the_same_commit(
    again: Poll, server: GitServer, repository: Repository
) -> None:
    gitrepo = register(url=server.url(repository))
    first = repository.head()
    again()
    repository.git("update-ref", "-d", MAIN)
    again()
    repository.git("update-ref", MAIN, first)
    again()
    again()

    assert not fresh(gitrepo).ref_error
    assert adopted(gitrepo) == [first]


@pytest.mark.parametrize("message", ["", "a release"], ids=["lightweight", "annotated"])
def test_a_tag_that_is_moved(message: str, again: Poll, server: GitServer, repository: Repository) -> None:
    first = repository.head()
    repository.tag("v1", first, message=message)
    gitrepo = register(url=server.url(repository), branch="", tag="v1")
    again()
    second = repository.commit({"a": "b"})
    again()
    assert adopted(gitrepo) == [first]
    repository.git("tag", "-d", "v1")
    repository.tag("v1", second, message=message)
    again()

    assert adopted(gitrepo) == [first, second]


def test_an_annotated_tag_written_anew_for_the_same_commit_is_no_news(
    again: Poll, server: GitServer, repository: Repository
) -> None:
    first = repository.head()
    repository.tag("v1", first, message="one")
    gitrepo = register(url=server.url(repository), branch="", tag="v1")
    again()
    repository.git("tag", "-d", "v1")
    repository.tag("v1", first, message="two")
    again()

    assert adopted(gitrepo) == [first]


def test_a_tag_named_as_a_branch(again: Poll, server: GitServer, repository: Repository) -> None:
    first = repository.head()
    second = repository.commit({"a": "b"})
    repository.tag("main", first)
    branch = register("branch", url=server.url(repository))
    tag = register("tag", url=server.url(repository), branch="", tag="main")
    again()

    assert (adopted(branch), adopted(tag)) == ([second], [first])


def test_a_range_of_versions(again: Poll, server: GitServer, repository: Repository) -> None:
    """A pre-release counts only for a range that names one of the same version; what is no version counts for nobody."""
    stable = register("stable", url=server.url(repository), branch="", semver=">=1.0.0")
    early = register("early", url=server.url(repository), branch="", semver=">=1.0.0 || >=2.0.0-0")
    old = register("old", url=server.url(repository), branch="", semver="^1.0.0")
    expected: dict[str, list[str]] = {"stable": [], "early": [], "old": []}
    for number, (tag, followers) in enumerate(
        [
            ("v1.0.0", "stable early old"), ("v1.1.0-rc.1", ""), ("v1.1.0", "stable early old"),
            ("v2.0.0-rc.2", "early"), ("v2.0.0-rc.10", "early"), ("v2.0.0", "stable early"), ("v1.9.0", "old"),
            ("nightly", ""), ("release-3", ""), ("v2.0.0-rc.11", ""), ("v10.0.0", "stable early"),
        ]
    ):  # fmt: skip
        commit = repository.commit({"a": tag})
        repository.tag(tag, commit, message="a release" if number % 2 else "")
        for name in followers.split():
            expected[name].append(commit)
        again()

    assert {"stable": adopted(stable), "early": adopted(early), "old": adopted(old)} == expected


def test_the_highest_version_taken_back(again: Poll, server: GitServer, repository: Repository) -> None:
    """The range falls back to what is there, when a second poll says so again."""
    first = repository.head()
    repository.tag("v1.0.0", first)
    gitrepo = register(url=server.url(repository), branch="", semver=">=1.0.0")
    again()
    second = repository.commit({"a": "b"})
    repository.tag("v1.1.0", second)
    again()
    repository.git("tag", "-d", "v1.1.0")
    again()
    again()

    assert adopted(gitrepo) == [first, second, first]


# -- servers that are several --------------------------------------------------------------------------------------------


def lists(commits: Sequence[str]) -> list[Reply]:
    return [result(refs_of({MAIN: commit})) for commit in commits]


def polled(again: Poll, posts: Sequence[Reply], times: int) -> list[str]:
    with stand_in(by_method(GET=V2, POST=posts)) as server:
        gitrepo = register(url=server.url())
        for _ in range(times):
            again()
        return adopted(gitrepo)


def test_a_stale_replica_among_several(again: Poll) -> None:
    """Its old word between two new ones is no revert."""
    assert polled(again, lists([A, B, A, B, B, A, B, C, B, C]), 10) == [A, B, C]


def test_a_stale_replica_that_has_not_heard_of_a_version(again: Poll) -> None:
    """A range does not fall back for it."""
    known, stale = refs_of({"refs/tags/v1.0.0": A, "refs/tags/v2.0.0": B}), refs_of({"refs/tags/v1.0.0": A})
    with stand_in(by_method(GET=V2, POST=[*map(result, (known, stale, known, stale))])) as server:
        gitrepo = register(url=server.url(), branch="", semver=">=1.0.0")
        for _ in range(4):
            again()
            assert adopted(gitrepo) == [B] and not fresh(gitrepo).ref_error


def test_a_tag_that_nobody_follows_any_more_is_not_missed(poll: Poll) -> None:
    """An edit is answered by one poll, whatever was followed before."""
    tags = refs_of({"refs/tags/v1": A, "refs/tags/v2": B})
    with stand_in(by_method(GET=V2, POST=[result(tags)])) as server:
        gitrepo = register(url=server.url(), branch="", tag="v1")
        poll()
        registration.edit(gitrepo.pk, {"tag": "v2"})
        poll()
        remote = fresh(gitrepo.remote)

    assert adopted(gitrepo) == [A, B]
    assert (remote.refs, remote.returning, remote.answered) == ({"refs/tags/v2": B}, {}, remote.wakes)


def test_a_stale_replica_behind_one_that_has_no_branch(again: Poll) -> None:
    nothing = result(refs_of({}))
    assert polled(again, [*lists([A, B]), nothing, *lists([A, B])], 5) == [A, B]


def test_a_revert_is_one_when_it_is_said_twice(again: Poll) -> None:
    assert polled(again, lists([A, B, A, A, A]), 5) == [A, B, A]


def test_a_replica_that_has_no_repository_yet(again: Poll) -> None:
    """A refusal is an error and moves nothing."""
    with stand_in(by_method(GET=[discovery(), status("404 Not Found"), discovery()], POST=[*lists([A]), status("404 Not Found"),
                            *lists([A, B])])) as server:  # fmt: skip
        gitrepo = register(url=server.url())
        again()
        again()
        assert "no such repository" in fresh(gitrepo.remote).last_error
        again()
        assert fresh(gitrepo.remote).last_error == ""
        again()

    assert adopted(gitrepo) == [A, B]


LIES: dict[str, Reply] = {
    "a login page": status("200 OK", body=b"<html>sign in</html>", kind="text/html"),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n",),
    "half a list": result(refs_of({MAIN: B})[:-4]),
    "an empty body": result(b""),
    "nonsense": result(listed("hello")),
    "a bad gateway": status("502 Bad Gateway"),
    "a refusal": status("403 Forbidden"),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_what_is_no_answer_deletes_no_branch(lie: Reply, again: Poll) -> None:
    with stand_in(by_method(GET=V2, POST=[GOOD])) as server:
        gitrepo = register(url=server.url())
        again()
        server.script = lambda sent: lie
        again()
        row = fresh(gitrepo)
        assert row.remote.last_error and row.remote.consecutive_failures == 1
        assert (row.ref_error, row.remote.refs, row.observed_commit) == ("", {MAIN: A}, A)
        server.script = by_method(GET=V2, POST=[GOOD])
        again()
        assert fresh(gitrepo.remote).last_error == ""

    assert adopted(gitrepo) == [A]


def test_version_2_withdrawn_between_two_polls_is_no_event(again: Poll) -> None:
    old = discovery(v0([(MAIN, B)]))
    with stand_in(by_method(GET=[discovery(), old], POST=[GOOD, status("400 Bad Request")])) as server:
        gitrepo = register(url=server.url())
        for _ in range(3):
            again()
            assert fresh(gitrepo.remote).last_error == ""

    assert adopted(gitrepo) == [A, B]


@pytest.mark.parametrize("character", ["\0", "\x01", "\n"], ids=repr)
def test_a_name_that_no_database_would_take_holds_back_nobody(character: str, again: Poll) -> None:
    bad = result(refs_of({"refs/tags/v1.0.0": A, f"refs/tags/v2{character}x": B}))
    with stand_in(by_method(GET=V2, POST=[bad])) as hostile, stand_in(by_method(GET=V2, POST=[GOOD])) as server:
        evil = register("evil", url=hostile.url(), branch="", semver=">=1.0.0")
        good = register("good", url=server.url())
        again()

    assert adopted(good) == [A]
    row = fresh(evil.remote)
    assert row.lease_token is None and row.last_error and "worker's log" not in row.last_error


# -- patience ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["429 Too Many Requests", "503 Service Unavailable", "403 Forbidden"])
def test_patience_is_for_the_whole_host_and_the_one_credential(line: str, poll: Poll) -> None:
    """One remote is told to wait: the others of its host and credential are not asked before, those of another are."""
    with stand_in(by_method(GET=V2, POST=[GOOD])) as server:
        one, two = (
            Credential.objects.create(name=name, kind="token", secret=name) for name in ("team-one", "team-two")
        )
        told = register("told", url=server.url("a.git"), credential=one)
        same = register("same", url=server.url("b.git"), credential=one)
        other = register("other", url=server.url("c.git"), credential=two)
        poll()
        good = server.script
        server.script = lambda sent: status(line, "Retry-After: 600") if "/a.git" in sent.target else good(sent)
        Remote.objects.filter(pk=told.remote_id).update(next_poll_at=later(-1))
        poll()
        server.take()
        # As if they had become due meanwhile, in spite of all.
        Remote.objects.update(next_poll_at=later(-1))
        poll()

        assert {sent.target.split("/")[1] for sent in server.sent} == {"c.git"}
        assert HostNotBefore.objects.count() == 1
        for gitrepo in (told, same):
            wait = (fresh(gitrepo.remote).next_poll_at - database_now()).total_seconds()
            assert 500 < wait < 700
        assert fresh(other.remote).consecutive_failures == 0
        assert fresh(same.remote).consecutive_failures == 0
