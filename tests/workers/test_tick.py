"""The tick rings for what is due and unleased, and for nothing else."""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from celery import current_app
from django.db import connection, transaction
from django.db.models import F, Q
from pytest_django import Settings

from fleetsync.redis import redis_client
from repos import doorbells
from repos.leases import Leased, claim, database_now
from repos.models import Adoption, Cluster, Delivery, Remote, SyncJob
from tests.core import A, cluster, later, observed, register
from tests.fleetsync.conftest import RedisServer
from workers.tasks import prune
from workers.tick import STAGES, due_count, polls_to_ring, tick

pytestmark = pytest.mark.django_db


@pytest.fixture
def broker(settings: Settings) -> Iterator[RedisServer]:
    """A real Redis. Not below tmp_path: a socket's path has 107 bytes at most."""
    with TemporaryDirectory(prefix="fleetsync-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        redis_client.cache_clear()
        settings.REDIS_URL = server.url
        yield server
        redis_client.cache_clear()
        server.stop()


@pytest.fixture
def sent(broker: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Messages go to the Redis of this test: Celery has read its settings long before."""
    monkeypatch.setenv("CELERY_BROKER_URL", broker.url)
    app: Any = current_app
    app._pool = app.amqp._producer_pool = None
    yield
    app._pool = app.amqp._producer_pool = None


def waiting(broker: RedisServer) -> dict[str, int]:
    lengths = {queue: int(broker.client.llen(queue)) for queue in STAGES}
    return {queue: length for queue, length in lengths.items() if length}


def all_done() -> None:
    for model in (Remote, Adoption, SyncJob, Delivery, Cluster):
        model._default_manager.update(**model.not_due())


@pytest.mark.parametrize("queue", list(STAGES))
def test_each_stage_is_rung_for_its_own_rows(queue: str, broker: RedisServer, sent: None) -> None:
    gitrepo = register()
    observed(gitrepo, A)
    Delivery.objects.create(gitrepo=gitrepo, cluster=cluster())
    all_done()
    broker.client.flushall()
    assert tick() == {}

    for model in STAGES[queue][0]:
        model._default_manager.update(**model.due_in(later(-5), 0))

    assert tick() == {queue: 1}
    assert waiting(broker) == {queue: 1}


@pytest.mark.parametrize(
    ("due_seconds_ago", "is_awaited", "is_polled", "rung"),
    [
        (0.1, False, False, True),
        (0.1, False, True, False),  # the session at work comes to it with its next claim
        (0.1, True, True, True),
        (5.0, False, True, True),
        (-60.0, True, True, False),
    ],
)
def test_while_a_session_polls_what_has_just_become_due_is_left_to_it(
    due_seconds_ago: float, is_awaited: bool, is_polled: bool, rung: bool, settings: Settings
) -> None:
    other, remote = register("other").remote, register("one", insecure_skip_tls_verify=True).remote
    others = Remote.objects.filter(pk=other.pk)
    if is_polled:
        assert len(claim(Remote, limit=1, seconds=settings.POLL_LEASE, where=Q(pk=other.pk))) == 1
    else:
        others.update(**Remote.not_due())
    columns = {"answered": 0 if is_awaited else F("wakes")}
    Remote.objects.filter(pk=remote.pk).update(**Remote.due_in(later(-due_seconds_ago), 0), **columns)

    assert polls_to_ring(database_now()) == int(rung)

    # A lease that has run out, or one that a poll which hangs has had for long, says of nobody that he claims.
    for seconds in (-1, settings.POLL_LEASE - 5):
        others.update(lease_until=later(seconds), next_poll_at=None)
        assert polls_to_ring(database_now()) == int(due_seconds_ago > 0)


@pytest.mark.parametrize(("is_polled", "rung"), [(False, 1), (True, 3)])
def test_one_session_comes_first_and_others_where_it_is_too_slow(
    is_polled: bool, rung: int, settings: Settings
) -> None:
    first = register("first").remote
    columns = {"host": first.host, "url": first.url, "answered": 1, "wakes": 1, **Remote.due_in(later(-5), 0)}
    Remote.objects.bulk_create(Remote(identity=str(number), **columns) for number in range(102))
    if is_polled:
        assert len(claim(Remote, limit=1, seconds=settings.POLL_LEASE, where=Q(pk=first.pk))) == 1

    assert polls_to_ring(database_now()) == rung


def test_what_somebody_holds_or_what_is_not_due_is_not_rung_for() -> None:
    register("one")
    register("two", insecure_skip_tls_verify=True)
    Remote.objects.filter(insecure_skip_tls_verify=True).update(**Remote.due_in(database_now(), 60))
    claim(Remote, limit=1, seconds=30)

    assert due_count((Remote,), database_now(), 10) == 0

    Remote.objects.update(lease_until=later(-1), lease_token=uuid.uuid4(), next_poll_at=later(-1))
    assert due_count((Remote,), database_now(), 10) == 2


def test_counting_goes_no_further_than_it_must() -> None:
    for number in range(5):
        register(f"r{number}", url=f"https://git.example.com/{number}")

    assert due_count((Remote, Adoption), database_now(), 3) == 3
    Adoption.objects.update(**Adoption.due_in(later(-1), 0))
    assert due_count((Remote, Adoption), database_now(), 7) == 7


def test_however_much_is_due_the_statements_are_the_same() -> None:
    """Each one that differs would take a place among those that are kept."""
    sent: list[str] = []

    def note(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        sent.append(sql)
        return execute(sql, *rest)

    found: list[list[str]] = []
    for number in range(1, 4):
        register(f"r{number}", url=f"https://git.example.com/{number}")
        Adoption.objects.update(**Adoption.due_in(later(-1), 0))
        now = database_now()
        with connection.execute_wrapper(note):
            assert due_count((Adoption, Cluster), now, 10) == number
        found.append(sent[:])
        sent.clear()

    assert len(found[0]) == 2 and found == [found[0]] * 3


def test_no_queue_gets_more_than_it_lacks(broker: RedisServer, sent: None) -> None:
    """Two ticks at once, or a tick each second while nobody works, fill no queue."""
    for number in range(3):
        observed(register(f"r{number}"), A)
    broker.client.flushall()

    for _ in range(20):
        tick()

    assert waiting(broker)["sync"] == doorbells.ENOUGH_WAITING
    assert max(waiting(broker).values()) <= doorbells.ENOUGH_WAITING


def test_a_broker_that_is_away_stops_nothing() -> None:
    register()

    assert tick() == {"poll": 0}


def test_a_transaction_rings_once_for_all_of_its_work(
    broker: RedisServer, sent: None, django_capture_on_commit_callbacks: object
) -> None:
    assert callable(django_capture_on_commit_callbacks)
    with django_capture_on_commit_callbacks(execute=True) as callbacks:
        for number in range(5):
            register(f"r{number}")
        doorbells.ring_on_commit("sync")
    assert len(callbacks) == 2
    assert waiting(broker) == {"poll": 1, "sync": 1}


@pytest.mark.django_db(transaction=True)
def test_a_commit_rings_for_one_process_more_and_leaves_one_doorbell_waiting(broker: RedisServer, sent: None) -> None:
    def commit() -> None:
        with transaction.atomic():
            doorbells.ring_on_commit("sync")

    for _ in range(3):
        commit()
    assert waiting(broker) == {"sync": 1}, "who takes it looks after all three"
    broker.client.lpop("sync")
    commit()
    assert waiting(broker) == {"sync": 1}, "it was taken, perhaps before the commit"


def test_every_leased_stage_is_known() -> None:
    known: set[type[Leased]] = {model for models, _ in STAGES.values() for model in models}
    assert known == {Remote, Adoption, Cluster, SyncJob, Delivery}


def test_pruning_sends_a_collector_to_a_machine_that_syncs_though_jobs_are_waiting(
    broker: RedisServer, sent: None
) -> None:
    doorbells.ring("sync", 99)
    for _ in range(5):
        prune()
    messages = [json.loads(message) for message in broker.client.lrange("sync", 0, -1)]
    collectors = [message for message in messages if message["headers"]["task"] == doorbells.COLLECTOR]
    assert doorbells.COLLECTOR in current_app.tasks
    assert (len(messages), len(collectors)) == (doorbells.ENOUGH_WAITING + 2, 2), "and it does not pile up"
    assert doorbells.ring("sync") == 0
