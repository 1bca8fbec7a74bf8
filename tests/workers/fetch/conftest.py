"""A remote, the mirror that follows it, and a short way to fetch."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.git_servers import GitServer, Repository, git_server
from workers.fetch.limits import FetchLimits
from workers.fetch.mirror import FetchReport, Mirror
from workers.fetch.partial import Wish
from workers.git_environment import RemoteAccess

Fetch = Callable[..., FetchReport]


def names_below(folder: Path, *patterns: str) -> list[str]:
    return sorted(p.name for pattern in patterns for p in folder.rglob(pattern))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What the server serves."""
    return tmp_path / "served"


@pytest.fixture
def repository(root: Path) -> Repository:
    return Repository.make(root / "shop.git")


@pytest.fixture
def server(root: Path) -> Iterator[GitServer]:
    root.mkdir(exist_ok=True)
    with git_server(root) as server:
        yield server


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    return Mirror(tmp_path / "mirrors" / "1")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def fetch(mirror: Mirror, run_folder: Path) -> Fetch:
    """fetch(access or URL, commit): into `mirror`, under the ref "1"."""

    def call(
        access: RemoteAccess | str,
        commit: str,
        keep_ref: str = "1",
        *,
        deadline_seconds: float = 30,
        max_bytes: int = 100_000_000,
        wish: Wish = Wish.AS_IT_IS,
    ) -> FetchReport:
        return mirror.fetch(
            RemoteAccess(access) if isinstance(access, str) else access,
            commit,
            keep_ref,
            deadline_seconds=deadline_seconds,
            limits=FetchLimits(max_bytes),
            run_folder=run_folder,
            wish=wish,
        )

    return call
