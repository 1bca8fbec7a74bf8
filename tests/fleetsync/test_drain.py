"""SIGTERM while every poll hangs: the workers end within STOP_GRACE, and nobody waits for their leases."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleetsync.conftest import RedisServer
from tests.fleetsync.work import Work, holds
from tests.git_servers import GitServer, Repository, git_server

GRACE = 24.0
REGISTER = """
from repos import registration
registration.register({"name": "shop", "url": %r, "branch": "main"})
"""
REMOTE = """
from repos.leases import database_now
from repos.models import Remote
remote = Remote.objects.get()
print(remote.lease_until, remote.crashes, remote.consecutive_failures, remote.next_poll_at <= database_now())
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    (tmp_path / "served").mkdir()
    with git_server(tmp_path / "served") as server:
        yield server


def test_sigterm_while_polls_hang(tmp_path: Path, redis_server: RedisServer, server: GitServer) -> None:
    repository = Repository.make(tmp_path / "served" / "shop.git")
    server.behaviour.hang_before = True
    settings = {"STOP_GRACE": f"{GRACE:g}s", "GIT_ALLOW_HTTP": "on", "GIT_ALLOWED_NETWORKS": "127.0.0.0/8"}
    with Work(tmp_path, redis_server, **settings) as work:
        work.python(REGISTER % server.url(repository))
        work.send("poll", "poll")
        assert holds(lambda: len(server.log) > 0), work.output.read_text()

        started = time.monotonic()
        work.process.terminate()
        assert work.process.wait(GRACE + 10) == 0
        took = time.monotonic() - started

    assert took < GRACE, work.output.read_text()
    assert "does not end and is killed" not in work.output.read_text()
    assert work.python(REMOTE) == "None 0 0 True"
