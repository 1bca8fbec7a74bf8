"""The plain Redis client beside Celery's."""

import time

import pytest
import redis as redis_py
from pytest_django import Settings

from fleetsync.redis import redis_client, redis_py_url
from tests.fleetsync.conftest import RedisServer


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis+socket:///run/redis.sock", "unix:///run/redis.sock"),
        ("redis+socket:///run/redis.sock?virtual_host=3", "unix:///run/redis.sock?db=3"),
        ("redis+socket://:pw@/run/redis.sock", "unix://:pw@/run/redis.sock"),
        ("redis://:pw@host:6379/2", "redis://:pw@host:6379/2"),
        ("rediss://host/0", "rediss://host/0"),
    ],
)
def test_kombus_addresses_are_read(url: str, expected: str) -> None:
    assert redis_py_url(url) == expected


def test_it_talks_and_fails_quickly(redis_server: RedisServer, settings: Settings) -> None:
    settings.REDIS_URL = redis_server.url
    redis_client.cache_clear()
    try:
        assert redis_client() is redis_client()
        assert redis_client().llen("poll") == 0
        redis_server.stop()
        began = time.monotonic()
        with pytest.raises(redis_py.RedisError):
            redis_client().llen("poll")
        assert time.monotonic() - began < 1.5
        redis_server.start()
        assert redis_client().llen("poll") == 0
    finally:
        redis_client.cache_clear()
