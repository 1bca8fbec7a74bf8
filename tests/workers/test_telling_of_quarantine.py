"""Telling of a quarantine locks the GitRepo first, as all ends do: nobody waits in a circle, and a GitRepo may be purged."""

import threading
import time
from collections.abc import Callable

import pytest
from django.db import connection, connections, transaction

from repos.leases import database_now
from repos.models import Counter, Delivery, DeliveryRecord, Event, GitRepo
from tests.core import A, cluster, observed, open_job, register, synced
from workers import sync
from workers.deliver import outcome

pytestmark = pytest.mark.django_db
postgresql_only = pytest.mark.skipif("not __import__('tests.core').core.is_postgresql()", reason="PostgreSQL's locks")
Outcome = DeliveryRecord.Outcome
Tell = Callable[[], None]


def a_delivery(gitrepo: GitRepo) -> Tell:
    """Telling of a delivery that waits, with its line in the ledger."""
    prod, revision = cluster(), synced(gitrepo)
    Delivery.objects.create(gitrepo=gitrepo, cluster=prod, wanted_revision=revision, crashes=3)
    DeliveryRecord.objects.create(revision=revision, cluster=prod, wanted_at=database_now())
    delivery = Delivery.objects.select_related("cluster").get()
    return lambda: outcome.tell_of_quarantine(delivery, database_now())


def a_removal(gitrepo: GitRepo) -> Tell:
    """Telling of a delivery without a line in the ledger."""
    Delivery.objects.create(gitrepo=gitrepo, cluster=cluster(), removal=True, crashes=3)
    delivery = Delivery.objects.select_related("cluster").get()
    return lambda: outcome.tell_of_quarantine(delivery, database_now())


def a_job(gitrepo: GitRepo) -> Tell:
    observed(gitrepo, A)
    job = open_job(gitrepo)
    return lambda: sync._tell_of_quarantine(job, database_now())


WHAT = pytest.mark.parametrize("what", [a_delivery, a_removal, a_job], ids=lambda what: what.__name__)


def meanwhile(tell: Tell, act: Callable[[], object], gitrepo: GitRepo) -> list[Exception]:
    """What `tell` raised, which waits for a lock while `act` is done by somebody who has the GitRepo locked."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            tell()
        except Exception as error:  # noqa: BLE001  (the test looks at it)
            errors.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    try:
        with transaction.atomic():
            GitRepo.objects.select_for_update(of=("self",)).get(pk=gitrepo.pk)
            thread.start()
            wait_until_somebody_waits()
            act()
    finally:
        thread.join(timeout=20)
    assert not thread.is_alive()
    return errors


def wait_until_somebody_waits() -> None:
    """Until a statement on this database waits for a lock."""
    end = time.monotonic() + 10
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    while True:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_stat_clear_snapshot()")
            cursor.execute(sql)
            if cursor.fetchone()[0]:
                return
        assert time.monotonic() < end
        time.sleep(0.02)


@WHAT
def test_it_is_told(what: Callable[[GitRepo], Tell]) -> None:
    gitrepo = register(targets=[{"cluster": "prod-eu"}])
    what(gitrepo)()

    event = Event.objects.get(reason="Quarantined")
    assert (event.gitrepo, event.type) == (gitrepo, "Warning")
    assert Counter.objects.get(label="result=crashed").value == 1
    outcomes = set(DeliveryRecord.objects.values_list("outcome", flat=True))
    assert outcomes == ({Outcome.FAILED} if what is a_delivery else set())


@WHAT
def test_of_a_gitrepo_that_is_gone_there_is_no_event(what: Callable[[GitRepo], Tell]) -> None:
    gitrepo = register(targets=[{"cluster": "prod-eu"}])
    tell = what(gitrepo)
    gitrepo.delete()

    tell()

    assert not Event.objects.filter(reason="Quarantined").exists()
    assert Counter.objects.get(label="result=crashed").value == 1


@postgresql_only
@pytest.mark.django_db(transaction=True)
@WHAT
def test_a_gitrepo_that_is_purged_meanwhile_is_no_fault(what: Callable[[GitRepo], Tell]) -> None:
    gitrepo = register(targets=[{"cluster": "prod-eu"}])
    tell = what(gitrepo)

    assert meanwhile(tell, gitrepo.delete, gitrepo) == []

    assert not Event.objects.filter(reason="Quarantined").exists()
    assert Counter.objects.get(label="result=crashed").value == 1


@postgresql_only
@pytest.mark.django_db(transaction=True)
def test_who_has_the_gitrepo_and_comes_to_its_records_does_not_wait_in_a_circle() -> None:
    gitrepo = register(targets=[{"cluster": "prod-eu"}])
    tell = a_delivery(gitrepo)
    superseded = {"outcome": Outcome.SUPERSEDED, "ended_at": database_now()}

    assert meanwhile(tell, lambda: DeliveryRecord.objects.update(**superseded), gitrepo) == []

    assert DeliveryRecord.objects.get().outcome == Outcome.SUPERSEDED
    assert Event.objects.filter(reason="Quarantined", gitrepo=gitrepo).exists()
