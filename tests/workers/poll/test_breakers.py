"""A host that answers nothing is asked by one poll at a time, and followed again soon when it answers."""

from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from repos.leases import database_now
from repos.models import Event, Host, Remote
from tests.core import MAIN, A, expire, fresh, later, register
from workers.poll.claim import ClaimedRemote, claim_remotes, claim_suspect
from workers.poll.engine import PollError, PollResult
from workers.poll.results import store

pytestmark = pytest.mark.django_db
DEAD, ALIVE = "dead.example.com", "alive.example.com"


@pytest.fixture(autouse=True)
def breaker(settings: Settings) -> None:
    settings.GIT_HOST_BREAKER = 3


def remotes(host: str, count: int) -> list[Remote]:
    return [register(f"{host[0]}{n}", url=f"https://{host}/{n}.git").remote for n in range(count)]


def host(name: str = DEAD) -> Host:
    return Host.objects.get(name=name)


def end(claims: list[ClaimedRemote], cause: str = "") -> None:
    error = PollError(cause, "no answer") if cause else None
    store([(claim, PollResult(claim.remote.pk, 0.1, {} if error else {MAIN: A}, error)) for claim in claims])


def due_now(**which: Any) -> None:
    Remote.objects.filter(**which).update(**Remote.due_in(later(-1), 0))


def opened(count: int = 8) -> list[Remote]:
    """DEAD has `count` remotes, and its breaker is open."""
    made = remotes(DEAD, count)
    end(claim_remotes(3), "timeout")
    due_now()
    return made


def test_it_opens_and_says_so() -> None:
    remotes(DEAD, 8)
    end(claim_remotes(2), "timeout")
    assert (host().failures, Event.objects.filter(reason="HostSilent").count()) == (2, 0)
    assert host().failing_since is not None
    since = host().failing_since

    end(claim_remotes(1), "network")

    assert (host().failures, host().failing_since) == (3, since)
    event = Event.objects.get(reason="HostSilent")
    assert DEAD in event.message and event.type == Event.Type.WARNING


def test_while_it_is_open_one_at_a_time_is_asked_by_all_workers() -> None:
    opened()
    remotes(ALIVE, 5)

    first = claim_remotes(50)

    assert sum(claim.remote.host == host() for claim in first) == 1
    assert sum(claim.remote.host == host(ALIVE) for claim in first) == 5
    assert claim_remotes(50) == []
    end(first, "timeout")
    assert len([claim for claim in claim_remotes(50) if claim.remote.host == host()]) == 1


def test_hosts_that_are_open_never_fill_a_batch() -> None:
    opened(20)
    remotes(ALIVE, 2)
    due_now(host=host())
    Remote.objects.filter(host=host()).update(next_poll_at=later(-1000))

    claims = claim_remotes(3)

    assert sorted(claim.remote.host.name for claim in claims) == [ALIVE, ALIVE, DEAD]


def test_an_open_host_that_is_being_asked_takes_no_place_in_a_batch() -> None:
    opened()
    assert len(claim_remotes(50)) == 1
    Remote.objects.filter(host=host(), lease_until__isnull=True).update(next_poll_at=later(-1000))
    remotes(ALIVE, 1)

    assert [claim.remote.host.name for claim in claim_remotes(1)] == [ALIVE]


def test_a_suspect_of_an_open_host_waits_its_turn_too() -> None:
    made = opened()
    Remote.objects.filter(pk=made[7].pk).update(crashes=1, lease_until=later(-1))
    [probe] = claim_remotes(50)

    assert claim_suspect() == []
    expire(probe.remote)
    assert len(claim_suspect()) == 1


def test_the_first_answer_closes_it_and_its_remotes_are_followed_again_soon(settings: Settings) -> None:
    settings.GITREPO_POLLING_INTERVAL = 15.0
    made = opened()
    Remote.objects.filter(host=host()).update(
        consecutive_failures=5, health_changed_at=later(-1), **Remote.due_in(later(0), 280)
    )
    broken = made.pop()
    Remote.objects.filter(pk=broken.pk).update(health_changed_at=later(-2 * settings.GITREPO_BACKOFF_CAP))
    [patient] = remotes(ALIVE, 1)
    Remote.objects.filter(pk=patient.pk).update(consecutive_failures=5, **Remote.due_in(later(0), 280))
    due_now(pk=made[0].pk)
    [probe] = claim_remotes(50)

    end([probe])

    assert (host().failures, host().failing_since) == (0, None)
    assert DEAD in Event.objects.get(reason="HostAnswers").message
    waits = [(fresh(row).next_poll_at - database_now()).total_seconds() for row in made[1:]]
    assert all(wait <= 15 for wait in waits) and max(waits) > 5  # soon, and not all at the same moment
    for other in (patient, broken):
        assert (fresh(other).next_poll_at - database_now()).total_seconds() > 200
    due_now()
    assert len(claim_remotes(50)) == 9


def test_the_answers_that_close_it_are_those_of_a_living_host() -> None:
    opened()
    for cause in ("tls", "internal"):
        end(claim_remotes(50), cause)
        due_now()
        assert host().failures == 3

    end(claim_remotes(50), "not-found")

    assert host().failures == 0


def test_one_in_quarantine_is_not_recalled() -> None:
    made = opened()
    Remote.objects.filter(pk=made[1].pk).update(
        consecutive_failures=5, crashes=3, lease_until=later(-1), **Remote.due_in(later(0), 280)
    )

    end(claim_remotes(1))

    assert (fresh(made[1]).next_poll_at - database_now()).total_seconds() > 200


def test_a_healthy_hosts_row_is_not_written() -> None:
    remotes(ALIVE, 3)
    claims = claim_remotes(50)

    with CaptureQueriesContext(
        connection,
    ) as queries:
        end(claims)

    assert not [query for query in queries if "UPDATE" in query["sql"] and "repos_host" in query["sql"].split("SET")[0]]
    assert not [query for query in queries if "FOR" in query["sql"] and 'FROM "repos_host"' in query["sql"]]


def test_a_remote_that_was_not_asked_says_nothing() -> None:
    made = opened()
    made[0].gitrepos.update(deleted_at=later(0))
    Remote.objects.exclude(pk=made[0].pk).update(next_poll_at=later(60))

    [claim] = claim_remotes(50)
    assert claim.follows == ()
    end([claim])

    assert host().failures == 3
