"""beat's scheduler against a real database and a real Redis: it goes on, whatever steps, breaks or fills
up.
"""

import datetime as dt
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import time_machine
from celery import Celery
from django.db import OperationalError, connection
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask
from kombu import Exchange, Queue
from pytest_django import Settings

from fleetsync import beat
from fleetsync.redis import redis_client
from tests.fleetsync.conftest import RedisServer

pytestmark = pytest.mark.django_db

# Seconds between two rings of the entry under test.
INTERVAL = 0.2


@pytest.fixture
def server(redis_server: RedisServer, settings: Settings) -> Iterator[RedisServer]:
    settings.REDIS_URL = redis_server.url
    redis_client.cache_clear()
    yield redis_server
    redis_client.cache_clear()


@pytest.fixture
def app(server: RedisServer) -> Iterator[Celery]:
    """An application of its own: the project's remembers the broker that it met first."""
    app = Celery("beat-under-test", set_as_current=False, broker=server.url)
    app.conf.update(
        task_queues=[Queue("control", Exchange("control", type="direct"), routing_key="control")],
        task_create_missing_queues=False,
        task_default_queue="control",
        task_ignore_result=True,
        task_publish_retry=False,
        broker_transport_options={"socket_timeout": 5, "socket_connect_timeout": 2},
    )
    yield app
    app.close()


@pytest.fixture
def row() -> PeriodicTask:
    """The only enabled entry: `ring`, five times a second."""
    PeriodicTask.objects.update(enabled=False)
    every, _ = IntervalSchedule.objects.get_or_create(
        every=int(INTERVAL * 1_000_000), period=IntervalSchedule.MICROSECONDS
    )
    row: PeriodicTask = PeriodicTask.objects.create(name="ring", task="tests.ring", interval=every, queue="control")
    return row


@pytest.fixture
def make_scheduler(app: Celery) -> Iterator[Callable[[], beat.Scheduler]]:
    made: list[beat.Scheduler] = []

    def make() -> beat.Scheduler:
        made.append(beat.Scheduler(app=app))
        return made[-1]

    yield make
    for scheduler in made:
        # It would write to the database when the test process ends.
        scheduler._finalize.cancel()


@pytest.fixture
def scheduler(make_scheduler: Callable[[], beat.Scheduler], row: PeriodicTask) -> beat.Scheduler:
    return make_scheduler()


def rings(scheduler: beat.Scheduler, server: RedisServer, seconds: float, *, drain: bool = True) -> int:
    """Runs the scheduler as beat's service does, for `seconds`; how many messages came."""
    count, deadline = 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        wait = scheduler.tick()
        if drain and server.process is not None:
            while server.client.lpop("control"):
                count += 1
        time.sleep(min(max(wait, 0), 0.05))
    return count


def about(count: int, seconds: float) -> bool:
    """Whether `count` rings in `seconds` are the pace of the entry: none missing but at the edges, no
    burst.
    """
    return seconds / INTERVAL - 2 <= count <= seconds / INTERVAL + 2


def test_it_rings_at_its_interval(scheduler: beat.Scheduler, server: RedisServer) -> None:
    assert about(rings(scheduler, server, 1.5), 1.5)


@pytest.mark.parametrize("hours", [-1, 1, -24 * 365, 24 * 365], ids=["hour back", "hour on", "year back", "year on"])
def test_a_stepped_clock_neither_stops_it_nor_makes_a_burst(
    scheduler: beat.Scheduler, server: RedisServer, hours: int
) -> None:
    assert about(rings(scheduler, server, 0.6), 0.6)
    with time_machine.travel(dt.datetime.now(dt.UTC) + dt.timedelta(hours=hours)):
        assert about(rings(scheduler, server, 1.2), 1.2)
        # And when the entries are read again, and again after it is set right.
        scheduler._read_at = scheduler._look_at = 0
        assert about(rings(scheduler, server, 0.6), 0.6)
    scheduler._read_at = scheduler._look_at = 0
    assert about(rings(scheduler, server, 0.6), 0.6)


def test_a_last_run_in_the_future_is_not_waited_for(
    make_scheduler: Callable[[], beat.Scheduler], row: PeriodicTask, server: RedisServer
) -> None:
    """A process that ran before the clock was set back left it in the row."""
    PeriodicTask.objects.filter(pk=row.pk).update(last_run_at=timezone.now() + dt.timedelta(days=1))
    assert about(rings(make_scheduler(), server, 1.0), 1.0)


def test_an_hour_missed_is_one_ring(
    make_scheduler: Callable[[], beat.Scheduler], row: PeriodicTask, server: RedisServer
) -> None:
    PeriodicTask.objects.filter(pk=row.pk).update(last_run_at=timezone.now() - dt.timedelta(hours=1))
    assert rings(make_scheduler(), server, INTERVAL / 2) == 1


def test_when_it_ran_is_written_by_the_wall_clock(
    scheduler: beat.Scheduler, row: PeriodicTask, server: RedisServer
) -> None:
    year_on = timezone.now() + dt.timedelta(days=365)
    with time_machine.travel(year_on):
        rings(scheduler, server, 0.5)
        # Somebody edits the row in the meantime: what they wrote stays.
        PeriodicTask.objects.filter(pk=row.pk).update(description="edited")
        scheduler.sync()
    row.refresh_from_db()
    assert row.description == "edited"
    assert row.total_run_count >= 2
    assert row.last_run_at is not None
    assert abs(row.last_run_at - year_on) < dt.timedelta(seconds=5)


def test_an_edit_is_seen_though_the_clock_was_set_back(
    scheduler: beat.Scheduler, row: PeriodicTask, server: RedisServer
) -> None:
    rings(scheduler, server, 0.3)
    with time_machine.travel(dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)):
        row.enabled = False
        row.save()
        rings(scheduler, server, 1.2)
        assert rings(scheduler, server, 0.6) == 0
        row.enabled = True
        row.save()
        rings(scheduler, server, 1.2)
        assert rings(scheduler, server, 0.6) >= 1


class Away:
    """Refuses every query, as a database that is away does."""

    def __init__(self) -> None:
        self.refused = 0

    def __call__(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        self.refused += 1
        raise OperationalError("the server closed the connection unexpectedly")


def test_it_goes_on_while_the_database_is_away(
    scheduler: beat.Scheduler, row: PeriodicTask, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    rings(scheduler, server, 0.3)
    away = Away()
    with connection.execute_wrapper(away):
        assert about(rings(scheduler, server, 2.4), 2.4)
        scheduler._do_sync()
        assert about(rings(scheduler, server, 0.6), 0.6)
    assert away.refused >= 3
    assert len([r for r in caplog.records if "the database is away" in r.getMessage()]) == 1
    # It reads again when the database is back, here still in the transaction that the test runs in.
    connection.set_rollback(False)
    row.enabled = False
    row.save()
    rings(scheduler, server, 1.2)
    assert "the database is back" in caplog.text
    assert rings(scheduler, server, 0.6) == 0


def test_it_starts_while_the_database_is_away(
    make_scheduler: Callable[[], beat.Scheduler], row: PeriodicTask, server: RedisServer
) -> None:
    with connection.execute_wrapper(Away()):
        scheduler = make_scheduler()
        assert rings(scheduler, server, 0.4) == 0
    rings(scheduler, server, 1.2)
    assert about(rings(scheduler, server, 1.0), 1.0)


def test_a_queue_that_nobody_serves_is_not_filled(
    scheduler: beat.Scheduler, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    rings(scheduler, server, 2.0, drain=False)
    assert server.client.llen("control") == beat.ENOUGH_QUEUED
    assert len([r for r in caplog.records if "not being emptied" in r.getMessage()]) == 1
    server.client.delete("control")
    assert about(rings(scheduler, server, 1.0), 1.0)


def test_it_goes_on_while_redis_is_away(
    scheduler: beat.Scheduler, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    rings(scheduler, server, 0.5)
    server.stop()
    assert rings(scheduler, server, 1.5) == 0
    assert len([r for r in caplog.records if "the broker is away" in r.getMessage()]) == 1
    server.start()
    assert about(rings(scheduler, server, 1.0), 1.0)
    assert "the broker is back" in caplog.text


def test_it_starts_while_redis_is_away(
    make_scheduler: Callable[[], beat.Scheduler], row: PeriodicTask, server: RedisServer
) -> None:
    server.stop()
    scheduler = make_scheduler()
    assert rings(scheduler, server, 0.5) == 0
    server.start()
    assert about(rings(scheduler, server, 1.0), 1.0)


def test_a_flushed_redis_is_rung_all_the_same(scheduler: beat.Scheduler, server: RedisServer) -> None:
    rings(scheduler, server, 0.5)
    server.client.flushall()
    assert about(rings(scheduler, server, 1.0), 1.0)


def test_a_pass_that_fails_is_followed_by_another(
    scheduler: beat.Scheduler, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(beat.SteadyEntry, "is_due", lambda self: 1 / 0)
        broken.setattr(scheduler, "populate_heap", lambda: 1 / 0)
        assert scheduler.tick() == 1.0
    assert about(rings(scheduler, server, 1.0), 1.0)


def test_it_shows_that_it_lives(scheduler: beat.Scheduler, settings: Settings, tmp_path: Any) -> None:
    settings.DATA_DIR = tmp_path
    scheduler.tick()
    assert len(list((tmp_path / "run").glob("beat.*.alive"))) == 1
