"""The delivery stage with the directory driver and real folders, from what is wanted to what users see."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_django import Settings

from repos import deliveries, registration
from repos.leases import database_now
from repos.models import Bundle, Cluster, Counter, Delivery, DeliveryRecord, GitRepo, Revision
from tests.core import delivery_of, expire, fresh, is_due, later, register, synced
from tests.workers.deliver.targets import MemoryBundle, shown
from workers.content import Bundle as Content
from workers.content import BundleUnavailable
from workers.deliver import outcome
from workers.deliver.session import claim_deliveries, deliver

pytestmark = pytest.mark.django_db
State, Outcome = Delivery.State, DeliveryRecord.Outcome
Files = dict[str, bytes]


class Shelf:
    """Bundles by name."""

    def __init__(self) -> None:
        self.contents: dict[str, MemoryBundle] = {}

    def put(self, files: Files) -> str:
        content = MemoryBundle(dict(files))
        self.contents[content.sha256] = content
        return content.sha256

    @contextlib.contextmanager
    def open(self, sha256: str) -> Iterator[Content]:
        if sha256 not in self.contents:
            raise BundleUnavailable("the bundle is gone")
        yield self.contents[sha256]


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def place(tmp_path: Path, settings: Settings) -> Path:
    """Where the cluster prod-eu shows what is delivered."""
    settings.DELIVERY_DIRECTORY_ROOT = str(tmp_path / "clusters")
    settings.DELIVERY_TIMEOUT = 20.0
    Cluster.objects.create(name="prod-eu", settings={"path": str(tmp_path / "clusters" / "eu")})
    return tmp_path / "clusters" / "eu"


@pytest.fixture
def gitrepo(place: Path) -> GitRepo:
    return register(targets=[{"cluster": "prod-eu"}])


def want(gitrepo: GitRepo, shelf: Shelf, files: Files) -> Revision:
    """A new revision with this content, wanted at every matched cluster."""
    revision = synced(gitrepo)
    found, _ = Bundle.objects.get_or_create(
        sha256=shelf.put(files), defaults={"size_bytes": 1, "files": len(files), "last_used_at": database_now()}
    )
    revision.bundle = found
    revision.save()
    row = fresh(gitrepo)
    deliveries.want(row, revision, deliveries.matched_clusters(row), database_now())
    return revision


def claimed() -> Delivery:
    [row] = claim_deliveries(5)
    return row


ONE: Files = {"app.yaml": b"one"}
TWO: Files = {"app.yaml": b"two"}


# -- one delivery at a time ----------------------------------------------------------------------------------------


def test_tries_come_slower_and_slower_and_one_good_one_ends_them(
    gitrepo: GitRepo, shelf: Shelf, place: Path, settings: Settings
) -> None:
    settings.GITREPO_POLLING_JITTER = 0.0
    place.parent.mkdir(parents=True)
    place.write_text("a file is in the way")
    want(gitrepo, shelf, ONE)
    waits = []
    for _ in range(3):
        Delivery.objects.update(**Delivery.due_in(later(-1), 0))
        deliver(claimed(), shelf.open)
        waits.append(delivery_of(gitrepo).wait_seconds)
    assert waits == [2, 4, 8]
    assert DeliveryRecord.objects.get().outcome == Outcome.FAILED

    place.unlink()
    Delivery.objects.update(**Delivery.due_in(later(-1), 0))
    deliver(claimed(), shelf.open)

    row = delivery_of(gitrepo)
    assert (row.state, row.failures, row.last_error, shown(place)) == (State.APPLIED, 0, "", ONE)
    assert DeliveryRecord.objects.get().outcome == Outcome.DELIVERED


def test_superseded_while_it_is_applied_is_due_again(gitrepo: GitRepo, shelf: Shelf, place: Path) -> None:
    want(gitrepo, shelf, ONE)
    row = claimed()
    newer = want(gitrepo, shelf, TWO)

    deliver(row, shelf.open)

    stored = delivery_of(gitrepo)
    assert (stored.state, stored.applied_sequence, stored.sequence) == (State.WAITING, 1, 2)
    assert is_due(stored) and stored.lease_token is None
    deliver(claimed(), shelf.open)
    assert shown(place) == TWO
    assert delivery_of(gitrepo).applied_revision == newer


def test_a_failure_of_what_was_superseded_is_no_failure_of_the_newer(gitrepo: GitRepo, shelf: Shelf) -> None:
    want(gitrepo, shelf, ONE)
    row = claimed()
    want(gitrepo, shelf, TWO)

    outcome.failed(row, "disk", "disk full")

    stored = delivery_of(gitrepo)
    assert (stored.state, stored.failures, stored.last_error) == (State.WAITING, 0, "")
    assert is_due(stored)


def test_match_unmatch_match_while_a_worker_is_frozen_ends_with_the_content_there(
    gitrepo: GitRepo, shelf: Shelf, place: Path
) -> None:
    want(gitrepo, shelf, ONE)
    frozen = claimed()
    expire(frozen)
    registration.edit(gitrepo.pk, {"targets": []})
    deliver(claimed(), shelf.open)
    assert shown(place) is None
    registration.edit(gitrepo.pk, {"targets": [{"cluster": "prod-eu"}]})
    deliver(claimed(), shelf.open)
    assert shown(place) == ONE

    deliver(frozen, shelf.open)

    assert shown(place) == ONE
    row = delivery_of(gitrepo)
    assert (row.state, row.sequence, row.applied_sequence, row.epoch) == (State.APPLIED, 3, 3, 0)
    assert Counter.objects.get(name="fenced_writes").value == 1


def test_a_frozen_removal_takes_nothing_away(gitrepo: GitRepo, shelf: Shelf, place: Path) -> None:
    want(gitrepo, shelf, ONE)
    deliver(claimed(), shelf.open)
    registration.edit(gitrepo.pk, {"targets": []})
    frozen = claimed()
    expire(frozen)
    registration.edit(gitrepo.pk, {"targets": [{"cluster": "prod-eu"}]})
    deliver(claimed(), shelf.open)

    deliver(frozen, shelf.open)

    assert shown(place) == ONE
    assert delivery_of(gitrepo).state == State.APPLIED


def test_content_that_is_to_stay_stays_however_late_a_worker_ends(gitrepo: GitRepo, shelf: Shelf, place: Path) -> None:
    registration.edit(gitrepo.pk, {"keep_resources": True})
    want(gitrepo, shelf, ONE)
    row = claimed()
    registration.edit(gitrepo.pk, {"targets": []})

    deliver(row, shelf.open)
    run_all(shelf)

    assert shown(place) == ONE
    assert delivery_of(gitrepo).state == State.KEPT


def run_all(shelf: Shelf) -> None:
    while rows := claim_deliveries(5):
        for row in rows:
            deliver(row, shelf.open)


def test_a_pause_lets_what_is_applied_end_and_starts_nothing(gitrepo: GitRepo, shelf: Shelf, place: Path) -> None:
    want(gitrepo, shelf, ONE)
    row = claimed()
    registration.edit(gitrepo.pk, {"paused": True})
    deliver(row, shelf.open)
    assert (shown(place), delivery_of(gitrepo).state) == (ONE, State.APPLIED)

    want(gitrepo, shelf, TWO)
    assert claim_deliveries(5) == []

    registration.edit(gitrepo.pk, {"paused": False})
    run_all(shelf)
    assert shown(place) == TWO


@pytest.mark.parametrize("resumed", [False, True], ids=["paused", "paused and resumed"])
def test_a_failure_during_a_pause(gitrepo: GitRepo, shelf: Shelf, resumed: bool) -> None:
    want(gitrepo, shelf, ONE)
    row = claimed()
    registration.edit(gitrepo.pk, {"paused": True})
    if resumed:
        registration.edit(gitrepo.pk, {"paused": False})

    outcome.failed(row, "disk", "disk full")

    stored = delivery_of(gitrepo)
    assert stored.state == State.FAILED
    assert (stored.due_at is not None) == resumed
