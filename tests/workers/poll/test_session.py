"""A poll session with the plain engine and real repositories, from the claim to the stored refs."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from django.db import connections
from django.db.models import F
from pytest_django import Settings

from repos import registration
from repos.leases import database_now
from repos.models import Credential, GitRepo, Host, Remote
from tests.core import MAIN, adopt_all, fresh, later, register
from tests.git_servers import GitServer, Repository, git_server
from workers.poll.claim import full_hosts
from workers.poll.engine import PollRequest, PollResult
from workers.poll.everything import RemoteEngine
from workers.poll.session import (
    BUSY_ROWS,
    FLUSH_SECONDS,
    LOOK_SECONDS,
    SLOW_SECONDS,
    URGENT_SECONDS,
    Session,
    SessionReport,
)

pytestmark = pytest.mark.django_db

Poll = Callable[..., SessionReport]


@pytest.fixture(autouse=True)
def files_are_allowed(settings: Settings, tmp_path: Path) -> None:
    settings.GIT_FILE_ROOT = str(tmp_path / "served")
    settings.DATA_DIR = tmp_path / "data"
    settings.GIT_ALLOW_HTTP = True
    settings.GIT_ALLOWED_NETWORKS = ["127.0.0.0/8"]


@pytest.fixture
def poll() -> Iterator[Poll]:
    """One session: poll(limit=50)."""
    engine = RemoteEngine(50)

    def run(*, limit: int = 50, budget: float = 20.0, stopping: Callable[[], bool] = lambda: False) -> SessionReport:
        report = Session(engine, limit=limit, budget_seconds=budget, stopping=stopping).run()
        assert engine.in_flight == 0
        return report

    yield run
    engine.close()


def repository(tmp_path: Path, name: str = "shop") -> Repository:
    made = Repository.make(tmp_path / "served" / f"{name}.git")
    made.commit({"deploy/app.yaml": name})
    return made


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    (tmp_path / "served").mkdir(exist_ok=True)
    with git_server(tmp_path / "served") as server:
        yield server


def test_what_is_due_is_polled_once_and_its_followers_get_its_head(poll: Poll, tmp_path: Path) -> None:
    repositories = [repository(tmp_path, f"r{number}") for number in range(6)]
    gitrepos = [register(f"r{number}", url=found.file_url) for number, found in enumerate(repositories)]

    assert poll(limit=2).polled == 6
    adopt_all()

    for gitrepo, found in zip(gitrepos, repositories, strict=True):
        row = fresh(gitrepo)
        assert row.observed_commit == found.head()
        assert row.remote.refs == {MAIN: found.head()}
        assert row.remote.next_poll_at > database_now() and row.remote.lease_token is None
    assert poll().polled == 0


def test_followers_of_one_remote_cost_one_poll(poll: Poll, tmp_path: Path) -> None:
    found = repository(tmp_path)
    found.commit({"a": "b"}, branch="dev")
    found.tag("v1.2.0", found.head())
    register("main", url=found.file_url)
    register("dev", url=found.file_url, branch="dev")
    register("head", url=found.file_url, branch="")
    register("release", url=found.file_url, branch="", semver=">=1.0.0")
    register("pinned", url=found.file_url, branch="", commit=found.head())

    assert poll().polled == 1
    adopt_all()

    observed = dict(GitRepo.objects.values_list("name", "observed_commit"))
    assert observed == {
        "main": found.head(),
        "dev": found.head("dev"),
        "head": found.head(),
        "release": found.head(),
        "pinned": found.head(),
    }


def test_a_missing_branch_is_the_gitrepos_and_not_the_remotes(poll: Poll, tmp_path: Path) -> None:
    gitrepo = register(url=repository(tmp_path).file_url, branch="gone")

    poll()
    adopt_all()

    row = fresh(gitrepo)
    assert (row.ref_failures, row.remote.consecutive_failures, row.remote.last_error) == (1, 0, "")
    assert "gone" in row.ref_error


def test_a_remote_that_is_not_there_is_an_error_and_backs_off(poll: Poll, tmp_path: Path) -> None:
    gitrepo = register(url=f"file://{tmp_path}/served/nowhere.git")

    assert poll().polled == 1

    remote = fresh(gitrepo.remote)
    assert remote.consecutive_failures == 1 and remote.last_error
    assert 15 < (remote.next_poll_at - database_now()).total_seconds() <= 33


def test_a_credential_that_cannot_be_read_is_an_error_of_its_own_remote(
    poll: Poll, tmp_path: Path, server: GitServer, settings: Settings
) -> None:
    good = repository(tmp_path)
    token = Credential.objects.create(name="team", kind="token", secret="s3cret")
    bad = register("bad", url=server.url(good), credential=token)
    register("good", url=good.file_url)
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]

    assert poll().polled == 2

    assert "ENCRYPTION_KEYS" in fresh(bad.remote).last_error
    assert fresh(bad.remote).lease_token is None
    assert fresh(GitRepo.objects.get(name="good").remote).consecutive_failures == 0


def test_a_server_that_hangs_holds_its_own_slot_and_nobody_elses(
    poll: Poll, tmp_path: Path, server: GitServer, settings: Settings
) -> None:
    settings.GIT_TIMEOUT = 4.0
    server.behaviour.hang_before = True
    hung = register("hung", url=server.url(repository(tmp_path, "hung")))
    for number in range(8):
        register(f"r{number}", url=repository(tmp_path, f"r{number}").file_url)
    started = database_now()

    assert poll(limit=3).polled == 9

    written = Remote.objects.exclude(pk=hung.remote_id).values_list("last_success_at", flat=True)
    assert all(at is not None and (at - started).total_seconds() < 4 for at in written)
    assert "GIT_TIMEOUT" in fresh(hung.remote).last_error


def test_no_host_is_asked_more_at_once_than_it_may(
    poll: Poll, tmp_path: Path, server: GitServer, settings: Settings
) -> None:
    settings.GIT_HOST_CONCURRENCY = 2
    server.behaviour.delay_seconds = 0.2
    for number in range(6):
        register(f"r{number}", url=server.url(repository(tmp_path, f"r{number}")))
    running = Watched(RemoteEngine(50), limit=50, budget_seconds=20, stopping=lambda: False)

    running.run()
    running.engine.close()

    assert running.polled == 6
    assert running.most == 2


def test_a_session_that_is_to_stop_claims_nothing_more_and_finishes_what_it_has(poll: Poll, tmp_path: Path) -> None:
    for number in range(4):
        register(f"r{number}", url=repository(tmp_path, f"r{number}").file_url)
    looks = iter([False])

    assert poll(limit=2, stopping=lambda: next(looks, True)).polled == 2

    assert Remote.objects.filter(lease_token__isnull=False).count() == 0
    assert Remote.objects.filter(next_poll_at__lte=database_now()).count() == 2


def test_what_hangs_when_it_is_to_stop_is_given_back_for_others(
    poll: Poll, tmp_path: Path, server: GitServer, settings: Settings
) -> None:
    settings.GIT_TIMEOUT, settings.STOP_GRACE = 60.0, 2.0
    server.behaviour.hang_before = True
    hung = register("hung", url=server.url(repository(tmp_path, "hung"))).remote
    good = register("good", url=repository(tmp_path, "good").file_url).remote
    Remote.objects.filter(pk=hung.pk).update(crashes=1)
    looks = iter([False])
    started = time.monotonic()

    poll(stopping=lambda: next(looks, True))

    assert 1 <= time.monotonic() - started < 2
    row = fresh(hung)
    assert (row.lease_token, row.lease_until, row.crashes, row.consecutive_failures) == (None, None, 1, 0)
    assert row.next_poll_at <= database_now()  # another worker asks at once
    assert fresh(good).last_success_at is not None
    server.behaviour.hang_before = False
    assert poll().polled == 1  # and the engine can be used again


def test_a_session_without_budget_does_nothing(poll: Poll, tmp_path: Path) -> None:
    register(url=repository(tmp_path).file_url)

    assert poll(budget=0.0).polled == 0


def test_what_lost_its_followers_after_it_was_due_costs_nothing(poll: Poll, tmp_path: Path) -> None:
    gitrepo = register(url=repository(tmp_path).file_url)
    registration.delete(gitrepo.pk)
    Remote.objects.update(next_poll_at=later(-1))

    assert poll().polled == 1

    assert fresh(gitrepo.remote).next_poll_at is None


@pytest.mark.django_db(transaction=True)
def test_an_edit_during_the_poll_is_answered_by_the_next_one(poll: Poll, tmp_path: Path, server: GitServer) -> None:
    found = repository(tmp_path)
    dev = found.commit({"b": "b"}, branch="dev")
    gitrepo = register(url=server.url(found))
    server.behaviour.delay_seconds = 0.5

    def edits() -> None:
        server.wait_for_request()
        registration.edit(gitrepo.pk, {"branch": "dev"})
        connections.close_all()

    thread = threading.Thread(target=edits)
    thread.start()
    polled = poll().polled
    thread.join()
    adopt_all()

    assert polled == 2  # the woken remote is due again at once
    assert fresh(gitrepo).observed_commit == dev
    assert [revision.commit for revision in fresh(gitrepo).revisions.all()] == [dev]


class OneByOne:
    """An engine that answers one request at a time, and does something once before the last one."""

    def __init__(self, seconds: float = 0.25) -> None:
        self.seconds = seconds
        self.requests: list[PollRequest] = []
        self.when_empty: Callable[[], object] = int

    @property
    def in_flight(self) -> int:
        return len(self.requests)

    def start(self, request: PollRequest) -> None:
        self.requests.append(request)

    def wait(self, timeout_seconds: float) -> list[PollResult]:
        if not self.requests:
            return []
        request = self.requests.pop(0)
        if not self.requests:
            self.when_empty()
            self.when_empty = int
        return [PollResult(request.key, self.seconds, {MAIN: "a" * 40})]

    def abandon(self) -> None:
        self.requests = []

    close = abandon


class Watched(Session):
    """Remembers how many each claim found, and how many were in flight at most."""

    most = 0

    def _claim(self, now: float) -> None:
        before = len(self.claimed)
        super()._claim(now)
        self.found = [*getattr(self, "found", []), len(self.claimed) - before]
        self.most = max(self.most, self.engine.in_flight)

    def _flush_if_time(self) -> None:
        before = self.polled
        super()._flush_if_time()
        if self.polled > before:
            self.written = [*getattr(self, "written", []), self.polled - before]


def watched(limit: int, engine: OneByOne | None = None) -> Watched:
    session = Watched(engine or OneByOne(), limit=limit, budget_seconds=20, stopping=lambda: False)
    session.run()
    return session


@pytest.mark.parametrize(("seconds", "found"), [(0.25, [10, 5, 5, 0, 0]), (0.001, [10, 9, 1, 0])])
def test_a_claim_waits_for_half_of_the_slots_and_for_nearly_all_where_answers_are_quick(
    seconds: float, found: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.poll.session.CLAIM_SECONDS", 1000.0)
    monkeypatch.setattr("workers.poll.session.LOOK_SECONDS", 1000.0)
    monkeypatch.setattr("workers.poll.session.AHEAD_ROUNDS", 0)
    # The last claim finds little, so that the session does not wait for more.
    for number in range(20):
        register(f"r{number}", url=f"https://git.example.com/r{number}.git")

    assert watched(10, OneByOne(seconds)).found == found


def test_slots_that_hang_do_not_count_among_those_that_come_back() -> None:
    for number in range(4):
        register(f"r{number}", url=f"https://git.example.com/r{number}.git")
    session = Session(OneByOne(), limit=4, budget_seconds=20, stopping=lambda: False)
    session._claim(0.0)
    session._collect(session.engine.wait(0)[0])
    now = time.monotonic()

    assert not session._has_room(now)
    assert session._has_room(now + SLOW_SECONDS + 1)  # the other three hang: one of one is free


def test_where_much_was_due_the_session_goes_on_with_what_is_due_next() -> None:
    gitrepos = [register(f"r{number}", url=f"https://git.example.com/r{number}.git") for number in range(BUSY_ROWS + 1)]
    late = Remote.objects.filter(pk=gitrepos[-1].remote_id)
    late.update(**Remote.due_in(database_now(), 3600))
    engine = OneByOne()
    engine.when_empty = lambda: late.update(**Remote.due_in(database_now(), 0.3))

    assert watched(50, engine).found == [BUSY_ROWS, 1, 0]


@pytest.mark.parametrize(("due", "is_busy"), [(BUSY_ROWS, True), (BUSY_ROWS - 1, False)])
def test_where_little_was_due_the_rest_is_left_to_the_next_tick(due: int, is_busy: bool) -> None:
    for number in range(due):
        register(f"r{number}", url=f"https://git.example.com/r{number}.git")
    session = Session(OneByOne(), limit=50, budget_seconds=20, stopping=lambda: False)

    session._claim(0.0)

    assert (session.busy_until > time.monotonic()) == is_busy


def test_somebody_who_waits_is_claimed_before_the_rest_is_due_for_it() -> None:
    gitrepo = register()
    session = Session(OneByOne(), limit=4, budget_seconds=20, stopping=lambda: False)
    now = time.monotonic()
    session.next_claim, session.next_look = now + 100, now
    assert session._is_time_to_claim(now)  # it never was polled, and somebody waits

    Remote.objects.filter(pk=gitrepo.remote_id).update(answered=1)
    session.next_look = now
    assert not session._is_time_to_claim(now)
    registration.force(gitrepo.pk)
    assert not session._is_time_to_claim(now)  # not with every turn
    assert session._is_time_to_claim(now + LOOK_SECONDS)


@pytest.mark.parametrize("is_awaited", [True, False])
def test_an_answer_that_somebody_waits_for_is_written_soon(is_awaited: bool) -> None:
    for number in range(2):
        register(f"r{number}", url=f"https://git.example.com/r{number}.git")
    Remote.objects.update(answered=0 if is_awaited else 1)
    session = Session(OneByOne(), limit=4, budget_seconds=20, stopping=lambda: False)
    session._claim(0.0)
    session._collect(session.engine.wait(0)[0])
    session.last_flush = time.monotonic() - (URGENT_SECONDS + FLUSH_SECONDS) / 2

    session._flush_if_time()

    assert bool(session.answers) != is_awaited


@pytest.mark.parametrize(("due_seconds", "is_left"), [(-5.0, True), (-0.001, False), (5.0, False)])
def test_what_a_claim_left_is_told_from_what_became_due_after_it(due_seconds: float, is_left: bool) -> None:
    remote = register().remote
    now = database_now()
    Remote.objects.filter(pk=remote.pk).update(**Remote.due_in(now, due_seconds))
    started = time.monotonic()

    found = full_hosts({remote.host_id})

    is_slow = time.monotonic() - started > 0.09  # a machine on which it became old meanwhile
    assert is_slow or found == ({remote.host_id} if is_left else set())


def test_what_a_silent_host_has_due_hurries_nobody(settings: Settings) -> None:
    """It is asked by one at a time, whatever becomes free."""
    host = register().remote.host_id
    Remote.objects.update(**Remote.due_in(database_now(), -60.0))
    assert (full_hosts({host}), full_hosts({host + 1})) == ({host}, set())
    Host.objects.update(failures=settings.GIT_HOST_BREAKER)
    assert full_hosts({host}) == set()


def test_a_slow_host_does_not_hide_a_full_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has due is always the oldest."""
    monkeypatch.setattr("workers.poll.claim.MOST_LEFT", 2)
    for number in range(2):
        register(f"slow-{number}", url=f"https://slow.example.com/{number}.git")
    Remote.objects.update(**Remote.due_in(database_now(), -100.0))
    fast = register("fast", url="https://fast.example.com/1.git").remote
    Remote.objects.filter(pk=fast.pk).update(**Remote.due_in(database_now(), -20.0))

    assert fast.host_id in full_hosts({fast.host_id})


def test_answers_are_written_together_while_more_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.poll.session.FLUSH_SECONDS", 1000.0)
    for number in range(12):
        register(f"r{number}", url=f"https://git.example.com/r{number}.git")
    Remote.objects.update(answered=F("wakes"))

    assert watched(1).written == [12]


def test_what_is_answered_when_nothing_more_may_be_claimed_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.poll.session.FLUSH_SECONDS", 1000.0)
    for number in range(4):
        register(f"r{number}", url=f"https://git.example.com/r{number}.git")
    Remote.objects.update(answered=F("wakes"))
    session = Watched(OneByOne(), limit=2, budget_seconds=20, stopping=lambda: False)
    session._claim(0.0)
    session.claim_until = 0.0

    assert session.run().polled == 2
    assert session.written == [2]
