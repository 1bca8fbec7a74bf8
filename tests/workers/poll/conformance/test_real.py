"""Real Git servers of both protocols, over http and as files: the poller says what `git ls-remote` says, before and after
every change.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.git_servers import GitServer, Repository, git_server
from tests.workers.poll.conformance.answers import DEV, HEAD, MAIN, TAGS
from tests.workers.poll.conformance.case import conclusion, git_says
from tests.workers.poll.conformance.conftest import Ask

Change = Callable[[Repository], object]
ASKED = (HEAD, MAIN, DEV, "refs/heads/gone", TAGS)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    (tmp_path / "served").mkdir()
    with git_server(tmp_path / "served") as server:
        yield server


def start(tmp_path: Path, **options: str) -> Repository:
    repository = Repository.make(tmp_path / "served" / "shop.git", **options)
    repository.commit({"a": "a"})
    repository.commit({"a": "b"}, branch="dev")
    return repository


def packed(repository: Repository, lines: str) -> None:
    (repository.folder / "packed-refs").write_text("# pack-refs with: peeled fully-peeled sorted \n" + lines)


def thousands(repository: Repository) -> None:
    head = repository.head()
    packed(repository, "".join(f"{head} refs/tags/v{number:05}\n" for number in range(5005)))


def tags(repository: Repository) -> None:
    head = repository.head()
    repository.tag("light", head)
    repository.tag("annotated", head, message="a release")
    repository.tag("of-a-tag", "refs/tags/annotated", message="a tag of a tag")
    repository.tag("of-a-blob", repository.blob(b"no commit"))
    repository.tag("of-a-tree", f"{head}^{{tree}}", message="a tree")


def prefixes(repository: Repository) -> None:
    for name in ("main-2", "main.old", "maintenance", "dev-x", "m", "mai"):
        repository.git("branch", name, "dev")
    repository.tag("main", "dev")
    repository.git("update-ref", "refs/remotes/main", "dev")
    repository.git("update-ref", "refs/x/refs/heads/main", "dev")


def change(*arguments: str) -> Change:
    return lambda repository: repository.git(*arguments)


def commit(branch: str = "main") -> Change:
    return lambda repository: repository.commit({"a": "another"}, branch=branch)


CHANGES: dict[str, list[Change]] = {
    "a push": [commit()],
    "a push to each": [commit(), commit("dev")],
    "a branch that is deleted and made again": [change("branch", "-D", "dev"), commit("dev")],
    "HEAD renamed": [change("branch", "-m", "main", "trunk"), change("symbolic-ref", "HEAD", "refs/heads/trunk")],
    "HEAD at another branch": [change("symbolic-ref", "HEAD", DEV)],
    "HEAD detached": [change("update-ref", "--no-deref", "HEAD", "dev"), commit()],
    "HEAD not born": [change("symbolic-ref", "HEAD", "refs/heads/nowhere")],
    "tags of every kind": [tags],
    "a tag that is moved": [change("tag", "v1", "main"), change("tag", "-f", "v1", "dev")],
    "an annotated tag that is moved": [
        change("tag", "-a", "-m", "one", "v1", "main"), change("tag", "-f", "-a", "-m", "two", "v1", "dev"),
        change("tag", "-f", "v1", "main"),
    ],
    "a tag that is deleted": [change("tag", "v1", "main"), change("tag", "-d", "v1")],
    "names that begin alike": [prefixes],
    "thousands of tags": [thousands, commit()],
    "a forced push back": [commit(), change("update-ref", MAIN, "main~1")],
    "a branch that is another's name": [change("symbolic-ref", "refs/heads/gone", MAIN)],
    "hidden refs": [change("config", "transfer.hideRefs", "refs/heads/dev")],
    "packed refs": [tags, change("pack-refs", "--all"), commit()],
    "everything deleted": [change("branch", "-D", "dev"), change("update-ref", "-d", MAIN)],
}  # fmt: skip


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("protocol_v2", [True, False], ids=["v2", "v0"])
def test_it_says_what_git_says(
    changes: list[Change], protocol_v2: bool, ask: Ask, server: GitServer, tmp_path: Path
) -> None:
    repository = start(tmp_path)
    server.protocol_v2 = protocol_v2
    url = server.url(repository)
    for step in [None, *changes, None]:
        if step is not None:
            step(repository)
        expected = git_says(url, ASKED)
        assert expected is not None
        for place in (url, repository.file_url):
            assert conclusion(ask(place, *ASKED, max_refs=10_000), ASKED) == expected


@pytest.mark.parametrize("protocol_v2", [True, False], ids=["v2", "v0"])
def test_sha256(protocol_v2: bool, ask: Ask, server: GitServer, tmp_path: Path) -> None:
    repository = start(tmp_path, object_format="sha256")
    server.protocol_v2 = protocol_v2
    tags(repository)
    for place in (server.url(repository), repository.file_url):
        for _ in range(2):
            said = conclusion(ask(place, *ASKED), ASKED)
            assert said == git_says(place, ASKED)
            assert isinstance(said, dict) and len(said[MAIN]) == 64


def test_an_empty_repository_and_its_first_push(ask: Ask, server: GitServer, tmp_path: Path) -> None:
    repository = Repository.make(tmp_path / "served" / "empty.git")
    for protocol_v2 in (True, False):
        server.protocol_v2 = protocol_v2
        assert conclusion(ask(server.url(repository), *ASKED), ASKED) == git_says(server.url(repository), ASKED) == {}
    server.protocol_v2 = True
    head = repository.commit({"a": "a"})
    assert ask(server.url(repository), *ASKED).refs == {HEAD: head, MAIN: head}


def test_a_repository_made_anew_with_the_other_hash(ask: Ask, server: GitServer, tmp_path: Path) -> None:
    repository = start(tmp_path)
    url = server.url(repository)
    assert len(ask(url).refs[MAIN]) == 40
    repository.folder.rename(tmp_path / "old.git")
    start(tmp_path, object_format="sha256")
    assert ask(url).refs == git_says(url, [MAIN])
    assert len(ask(url).refs[MAIN]) == 64


def test_version_2_withdrawn_and_given_again(ask: Ask, server: GitServer, tmp_path: Path) -> None:
    repository = start(tmp_path)
    url = server.url(repository)
    for protocol_v2 in (True, False, True, False, False, True, True):
        server.protocol_v2 = protocol_v2
        head = repository.commit({"a": "more"})
        server.log.clear()
        assert ask(url).refs == {MAIN: head}
        assert len(server.log) <= 3


def test_a_repository_that_goes_and_comes_back(ask: Ask, server: GitServer, tmp_path: Path) -> None:
    repository = start(tmp_path)
    url, before = server.url(repository), repository.folder
    assert ask(url).refs == {MAIN: repository.head()}
    before.rename(tmp_path / "away.git")
    assert conclusion(ask(url), [MAIN]) == "not-found"
    assert git_says(url, [MAIN]) is None
    (tmp_path / "away.git").rename(before)
    assert ask(url).refs == {MAIN: repository.head()}


@contextmanager
def plain_files(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A web server that knows nothing of Git: its address, and what it was asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, code: object = "-", size: object = "-") -> None:
            asked.append(f"{self.command} {self.path}")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Quiet."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}", asked
    finally:
        http.shutdown()
        http.server_close()


def test_plain_files_are_left_to_git(ask: Ask, tmp_path: Path) -> None:
    repository = start(tmp_path)
    tags(repository)
    repository.git("update-server-info")
    with plain_files(tmp_path / "served") as (address, asked):
        url = f"{address}/shop.git"
        for _ in range(3):
            expected = git_says(url, ASKED)
            asked.clear()
            assert conclusion(ask(url, *ASKED), ASKED) == expected
            assert expected is not None and expected[MAIN] == repository.head()
            assert not any(line.startswith("POST") for line in asked)
            repository.commit({"a": "more"})
            repository.git("update-server-info")
        # Found out once: then only git asks.
        assert sum("info/refs" in line for line in asked) == 1


def test_plain_files_of_which_some_are_missing(ask: Ask, tmp_path: Path) -> None:
    """A folder that `git update-server-info` was never run in is no repository to anybody."""
    start(tmp_path)
    with plain_files(tmp_path / "served") as (address, _):
        assert git_says(f"{address}/shop.git", [MAIN]) is None
        assert conclusion(ask(f"{address}/shop.git"), [MAIN]) == "not-found"


def test_a_server_that_learns_the_protocol(ask: Ask, tmp_path: Path) -> None:
    repository = start(tmp_path)
    repository.git("update-server-info")
    with plain_files(tmp_path / "served") as (address, _):
        assert ask(f"{address}/shop.git").refs == {MAIN: repository.head()}
        port = int(address.rpartition(":")[2])
    with git_server(tmp_path / "served", port=port) as server:
        for _ in range(2):
            repository.commit({"a": "more"})
            assert ask(f"{address}/shop.git").refs == {MAIN: repository.head()}
        assert server.log
