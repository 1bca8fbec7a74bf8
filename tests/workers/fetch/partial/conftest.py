"""A repository that gives any object by its id, and a mirror that has its folders and the wanted files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.git_servers import GitServer, Repository
from tests.workers.fetch.conftest import Fetch
from tests.workers.fetch.partial.objects import PLENTY, AnyReader
from workers.fetch.limits import FetchLimits
from workers.fetch.mirror import FetchReport, Mirror, Source
from workers.fetch.partial import Wish
from workers.fetch.reader import GitObjectReader
from workers.git_environment import RemoteAccess


@pytest.fixture
def repository(repository: Repository) -> Repository:
    """One that allows filters, and gives any object by its id."""
    repository.git("config", "uploadpack.allowFilter", "true")
    repository.git("config", "uploadpack.allowAnySHA1InWant", "true")
    return repository


@pytest.fixture
def commit(repository: Repository) -> str:
    return repository.commit(
        {
            **{f"deploy/{n}": f"deploy {n}" for n in range(10)},
            **{f"big/{n}": os.urandom(20_000) for n in range(50)},
        }
    )


@pytest.fixture
def get(fetch: Fetch, repository: Repository, server: GitServer) -> Fetch:
    """get(commit): as a job with narrow paths does."""

    def call(commit: str, keep_ref: str = "1", wish: Wish = Wish.PARTIAL) -> FetchReport:
        return fetch(server.url(repository), commit, keep_ref, wish=wish)

    return call


@pytest.fixture
def reading(mirror: Mirror, repository: Repository, server: GitServer, run_folder: Path) -> AnyReader:
    @contextmanager
    def call(deadline_seconds: float = 20, max_bytes: int = PLENTY) -> Iterator[GitObjectReader]:
        source = Source(RemoteAccess(server.url(repository)), FetchLimits(max_bytes), run_folder)
        with mirror.reader(deadline_seconds=deadline_seconds, source=source) as reader:
            yield reader

    return call
