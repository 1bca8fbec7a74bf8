"""A remote that kills whoever asks it, in a batch of many: it ends up alone, shown, and tried once in the cap."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_django import Settings

from repos import registration
from repos.leases import claimable, database_now
from repos.models import Counter, Event, GitRepo, Remote
from tests.core import expire, fresh, later, register
from tests.git_servers import Repository
from workers.poll.claim import claim_remotes, claim_suspect
from workers.poll.engine import PollRequest, PollResult
from workers.poll.session import Session

pytestmark = pytest.mark.django_db
MANY = 12
CAP = 300.0


class Killed(BaseException):
    """What SIGKILL is to a process: nothing is written after it."""


class Engine:
    """Answers each remote with no refs; the poison ends the process. Remembers how many were in flight with each."""

    def __init__(self, poison: str) -> None:
        self.poison = poison
        # Looks for results that the poison takes before it kills.
        self.patience = 0
        self.requests: list[PollRequest] = []
        self.asked: list[str] = []
        self.beside_poison: list[int] = []

    @property
    def in_flight(self) -> int:
        return len(self.requests)

    def start(self, request: PollRequest) -> None:
        self.requests.append(request)
        self.asked.append(request.access.url)

    def wait(self, timeout_seconds: float) -> list[PollResult]:
        if any(request.access.url == self.poison for request in self.requests):
            if self.patience:
                self.patience -= 1
                time.sleep(timeout_seconds)
                return []
            self.beside_poison.append(len(self.requests) - 1)
            raise Killed
        requests, self.requests = self.requests, []
        return [PollResult(request.key, 0.01, {"refs/heads/main": "a" * 40}) for request in requests]

    def abandon(self) -> None:
        self.requests = []

    def close(self) -> None:
        self.requests = []


@pytest.fixture(autouse=True)
def cap(settings: Settings, tmp_path: Path) -> Iterator[None]:
    settings.GITREPO_BACKOFF_CAP = CAP
    settings.GIT_FILE_ROOT = str(tmp_path)
    yield


@pytest.fixture
def poison(tmp_path: Path) -> Remote:
    """The remote that kills, in the middle of MANY that do not."""
    remotes = []
    for number in range(MANY + 1):
        Repository.make(tmp_path / f"r{number}.git")
        remotes.append(register(f"r{number}", url=f"file://{tmp_path}/r{number}.git").remote)
    return remotes[MANY // 2]


def session(engine: Engine) -> bool:
    """One session; whether it lived. If not, its leases run out."""
    try:
        Session(engine, limit=50, budget_seconds=20, stopping=lambda: False).run()
    except Killed:
        engine.close()
        for remote in Remote.objects.filter(lease_until__isnull=False):
            expire(remote)
        return False
    return True


def others(poison: Remote) -> "list[Remote]":
    return list(Remote.objects.exclude(pk=poison.pk))


def test_only_two_crashes_touch_the_others_and_all_of_them_are_followed_after_that(poison: Remote) -> None:
    engine = Engine(poison.url)

    lived = [session(engine) for _ in range(6)]

    # Twice with all of them, once alone, once more alone as it went into quarantine.
    assert lived == [False, False, False, False, True, True]
    assert engine.beside_poison == [MANY, MANY, 0, 0]
    for remote in others(poison):
        assert (remote.crashes, remote.consecutive_failures, remote.last_error) == (0, 0, "")
        assert remote.last_success_at is not None and engine.asked.count(remote.url) == 3


def test_nothing_is_claimed_while_a_suspect_is_held(poison: Remote) -> None:
    engine = Engine(poison.url)
    Remote.objects.filter(pk=poison.pk).update(crashes=1, lease_until=later(-1))
    engine.patience = 6

    assert not session(engine)

    assert engine.beside_poison == [0] and engine.asked == [poison.url]


def test_the_poison_is_shown_and_tried_once_in_the_cap(poison: Remote) -> None:
    engine = Engine(poison.url)
    for _ in range(4):
        session(engine)

    row = fresh(poison)
    assert "ended the worker that tried it 3 times" in row.last_error
    assert (row.consecutive_failures, row.crashes) == (3, 3)
    assert CAP * 0.95 < (row.next_poll_at - database_now()).total_seconds() <= CAP * 1.1
    assert row.health_changed_at is not None
    assert Event.objects.get(reason="Quarantined").remote == poison
    assert Counter.objects.get(name="polls", label="result=crashed").value == 1

    for _ in range(3):
        assert session(engine)
    Remote.objects.filter(pk=poison.pk).update(**Remote.due_in(later(-1), 0))
    assert [session(engine) for _ in range(3)] == [False, True, True]
    assert (fresh(poison).crashes, fresh(poison).consecutive_failures) == (4, 4)
    assert engine.beside_poison == [MANY, MANY, 0, 0, 0]


def test_one_good_end_makes_it_a_normal_one(poison: Remote) -> None:
    engine = Engine(poison.url)
    for _ in range(4):
        session(engine)
    Remote.objects.filter(pk=poison.pk).update(**Remote.due_in(later(-1), 0))

    assert session(Engine("nobody"))

    row = fresh(poison)
    assert (row.crashes, row.consecutive_failures, row.last_error) == (0, 0, "")
    assert (row.next_poll_at - database_now()).total_seconds() <= 15 * 1.1
    assert Event.objects.filter(reason="PollRecovered", remote=poison).exists()
    Remote.objects.filter(pk=poison.pk).update(**Remote.due_in(later(-1), 0))
    assert [claimed.remote.pk for claimed in claim_remotes(50)] == [poison.pk]


def test_a_webhook_that_rings_all_the_time_ends_no_more_workers(poison: Remote) -> None:
    engine = Engine(poison.url)
    for _ in range(4):
        session(engine)

    registration.ask(GitRepo.objects.get(remote=poison).pk)

    assert session(engine)
    row = fresh(poison)
    assert row.wakes > row.answered  # and the next try answers it
    Remote.objects.filter(pk=poison.pk).update(**Remote.due_in(later(-1), 0))
    assert session(Engine("nobody"))
    assert fresh(poison).answered == fresh(poison).wakes


def test_a_suspect_is_work_for_the_tick(poison: Remote) -> None:
    engine = Engine(poison.url)
    for _ in range(3):
        session(engine)

    assert poison in Remote.objects.filter(claimable(Remote, database_now()))


def test_a_suspect_whose_host_asked_for_patience_stays_one(poison: Remote) -> None:
    engine = Engine(poison.url)
    for _ in range(2):
        session(engine)
    Remote.objects.exclude(pk=poison.pk).update(**Remote.not_due())
    poison.host.not_before.create(until=later(60))

    assert claim_suspect() == []

    row = fresh(poison)
    assert (row.crashes, row.lease_token) == (2, None)
    assert 50 < (row.next_poll_at - database_now()).total_seconds() <= 75


def test_suspects_that_answer_slowly_leave_time_for_the_others(poison: Remote) -> None:
    """Probation is a part of the budget: when it is over, the session goes on with what is no suspect."""
    engine = Engine("nobody")
    Remote.objects.exclude(pk=poison.pk).update(crashes=1, lease_until=later(-1))
    running = Session(engine, limit=50, budget_seconds=20, stopping=lambda: False)
    running.probation_until = running.started

    assert running.run().polled == 1

    assert engine.asked == [poison.url]
