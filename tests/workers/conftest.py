"""No broker: doorbells are rung in vain, and nothing else changes."""

from collections.abc import Iterator

import pytest
from pytest_django import Settings

from fleetsync.redis import redis_client


@pytest.fixture(autouse=True)
def no_broker(settings: Settings) -> Iterator[None]:
    redis_client.cache_clear()
    settings.REDIS_URL = "redis+socket:///nonexistent/redis.sock"
    yield
    redis_client.cache_clear()


@pytest.fixture(autouse=True)
def loopback_is_allowed(settings: Settings) -> None:
    """The tests' own Git servers are on this machine."""
    settings.GIT_ALLOWED_NETWORKS = ["127.0.0.0/8"]
