"""What a poll's answer does beyond its own row: hosts that ask to wait, and heads that come back."""

import pytest
from pytest_django import Settings

from repos import registration
from repos.models import Credential, GitRepo, HostNotBefore, Remote
from repos.remotes import PATIENCE_SECONDS
from tests.core import MAIN, A, B, adopt_all, fresh, later, register
from tests.workers.poll.test_results import broken, claimed, remote, same_host, says, waits
from workers.poll.claim import claim_remotes

__all__ = ["remote"]


pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def no_jitter(settings: Settings) -> None:
    settings.GITREPO_POLLING_JITTER = 0.0


# -- patience ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retry_after", "waits_for"),
    [
        pytest.param(120.0, 120, id="as asked"),
        pytest.param(None, PATIENCE_SECONDS, id="a minute without a word"),
        pytest.param(10**9, 3600, id="an hour at most"),
    ],
)
def test_a_host_that_wants_patience_gets_it_from_all_of_that_credential(
    remote: Remote, retry_after: float | None, waits_for: float
) -> None:
    claim = claimed()
    neighbour = same_host("neighbour")
    elsewhere = register("elsewhere", url="https://elsewhere.example.com/x.git").remote

    broken(claim, cause="rate-limit", retry_after_seconds=retry_after)

    assert waits(remote) == pytest.approx(waits_for + (15 if waits_for > 300 else 0), abs=2)
    assert waits_for - 2 < waits(neighbour) < waits_for + 15
    assert waits(elsewhere) <= 0
    assert fresh(neighbour).wait_seconds == pytest.approx(waits(neighbour), abs=2)


def test_after_its_patience_a_host_is_not_asked_for_all_at_once(remote: Remote, settings: Settings) -> None:
    claim = claimed()
    neighbours = [same_host(f"neighbour-{number}") for number in range(20)]

    broken(claim, cause="server", retry_after_seconds=60.0)

    waiting = sorted(waits(neighbour) for neighbour in neighbours)
    assert waiting[0] > 58 and 60 + settings.GITREPO_POLLING_INTERVAL * 0.8 < waiting[-1] < 76
    assert len({round(seconds) for seconds in waiting}) == 10


def test_a_wake_does_not_break_the_patience(remote: Remote) -> None:
    broken(claimed(), cause="rate-limit", retry_after_seconds=90.0)

    registration.force(GitRepo.objects.get().pk)

    assert waits(remote) == pytest.approx(90, abs=2)


def test_a_good_answer_of_a_neighbour_does_not_break_it(remote: Remote) -> None:
    """Both were in flight when the host lost its patience."""
    same_host("neighbour")
    Remote.objects.update(next_poll_at=later(-1))
    first, second = claim_remotes(5)
    broken(first, cause="rate-limit", retry_after_seconds=90.0)

    says(second, {MAIN: A})

    assert waits(second.remote) == pytest.approx(90, abs=2)


def test_one_that_was_forgotten_is_put_off_by_its_claim(remote: Remote) -> None:
    HostNotBefore.objects.create(host=remote.host, until=later(50))

    assert claim_remotes(5) == []

    assert 48 < waits(remote) < 50 + 15
    assert fresh(remote).lease_token is None


def test_a_longer_patience_is_not_made_shorter(remote: Remote) -> None:
    broken(claimed(), cause="rate-limit", retry_after_seconds=200.0)
    HostNotBefore.objects.update(until=later(200))
    Remote.objects.update(next_poll_at=later(-1))
    HostNotBefore.objects.all().delete()
    claim = claim_remotes(5)[0]
    HostNotBefore.objects.create(host=remote.host, until=later(200))

    broken(claim, cause="rate-limit", retry_after_seconds=10.0)

    assert waits(remote) == pytest.approx(200, abs=2)


def test_one_that_asks_for_long_comes_after_those_that_it_put_off(remote: Remote, settings: Settings) -> None:
    settings.GITREPO_POLLING_INTERVAL, settings.GITREPO_BACKOFF_CAP = 15.0, 300.0
    broken(claimed(), cause="server", retry_after_seconds=900.0)
    assert waits(remote) == pytest.approx(915, abs=2)


def test_another_credential_is_another_account(remote: Remote) -> None:
    token = Credential.objects.create(name="team", kind="token", secret="x")
    claim = claimed()
    other = same_host("other", credential=token)

    broken(claim, cause="rate-limit", retry_after_seconds=90.0)

    assert waits(other) <= 0


# -- heads that come back ------------------------------------------------------------------------------------------


@pytest.fixture
def moved(remote: Remote) -> Remote:
    """It had A, then B."""
    for commit in (A, B):
        says(claimed(), {MAIN: commit})
        adopt_all()
    return remote


def head() -> str:
    return GitRepo.objects.get().observed_commit


def test_a_head_that_comes_back_is_believed_when_the_next_poll_says_so_again(moved: Remote) -> None:
    says(claimed(), {MAIN: A})
    adopt_all()
    assert head() == B

    says(claimed(), {MAIN: A})
    adopt_all()
    assert head() == A


def test_a_replica_that_lags_behind_is_no_revert(moved: Remote) -> None:
    says(claimed(), {MAIN: A})
    says(claimed(), {MAIN: B})
    adopt_all()

    assert head() == B
    assert GitRepo.objects.get().latest_revision == 2


def test_whoever_waits_for_an_answer_waits_for_the_second_word(moved: Remote) -> None:
    registration.force(GitRepo.objects.get().pk)

    says(claimed(), {MAIN: A})

    assert fresh(moved).answered < fresh(moved).wakes
    assert waits(moved) <= 2
    says(claimed(), {MAIN: A})
    adopt_all()
    assert head() == A
    assert not GitRepo.objects.filter(handled_force=0).exists()


def test_heads_that_come_and_go_at_every_poll_keep_nobody_waiting(moved: Remote) -> None:
    """Two replicas that disagree about two branches."""
    register("dev", branch="dev")
    dev = "refs/heads/dev"
    for refs in ({MAIN: B, dev: A}, {MAIN: B, dev: B}):
        says(claimed(), refs)
        adopt_all()
    registration.force(GitRepo.objects.get(name="shop").pk)

    for turn in range(3):
        says(claimed(), {MAIN: (A, B)[turn % 2], dev: (B, A)[turn % 2]})
        adopt_all()

    assert GitRepo.objects.get(name="shop").handled_force == 1
