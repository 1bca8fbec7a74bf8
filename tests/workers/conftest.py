"""No broker: doorbells are rung in vain, and nothing else changes. And folders for what workers write."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_django import Settings

from fleetsync.redis import redis_client
from workers import bundles


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


@pytest.fixture
def folders(settings: Settings, tmp_path: Path) -> Iterator[None]:
    """Everything that a worker keeps is below `tmp_path`, and remotes may be files below its `served`."""
    settings.GIT_FILE_ROOT = str(tmp_path / "served")
    settings.DATA_DIR = tmp_path / "data"
    settings.MIRROR_DIR = tmp_path / "mirrors"
    settings.BUNDLE_DIR = tmp_path / "bundles"
    settings.DELIVERY_DIRECTORY_ROOT = str(tmp_path / "clusters")
    settings.GIT_FETCH_TIMEOUT = settings.DELIVERY_TIMEOUT = 20.0
    bundles.store.cache_clear()
    yield
    bundles.store.cache_clear()
