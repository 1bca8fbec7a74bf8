"""A poll session claims what its slots will soon have room for, and gives back what waits in vain."""

import time
import uuid
from dataclasses import replace

import pytest
from django.db.models import F

from repos.leases import database_now
from repos.models import Remote
from tests.core import fresh, register
from tests.workers.poll.test_session import OneByOne
from workers.poll.session import LONGEST_WAIT_SECONDS, Session

pytestmark = pytest.mark.django_db


def unasked(count: int, limit: int) -> Session:
    """A session that has claimed nothing, and so many remotes that are due."""
    for number in range(count):
        register(f"r{number}", url=f"https://git.example.com/r{number}.git")
    Remote.objects.update(answered=F("wakes"))
    return Session(OneByOne(), limit=limit, budget_seconds=20, stopping=lambda: False)


def leased_count() -> int:
    return Remote.objects.filter(lease_token__isnull=False).count()


@pytest.mark.parametrize(("answered", "claimed"), [(0, 2), (5, 6), (1000, 8)])
def test_a_claim_takes_as_many_more_as_slots_came_back_lately(answered: int, claimed: int) -> None:
    session = unasked(20, limit=2)
    session.last_claim, session.answered_since_claim = time.monotonic() - 0.5, answered

    session._claim(0.0)

    assert (leased_count(), session.engine.in_flight) == (claimed, 2)


def test_what_was_claimed_ahead_is_asked_in_turn_and_counts_from_then() -> None:
    session = unasked(4, limit=2)
    session.answered_since_claim = 1000
    session._claim(0.0)
    waiting = session.waiting[0]
    time.sleep(0.2)

    session._collect(session.engine.wait(0)[0])
    session._fill_slots()

    asked = session.claimed[waiting.remote.pk]
    assert 0.2 <= (asked.claimed_at - waiting.claimed_at).total_seconds() < 5
    assert asked.lag_seconds > waiting.lag_seconds
    assert len(session.waiting) == 1


def test_somebody_who_waits_is_asked_before_others_of_the_same_claim() -> None:
    session = unasked(6, limit=2)
    last = Remote.objects.order_by("next_poll_at").last()
    assert last is not None
    Remote.objects.filter(pk=last.pk).update(wakes=F("answered") + 1)
    session.answered_since_claim = 1000

    session._claim(0.0)

    assert last.pk in session.claimed


@pytest.mark.parametrize("stops", [True, False])
def test_what_waits_for_slots_in_vain_is_given_back_and_stays_due(stops: bool) -> None:
    session = unasked(6, limit=2)
    Remote.objects.update(crashes=1)
    session.answered_since_claim = 1000
    session._claim(0.0)
    assert leased_count() == 6

    session._fill_slots()
    assert leased_count() == 6  # not yet
    if stops:
        session.stopping = lambda: True
    else:
        session.waiting[-1] = replace(session.waiting[-1], begun=time.monotonic() - LONGEST_WAIT_SECONDS - 1)
    session._fill_slots()

    assert (leased_count(), len(session.waiting), session.engine.in_flight) == (2, 0, 2)
    free = Remote.objects.filter(lease_token__isnull=True)
    assert set(free.values_list("crashes", "lease_until", "lease_owner")) == {(1, None, "")}
    assert all(due is not None and due <= database_now() for due in free.values_list("next_poll_at", flat=True))


def test_who_was_frozen_asks_nothing_of_what_waited_though_there_is_a_slot() -> None:
    session = unasked(4, limit=2)
    session.answered_since_claim = 1000
    session._claim(0.0)
    session.waiting[-1] = replace(session.waiting[-1], begun=time.monotonic() - LONGEST_WAIT_SECONDS - 1)
    session._collect(session.engine.wait(0)[0])

    session._fill_slots()

    assert (session.engine.in_flight, len(session.waiting), leased_count()) == (1, 0, 2)


def test_what_somebody_else_holds_meanwhile_is_not_given_back() -> None:
    session = unasked(6, limit=2)
    session.answered_since_claim = 1000
    session._claim(0.0)
    theirs = session.waiting[-1].remote.pk
    Remote.objects.filter(pk=theirs).update(lease_token=uuid.uuid4())
    session.stopping = lambda: True

    session._fill_slots()

    assert leased_count() == 3 and fresh(Remote.objects.get(pk=theirs)).lease_token is not None
