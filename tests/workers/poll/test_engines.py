"""What engines say of real git servers, well and unwell: the one that speaks everything, and git alone, which is right."""

import base64
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pytest_django import Settings

from tests.git_servers import GitServer, Repository, git_server
from workers.git_environment import RemoteAccess
from workers.poll.engine import Engine, PollRequest, PollResult
from workers.poll.everything import RemoteEngine
from workers.poll.loop import LoopEngine
from workers.poll.plain import ask_git, parse_refs

ROOT = Path(__file__).resolve().parents[3]
MAIN = "refs/heads/main"
SECRET = "t0p-s3cret-value"

Ask = Callable[..., PollResult]


@pytest.fixture(autouse=True)
def run_folder(settings: Settings, tmp_path: Path) -> Path:
    settings.DATA_DIR = tmp_path / "data"
    return tmp_path / "data" / "run"


@pytest.fixture(params=["everything", "git"])
def engine(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Engine]:
    settings.GIT_ALLOWED_NETWORKS = ["127.0.0.0/8"]
    engine = RemoteEngine(50) if request.param == "everything" else LoopEngine(ask_git)
    yield engine
    engine.close()


@pytest.fixture
def git() -> Iterator[Engine]:
    engine = LoopEngine(ask_git)
    yield engine
    engine.close()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = Repository.make(tmp_path / "served" / "shop.git")
    repository.commit({"a": "a"})
    return repository


@pytest.fixture
def server(tmp_path: Path, repository: Repository) -> Iterator[GitServer]:
    with git_server(tmp_path / "served", username="git", password=SECRET) as server:
        yield server


def request(
    url: str, *refs: str, key: int = 1, timeout: float = 20.0, max_refs: int = 1000, **access: str
) -> PollRequest:
    return PollRequest(key, RemoteAccess(url, **access), refs or (MAIN,), timeout, max_refs)  # type: ignore[arg-type]


def collect(engine: Engine, *, seconds: float = 40.0) -> dict[int, PollResult]:
    results: dict[int, PollResult] = {}
    end = time.monotonic() + seconds
    while engine.in_flight and time.monotonic() < end:
        results.update({result.key: result for result in engine.wait(0.5)})
    assert not engine.in_flight
    return results


@pytest.fixture
def ask(engine: Engine) -> Ask:
    def call(url: str, *refs: str, **more: object) -> PollResult:
        engine.start(request(url, *refs, **more))  # type: ignore[arg-type]
        return collect(engine)[1]

    return call


@pytest.fixture
def open_server(tmp_path: Path, repository: Repository) -> Iterator[GitServer]:
    """Everybody may read."""
    with git_server(tmp_path / "served") as server:
        yield server


def group_members(marker: str) -> list[int]:
    """The processes whose environment has `marker`."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if marker.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


# -- what it says --------------------------------------------------------------------------------------------------


def test_it_gives_the_commit_of_what_was_asked_for(ask: Ask, open_server: GitServer, repository: Repository) -> None:
    result = ask(open_server.url(repository), MAIN, "HEAD", "refs/heads/absent")

    assert result.error is None
    assert result.refs[MAIN] == result.refs["HEAD"] == repository.head()
    assert "refs/heads/absent" not in result.refs
    assert 0 < result.seconds < 20


def test_an_annotated_tag_stands_for_its_commit(ask: Ask, open_server: GitServer, repository: Repository) -> None:
    commit = repository.head()
    repository.tag("v1.0.0", commit, message="a release")
    repository.tag("v1.1.0", commit)

    result = ask(open_server.url(repository), "refs/tags/*")

    assert result.refs == {"refs/tags/v1.0.0": commit, "refs/tags/v1.1.0": commit}
    assert ask(open_server.url(repository), "refs/tags/v1.0.0").refs == {"refs/tags/v1.0.0": commit}


def test_an_empty_repository_has_no_refs_and_no_error(ask: Ask, open_server: GitServer, tmp_path: Path) -> None:
    empty = Repository.make(tmp_path / "served" / "empty.git")

    result = ask(open_server.url(empty), "HEAD", MAIN)

    assert (result.refs, result.error) == ({}, None)


def test_a_server_without_protocol_two(ask: Ask, open_server: GitServer, repository: Repository) -> None:
    open_server.protocol_v2 = False

    assert ask(open_server.url(repository)).refs == {MAIN: repository.head()}


def test_a_local_repository(ask: Ask, repository: Repository) -> None:
    assert ask(repository.file_url).refs == {MAIN: repository.head()}


def test_sha256(ask: Ask, tmp_path: Path) -> None:
    repository = Repository.make(tmp_path / "served" / "long.git", object_format="sha256")
    commit = repository.commit({"a": "a"})

    assert len(commit) == 64
    assert ask(repository.file_url).refs == {MAIN: commit}


def test_parsing_believes_whole_lines_only() -> None:
    a, b = "a" * 40, "b" * 40
    output = (
        f"{a}\t{MAIN}\n"
        f"{b}\trefs/tags/v1\n{a}\trefs/tags/v1^{{}}\n"
        f"warning: something\n{a[:39]}\trefs/heads/short\n\n"
        f"{b}\trefs/heads/main\u2028x\n"
    )
    assert parse_refs(output.encode()) == {MAIN: a, "refs/tags/v1": a, f"{MAIN}\u2028x": b}


# -- credentials ---------------------------------------------------------------------------------------------------


def test_a_right_credential(ask: Ask, server: GitServer, repository: Repository) -> None:
    result = ask(server.url(repository), kind="basic", username="git", secret=SECRET)

    assert result.refs == {MAIN: repository.head()}


@pytest.mark.parametrize("secret", ["wr0ng-s3cret", ""], ids=["wrong", "none"])
def test_a_wrong_credential_is_said_and_not_shown(
    ask: Ask, server: GitServer, repository: Repository, secret: str
) -> None:
    access = {"kind": "basic", "username": "git", "secret": secret} if secret else {}

    error = ask(server.url(repository), **access).error

    assert error is not None and error.cause == "authentication"
    assert not secret or secret not in error.message
    assert base64.b64encode(f"git:{secret}".encode()).decode() not in error.message


def test_no_secret_stands_in_an_argument_list(
    git: Engine, server: GitServer, repository: Repository, run_folder: Path
) -> None:
    server.behaviour.hang_before = True
    engine = git
    engine.start(request(server.url(repository), kind="basic", username="git", secret=SECRET, timeout=3.0))
    engine.wait(0.1)
    end = time.monotonic() + 2
    children: list[int] = []
    while not server.log and time.monotonic() < end:
        engine.wait(0.05)
    children = group_members(str(run_folder))
    assert len(children) >= 2  # git and its helper for http

    pair = base64.b64encode(f"git:{SECRET}".encode())
    for pid in children:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert SECRET.encode() not in arguments and pair not in arguments
        assert b"127.0.0.1" not in arguments or b"remote-http" in arguments
    collect(engine)


def test_an_access_that_contradicts_itself_starts_nothing(ask: Ask, repository: Repository) -> None:
    error = ask(repository.file_url, kind="basic", secret=SECRET).error

    assert error is not None and error.cause == "credential" and SECRET not in error.message


# -- servers that are unwell ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (401, "authentication"),
        (403, "refused"),
        (404, "not-found"),
        (429, "rate-limit"),
        (500, "server"),
        (502, "server"),
    ],
)
def test_what_a_status_means(ask: Ask, open_server: GitServer, repository: Repository, status: int, cause: str) -> None:
    open_server.behaviour.status = status

    error = ask(open_server.url(repository)).error

    assert error is not None and error.cause == cause, error
    assert error.message


def test_a_login_page_is_not_an_empty_repository(ask: Ask, open_server: GitServer, repository: Repository) -> None:
    open_server.behaviour.body = b"<html>Please sign in</html>"

    result = ask(open_server.url(repository))

    assert result.error is not None and result.error.cause == "not-git" and result.refs == {}


def test_a_missing_branch_is_missing(ask: Ask, open_server: GitServer, repository: Repository) -> None:
    for protocol_v2 in (True, False):
        open_server.protocol_v2 = protocol_v2
        assert ask(open_server.url(repository), "refs/heads/absent").error is None


def test_nobody_at_home(ask: Ask) -> None:
    error = ask("http://127.0.0.1:9/x.git").error

    assert error is not None and error.message


def test_more_refs_than_allowed_are_refused(ask: Ask, open_server: GitServer, repository: Repository) -> None:
    for number in range(12):
        repository.tag(f"v1.0.{number}", repository.head())

    error = ask(open_server.url(repository), "refs/tags/*", max_refs=10).error

    assert error is not None and error.cause == "limit" and "GIT_MAX_REFS" in error.message


def test_an_answer_without_end_is_cut_off(engine: Engine, open_server: GitServer, repository: Repository) -> None:
    commit = repository.head()
    lines = "".join(f"{commit} refs/tags/v{number:06}\n" for number in range(20_000))
    (repository.folder / "packed-refs").write_text("# pack-refs with: peeled fully-peeled sorted \n" + lines)

    engine.start(request(open_server.url(repository), "refs/tags/*", max_refs=10))
    result = collect(engine)[1]

    assert result.error is not None and result.error.cause == "limit"
    assert result.seconds < 4  # the rest is not waited for


def test_a_server_that_hangs_is_left_at_the_deadline_with_nothing_behind(
    engine: Engine, open_server: GitServer, repository: Repository, run_folder: Path
) -> None:
    open_server.behaviour.hang_before = True
    started = time.monotonic()
    engine.start(request(open_server.url(repository), timeout=1.0))

    result = collect(engine)[1]

    assert 0.9 < time.monotonic() - started < 5
    assert result.error is not None and result.error.cause == "timeout" and "GIT_TIMEOUT" in result.error.message
    assert group_members(str(run_folder)) == []
    assert list(run_folder.glob("*")) == []


def test_a_server_that_stops_in_the_middle(
    engine: Engine, open_server: GitServer, repository: Repository, run_folder: Path
) -> None:
    open_server.behaviour.hang_after_bytes = 20
    engine.start(request(open_server.url(repository), timeout=1.0))

    result = collect(engine)[1]

    assert result.error is not None and result.error.cause == "timeout"
    assert group_members(str(run_folder)) == []


def test_ten_that_hang_delay_nobody(engine: Engine, tmp_path: Path, repository: Repository) -> None:
    """50 in flight, 10 of them to a server that says nothing."""
    with git_server(tmp_path / "served") as silent:
        silent.behaviour.hang_before = True
        for key in range(10):
            engine.start(request(silent.url(repository), key=key, timeout=8.0))
        started = time.monotonic()
        for key in range(10, 50):
            engine.start(request(repository.file_url, key=key))
        assert engine.in_flight == 50
        good: set[int] = set()
        while len(good) < 40:
            good |= {result.key for result in engine.wait(1.0)}
        assert time.monotonic() - started < 7.5
        assert good == set(range(10, 50))
        assert engine.in_flight == 10
        hung = collect(engine)
        assert {result.error.cause for result in hung.values() if result.error} == {"timeout"}


def test_closing_ends_everything_in_flight(open_server: GitServer, repository: Repository, run_folder: Path) -> None:
    engine = LoopEngine(ask_git)
    open_server.behaviour.hang_before = True
    for key in range(3):
        engine.start(request(open_server.url(repository), key=key))
    engine.wait(0.5)
    assert group_members(str(run_folder))

    engine.close()

    assert engine.in_flight == 0
    assert group_members(str(run_folder)) == []
    assert list(run_folder.glob("*")) == []


# Polls as a worker's child does, from its main thread.
POLLER = """
import os, sys
import django
django.setup()
from workers.git_environment import RemoteAccess
from workers.poll.engine import PollRequest
from workers.poll.loop import LoopEngine
from workers.poll.plain import ask_git

engine = LoopEngine(ask_git)
for key in range(3):
    engine.start(PollRequest(key, RemoteAccess(sys.argv[1]), ("refs/heads/main",), 100.0, 1000))
engine.wait(100)
"""


def test_a_worker_that_is_killed_takes_its_git_along(
    open_server: GitServer, repository: Repository, run_folder: Path
) -> None:
    open_server.behaviour.hang_before = True
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "fleetsync.settings",
        "DATA_DIR": str(run_folder.parent),
        "GIT_ALLOW_HTTP": "on",
        "GIT_ALLOWED_NETWORKS": "127.0.0.0/8",
    }
    marker = f"{run_folder}/"  # in what git is told, and not in what the worker is
    poller = subprocess.Popen([sys.executable, "-c", POLLER, open_server.url(repository)], env=environment, cwd=ROOT)
    try:
        end = time.monotonic() + 30
        while len(open_server.log) < 3 and time.monotonic() < end:
            time.sleep(0.02)
        assert len(group_members(marker)) >= 9  # of each poll its git, its transport, and the shell above them
    finally:
        poller.kill()
        poller.wait()

    end = time.monotonic() + 2
    while group_members(marker) and time.monotonic() < end:
        time.sleep(0.02)
    assert group_members(marker) == []


def test_waiting_for_nothing_takes_no_time(engine: Engine) -> None:
    started = time.monotonic()
    assert engine.wait(5) == []
    assert time.monotonic() - started < 1
