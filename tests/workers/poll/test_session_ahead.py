"""A poll session claims what its slots will soon have room for, and gives back what waits in vain."""

import time
import uuid
from dataclasses import replace

import pytest
from django.db.models import F

from repos.leases import database_now
from repos.models import Remote
from tests.core import fresh, later, register
from tests.workers.poll.test_session import OneByOne
from workers.poll.session import LONGEST_WAIT_SECONDS, URGENT_SECONDS, Session

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
    # As if it had waited for so long.
    session.waiting[0] = replace(waiting, begun=waiting.begun - 0.2)

    session._collect(session.engine.wait(0)[0])
    session._fill_slots()

    asked = session.claimed[waiting.remote.pk]
    assert 0.2 <= (asked.claimed_at - waiting.claimed_at).total_seconds() < 5
    assert asked.lag_seconds > waiting.lag_seconds
    assert len(session.waiting) == 1


def test_suspects_are_tried_one_after_the_other_without_turning_in_between() -> None:
    session = unasked(3, limit=2)
    suspects = Remote.objects.order_by("pk")[:2]
    Remote.objects.filter(pk__in=[remote.pk for remote in suspects]).update(crashes=2)
    session.found_more, session.next_claim = True, time.monotonic() + 100

    session._claim(0.0)

    # What was true of an earlier claim would keep the answer from being written, and the next claim from being made.
    assert session.holds_suspect and not session.found_more and session.next_claim <= time.monotonic()


def test_somebody_who_waits_is_asked_before_others_of_the_same_claim() -> None:
    session = unasked(6, limit=2)
    last = Remote.objects.order_by("next_poll_at").last()
    assert last is not None
    Remote.objects.filter(pk=last.pk).update(wakes=F("answered") + 1)
    session.answered_since_claim = 1000

    session._claim(0.0)

    assert last.pk in session.claimed


def test_what_waits_for_slots_in_vain_is_given_back_and_stays_due() -> None:
    session = unasked(6, limit=2)
    Remote.objects.update(crashes=1)
    session.answered_since_claim = 1000
    session._claim(0.0)
    assert leased_count() == 6

    session._fill_slots()
    assert leased_count() == 6  # not yet
    session.waiting[-1] = replace(session.waiting[-1], begun=time.monotonic() - LONGEST_WAIT_SECONDS - 1)
    session._fill_slots()

    assert (leased_count(), len(session.waiting), session.engine.in_flight) == (2, 0, 2)
    free = Remote.objects.filter(lease_token__isnull=True)
    assert set(free.values_list("crashes", "lease_until", "lease_owner")) == {(1, None, "")}
    assert all(due is not None and due <= database_now() for due in free.values_list("next_poll_at", flat=True))


def test_who_is_to_stop_asks_nothing_more_of_what_waits() -> None:
    session = unasked(6, limit=2)
    session.answered_since_claim = 1000
    session._claim(0.0)
    session.stopping = lambda: True

    session.run()

    assert (session.polled, leased_count(), len(session.waiting)) == (2, 0, 0)


def test_what_is_claimed_anew_is_asked_once_and_under_the_new_lease() -> None:
    session = unasked(2, limit=1)
    session.answered_since_claim = 1000
    session._claim(0.0)
    asked, waited = next(iter(session.claimed)), session.waiting[0].remote
    # As if frozen for longer than a lease, right before the next claim.
    Remote.objects.update(lease_until=later(-1))
    session.answered_since_claim = 1000

    session._claim(0.0)

    assert {w.remote.pk for w in session.waiting} == {pk for (pk,) in Remote.objects.values_list("pk")}
    tokens = {w.remote.lease_token for w in session.waiting}
    assert len(session.waiting) == 2 and waited.lease_token not in tokens
    session._fill_slots()
    session.limit = 3
    session._fill_slots()
    assert session.engine.in_flight == len(session.claimed) == 2  # a remote asked twice would be one more in flight
    again = Remote.objects.get(pk=asked)
    assert again.lease_token is None  # its question is on its way: the answer will be nobody's, and it is due


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

    session._give_back_waiting()

    assert leased_count() == 3 and fresh(Remote.objects.get(pk=theirs)).lease_token is not None


@pytest.mark.parametrize("is_full", [True, False])
def test_where_a_host_has_no_place_left_its_answers_do_not_wait_for_company(is_full: bool) -> None:
    session = unasked(3, limit=2)
    session._claim(0.0)
    [host] = {claimed.remote.host_id for claimed in session.claimed.values()}
    session.full_hosts = {host} if is_full else {host + 1}
    session._collect(session.engine.wait(0)[0])
    session.last_flush = time.monotonic() - URGENT_SECONDS * 1.5

    session._flush_if_time()

    assert (session.polled, leased_count()) == ((1, 1) if is_full else (0, 2))
