"""A whole delivery session with its threads: caps, renewing, deadlines."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_django import Settings

from repos import registration
from repos.leases import database_now
from repos.models import Cluster, Counter, Delivery, DeliveryRecord, Event, GitRepo
from tests.core import delivery_of, later, register
from tests.workers.deliver.targets import shown
from tests.workers.deliver.test_session import ONE, TWO, Outcome, Shelf, State, gitrepo, place, shelf, want
from workers.content import Bundle as Content
from workers.deliver.session import claim_deliveries, run_session

__all__ = ["gitrepo", "place", "shelf"]


pytestmark = pytest.mark.django_db


def run(shelf: Shelf) -> int:
    Delivery.objects.filter(due_at__isnull=False).update(**Delivery.due_in(later(-1), 0))
    return run_session(shelf.open, budget_seconds=10, stopping=lambda: False)


@pytest.mark.django_db(transaction=True)
def test_what_is_wanted_is_what_users_see(gitrepo: GitRepo, shelf: Shelf, place: Path) -> None:
    revision = want(gitrepo, shelf, ONE)

    assert run(shelf) == 1

    assert shown(place) == ONE
    row = delivery_of(gitrepo)
    assert (row.state, row.due_at, row.lease_token, row.failures) == (State.APPLIED, None, None, 0)
    assert (row.applied_revision, row.applied_bundle, row.applied_sequence) == (revision, revision.bundle, 1)
    assert DeliveryRecord.objects.get().outcome == Outcome.DELIVERED
    assert Counter.objects.get(name="deliveries", label="result=applied").value == 1
    assert Counter.objects.filter(name="push_to_applied_seconds", label="count").exists()
    assert run(shelf) == 0


@pytest.mark.django_db(transaction=True)
def test_the_newest_wins_and_an_unmatched_cluster_loses_its_content(
    gitrepo: GitRepo, shelf: Shelf, place: Path
) -> None:
    want(gitrepo, shelf, ONE)
    want(gitrepo, shelf, TWO)
    run(shelf)
    assert shown(place) == TWO
    outcomes = list(DeliveryRecord.objects.order_by("revision__number").values_list("outcome", flat=True))
    assert outcomes == [Outcome.SUPERSEDED, Outcome.DELIVERED]

    registration.edit(gitrepo.pk, {"targets": []})
    run(shelf)

    assert shown(place) is None
    assert (delivery_of(gitrepo).state, delivery_of(gitrepo).applied_bundle) == (State.REMOVED, None)


@pytest.mark.django_db(transaction=True)
def test_a_slow_cluster_gets_no_more_workers_than_its_share(place: Path, shelf: Shelf, settings: Settings) -> None:
    settings.DELIVERY_CLUSTER_CONCURRENCY = 2
    for number in range(5):
        want(register(f"r{number}", targets=[{"cluster": "prod-eu"}]), shelf, ONE)
    lock, running, most = threading.Lock(), 0, 0

    @contextlib.contextmanager
    def slowly(sha256: str) -> Iterator[Content]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            threading.Event().wait(0.1)
            with shelf.open(sha256) as content:
                yield content
        finally:
            with lock:
                running -= 1

    assert run_session(slowly, budget_seconds=20, stopping=lambda: False) == 5

    assert most == 2
    assert not Delivery.objects.exclude(state=State.APPLIED).exists()


@pytest.mark.django_db(transaction=True)
def test_one_clusters_fault_is_its_own(gitrepo: GitRepo, shelf: Shelf, place: Path) -> None:
    Cluster.objects.create(name="broken", settings={"path": "/proc/nowhere"})
    registration.edit(gitrepo.pk, {"targets": [{"cluster": "prod-eu"}, {"cluster": "broken"}]})
    want(gitrepo, shelf, ONE)

    assert run(shelf) == 2

    assert shown(place) == ONE
    bad = Delivery.objects.get(cluster__name="broken")
    assert (bad.state, bad.failures) == (State.FAILED, 1)
    assert bad.last_error and bad.due_at is not None and bad.due_at > database_now()
    assert Event.objects.get(reason="DeliveryFailed").message.startswith("broken: ")


@pytest.mark.django_db(transaction=True)
def test_a_session_renews_what_takes_longer_than_its_lease(gitrepo: GitRepo, shelf: Shelf, settings: Settings) -> None:
    settings.DELIVERY_LEASE = 1.5
    want(gitrepo, shelf, ONE)
    token: list[object] = []

    @contextlib.contextmanager
    def slowly(sha256: str) -> Iterator[Content]:
        threading.Event().wait(3)
        token.append(Delivery.objects.get().lease_token)
        assert claim_deliveries(5) == []
        with shelf.open(sha256) as content:
            yield content

    assert run_session(slowly, budget_seconds=10, stopping=lambda: False) == 1

    assert delivery_of(gitrepo).state == State.APPLIED and token != [None]
