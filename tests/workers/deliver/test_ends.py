"""The ends of a delivery beside applied and failed: held until approved, restored, without its bundle, deadly, deleted."""

import contextlib
import json
import time
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from pytest_django import Settings

from repos import registration
from repos.leases import claim, database_now
from repos.models import Cluster, Delivery, DeliveryRecord, Event, GitRepo, Revision, SyncJob
from tests.core import adopt_all, answered, delivery_of, expire, is_due, later, register, synced
from tests.workers.deliver.targets import MemoryBundle, shown
from tests.workers.deliver.test_session import (
    ONE,
    TWO,
    Files,
    Outcome,
    Shelf,
    State,
    claimed,
    gitrepo,
    place,
    run_all,
    shelf,
    want,
)
from tests.workers.deliver.test_whole_session import run
from workers.content import Bundle as Content
from workers.deliver import session
from workers.deliver.drivers import driver_for
from workers.deliver.drivers.base import Order
from workers.deliver.session import claim_deliveries, claim_suspect, deliver, target_of

__all__ = ["gitrepo", "place", "shelf"]


pytestmark = pytest.mark.django_db


# -- too much ------------------------------------------------------------------------------------------------------


MANY: Files = {f"{number}.yaml": b"x" for number in range(10)}
FEW: Files = {f"{number}.yaml": b"x" for number in range(3)}


def test_a_revision_that_would_remove_much_is_held_until_it_is_approved(
    gitrepo: GitRepo, shelf: Shelf, place: Path
) -> None:
    want(gitrepo, shelf, MANY)
    run_all(shelf)
    want(gitrepo, shelf, FEW)
    run_all(shelf)

    row = delivery_of(gitrepo)
    assert (row.state, row.due_at, shown(place)) == (State.HELD, None, MANY)
    assert "7 of 10" in row.last_error and "approve" in row.last_error
    assert DeliveryRecord.objects.get(revision=row.wanted_revision).outcome == Outcome.HELD

    assert registration.approve(gitrepo.pk) == 1
    run_all(shelf)
    assert (shown(place), delivery_of(gitrepo).state) == (FEW, State.APPLIED)


def test_an_approval_is_not_for_what_comes_later(gitrepo: GitRepo, shelf: Shelf, place: Path) -> None:
    want(gitrepo, shelf, MANY)
    run_all(shelf)
    want(gitrepo, shelf, FEW)
    run_all(shelf)
    registration.approve(gitrepo.pk)
    want(gitrepo, shelf, ONE)

    run_all(shelf)

    assert (shown(place), delivery_of(gitrepo).state) == (MANY, State.HELD)


def test_half_may_go_and_deleting_is_meant(gitrepo: GitRepo, shelf: Shelf, place: Path) -> None:
    want(gitrepo, shelf, MANY)
    run_all(shelf)
    want(gitrepo, shelf, {name: content for name, content in MANY.items() if name < "5"})
    run_all(shelf)
    assert delivery_of(gitrepo).state == State.APPLIED

    registration.delete(gitrepo.pk)
    run_all(shelf)

    assert shown(place) is None
    assert not GitRepo.objects.exists()


# -- other ends ----------------------------------------------------------------------------------------------------


def test_a_database_that_was_restored_goes_on_with_a_new_epoch(gitrepo: GitRepo, shelf: Shelf, place: Path) -> None:
    want(gitrepo, shelf, ONE)
    row = delivery_of(gitrepo)
    ahead = MemoryBundle({"app.yaml": b"of the future"})
    target = target_of(Delivery.objects.select_related("gitrepo", "cluster").get(pk=row.pk))
    driver_for("directory").apply(target, ahead, Order(0, 40), deadline=20)

    deliver(claimed(), shelf.open)
    stored = delivery_of(gitrepo)
    assert (stored.epoch, stored.state, is_due(stored)) == (1, State.WAITING, True)
    assert "restored" in stored.last_error
    assert Event.objects.filter(reason="TargetAhead").exists()

    run_all(shelf)
    assert shown(place) == ONE
    assert (delivery_of(gitrepo).applied_epoch, delivery_of(gitrepo).applied_sequence) == (1, 1)


def test_a_bundle_that_is_gone_is_asked_for_again(gitrepo: GitRepo, shelf: Shelf) -> None:
    revision = want(gitrepo, shelf, ONE)
    shelf.contents.clear()

    deliver(claimed(), shelf.open)

    job = SyncJob.objects.get(revision=revision)
    assert job.state == SyncJob.State.PENDING and is_due(job)
    stored = delivery_of(gitrepo)
    assert (stored.state, stored.failures) == (State.FAILED, 1)
    assert stored.due_at is not None


def test_a_bundle_that_is_gone_takes_no_newer_revision_back(gitrepo: GitRepo, shelf: Shelf) -> None:
    """What the delivery wants is older than the revision that changed nothing: the newer one's job makes it again."""
    older = want(gitrepo, shelf, ONE)
    unchanged = synced(gitrepo)
    Revision.objects.filter(pk=unchanged.pk).update(bundle=older.bundle)
    shelf.contents.clear()

    deliver(claimed(), shelf.open)

    assert SyncJob.objects.get(revision=unchanged).state == SyncJob.State.PENDING
    assert SyncJob.objects.get(revision=older).state == SyncJob.State.SUCCEEDED


def test_a_job_that_waits_makes_it_anyway(gitrepo: GitRepo, shelf: Shelf) -> None:
    revision = want(gitrepo, shelf, ONE)
    shelf.contents.clear()
    answered(gitrepo.remote, {"refs/heads/main": "b" * 40})
    adopt_all()

    deliver(claimed(), shelf.open)

    assert SyncJob.objects.get(revision=revision).state == SyncJob.State.SUCCEEDED
    assert SyncJob.objects.filter(state=SyncJob.State.PENDING).count() == 1


def test_a_worker_that_lost_its_lease_asks_for_nothing(gitrepo: GitRepo, shelf: Shelf) -> None:
    revision = want(gitrepo, shelf, ONE)
    shelf.contents.clear()
    row = claimed()
    expire(row)
    claimed()

    deliver(row, shelf.open)

    assert SyncJob.objects.get(revision=revision).state == SyncJob.State.SUCCEEDED


def test_secrets_that_cannot_be_read_are_said(gitrepo: GitRepo, shelf: Shelf, settings: Settings) -> None:
    cluster = Cluster.objects.get()
    cluster.secrets = json.dumps({"token": "s3cret"})
    cluster.save()
    want(gitrepo, shelf, ONE)
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]

    deliver(claimed(), shelf.open)

    assert "ENCRYPTION_KEYS" in delivery_of(gitrepo).last_error


def test_a_driver_that_does_not_exist_is_said(gitrepo: GitRepo, shelf: Shelf) -> None:
    Cluster.objects.update(driver="carrier-pigeon")
    want(gitrepo, shelf, ONE)

    deliver(claimed(), shelf.open)

    assert "carrier-pigeon" in delivery_of(gitrepo).last_error


def test_what_is_not_known_is_a_failure_like_others_and_shows_nothing_of_it(gitrepo: GitRepo, shelf: Shelf) -> None:
    want(gitrepo, shelf, ONE)

    def bad(_: str) -> contextlib.AbstractContextManager[Content]:
        raise RuntimeError("token=s3cret")

    deliver(claimed(), bad)

    stored = delivery_of(gitrepo)
    assert stored.state == State.FAILED and "log" in stored.last_error and "s3cret" not in stored.last_error


def died(times: int) -> None:
    """What is due was claimed so many times by workers that ended without a word."""
    for _ in range(times):
        for row in claim(Delivery, limit=9, seconds=30):
            expire(row)


def test_a_delivery_that_kills_its_workers_is_shown_and_slowed_down(
    gitrepo: GitRepo, shelf: Shelf, place: Path
) -> None:
    want(gitrepo, shelf, ONE)
    died(times=3)
    assert claim_deliveries(5) == []

    [row] = claim_suspect()

    stored = delivery_of(gitrepo)
    assert (stored.state, stored.failures, stored.crashes) == (State.FAILED, 3, 3)
    assert "ended the worker that tried it 3 times" in stored.last_error == DeliveryRecord.objects.get().error
    assert stored.due_at is not None and 300 < (stored.due_at - database_now()).total_seconds() <= 330
    assert Event.objects.get(reason="Quarantined").gitrepo == gitrepo
    expire(row)
    assert claim_suspect() == []  # not before the cap is over
    Delivery.objects.update(**Delivery.due_in(later(-1), 0))
    [row] = claim_suspect()
    deliver(row, shelf.open)
    assert shown(place) == ONE
    stored = delivery_of(gitrepo)
    assert (stored.state, stored.failures, stored.crashes, stored.last_error) == (State.APPLIED, 0, 0, "")


@pytest.mark.django_db(transaction=True)
def test_a_delivery_on_probation_is_tried_with_nothing_beside_it(
    gitrepo: GitRepo, shelf: Shelf, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want(gitrepo, shelf, ONE)
    died(times=2)
    others = [register(f"other{number}", targets=[{"cluster": "prod-eu"}]) for number in range(3)]
    for other in others:
        want(other, shelf, TWO)
    running: set[int] = set()
    beside: list[set[int]] = []
    original = session.deliver

    def watched(delivery: Delivery, open_bundle: session.OpenBundle) -> None:
        running.add(delivery.gitrepo_id)
        beside.append(set(running))
        if delivery.gitrepo_id == gitrepo.pk:
            time.sleep(1)  # some looks of the session's loop
        original(delivery, open_bundle)
        running.discard(delivery.gitrepo_id)

    monkeypatch.setattr(session, "deliver", watched)

    assert run(shelf) == 4

    assert beside[0] == {gitrepo.pk}
    assert not any(gitrepo.pk in others for others in beside[1:])
    assert set(Delivery.objects.values_list("state", flat=True)) == {State.APPLIED}


def test_a_gitrepo_that_is_gone_when_its_delivery_ends(gitrepo: GitRepo, shelf: Shelf, place: Path) -> None:
    registration.edit(gitrepo.pk, {"keep_resources": True})
    want(gitrepo, shelf, ONE)
    row = claimed()
    registration.delete(gitrepo.pk)
    assert not GitRepo.objects.exists()

    deliver(row, shelf.open)

    assert shown(place) == ONE
    assert not Delivery.objects.exists()


def test_deleted_and_registered_again_the_new_one_has_the_name(gitrepo: GitRepo, shelf: Shelf, place: Path) -> None:
    """In whatever order the removal of the old and the delivery of the new one come."""
    want(gitrepo, shelf, ONE)
    run_all(shelf)
    registration.delete(gitrepo.pk)
    again = register(targets=[{"cluster": "prod-eu"}])
    want(again, shelf, TWO)
    removal, delivery = sorted(claim_deliveries(5), key=lambda row: not row.removal)

    deliver(delivery, shelf.open)
    deliver(removal, shelf.open)

    assert shown(place) == TWO
    assert list(GitRepo.objects.values_list("pk", flat=True)) == [again.pk]
