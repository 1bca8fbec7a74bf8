"""/healthz and /readyz, with a real broker and without."""

from collections.abc import Iterator

import pytest
from django.db import OperationalError, connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from pytest_django import DjangoAssertNumQueries, Settings

from fleetsync.redis import redis_client
from tests.fleetsync.conftest import RedisServer


@pytest.fixture
def broker(redis_server: RedisServer, settings: Settings) -> Iterator[RedisServer]:
    settings.REDIS_URL = redis_server.url
    redis_client.cache_clear()
    yield redis_server
    redis_client.cache_clear()


def test_healthz_asks_nobody(client: Client) -> None:
    """No database is allowed in this test."""
    response = client.get("/healthz")
    assert (response.status_code, response.json()) == (200, {"healthy": True})


@pytest.mark.django_db
def test_ready(client: Client, broker: RedisServer, django_assert_max_num_queries: DjangoAssertNumQueries) -> None:
    with django_assert_max_num_queries(4):
        response = client.get("/readyz")
    fine = {"ok": True, "message": ""}
    assert response.status_code == 200, response.content
    assert response.json() == {"ready": True, "checks": {"database": fine, "migrations": fine, "broker": fine}}
    assert "no-store" in response["Cache-Control"]


@pytest.mark.django_db
def test_the_broker_goes_away_and_comes_back(client: Client, broker: RedisServer) -> None:
    broker.stop()
    response = client.get("/readyz")
    assert response.status_code == 503
    checks = response.json()["checks"]
    assert {name: check["ok"] for name, check in checks.items()} == {
        "database": True,
        "migrations": True,
        "broker": False,
    }
    assert "REDIS_URL" in checks["broker"]["message"]
    assert str(broker.socket) not in response.content.decode()
    broker.start()
    assert client.get("/readyz").status_code == 200


@pytest.mark.django_db
def test_a_missing_migration(client: Client, broker: RedisServer) -> None:
    MigrationRecorder(connection).record_unapplied("repos", "0001_initial")
    response = client.get("/readyz")
    assert response.status_code == 503
    assert "manage.py migrate" in response.json()["checks"]["migrations"]["message"]


@pytest.mark.django_db
def test_the_database_is_away(client: Client, broker: RedisServer) -> None:
    def away(*_: object) -> object:
        raise OperationalError('connection to "10.1.2.3" as "c4n4ry" failed')

    with connection.execute_wrapper(away):
        response = client.get("/readyz")
    assert response.status_code == 503
    checks = response.json()["checks"]
    assert not checks["database"]["ok"]
    assert checks["broker"]["ok"]
    assert "c4n4ry" not in response.content.decode()


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_only_reading(client: Client, path: str) -> None:
    assert client.post(path).status_code == 405
