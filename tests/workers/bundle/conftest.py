"""Trees of real repositories, read without a fetch: git's own checks at fetching would refuse the evil
ones.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.git_servers import Repository
from workers.bundle.build import BuiltBundle, build
from workers.bundle.select import Limits, TreeEntry, list_entries, selection_key
from workers.bundle.store import BundleStore
from workers.fetch.errors import cleaner
from workers.fetch.git import GitCall
from workers.fetch.reader import GitObjectReader
from workers.git_environment import local_environment

MakeReader = Callable[[Repository], GitObjectReader]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.make(tmp_path / "shop.git")


@pytest.fixture
def reader_of() -> Iterator[MakeReader]:
    with ExitStack() as stack:

        def make(repository: Repository) -> GitObjectReader:
            call = GitCall(repository.folder, local_environment(), time.monotonic() + 60, cleaner())
            return stack.enter_context(GitObjectReader(call))

        yield make


@pytest.fixture
def reader(repository: Repository, reader_of: MakeReader) -> GitObjectReader:
    return reader_of(repository)


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(tmp_path / "bundles")


@pytest.fixture
def listed(reader: GitObjectReader) -> Callable[..., list[TreeEntry]]:
    """listed(commit, paths): the entries."""

    def call(commit: str, paths: Sequence[str] = (), limits: Limits | None = None) -> list[TreeEntry]:
        return list_entries(reader, selection_key(reader, commit, paths), limits or Limits())

    return call


@pytest.fixture
def bundled(
    reader: GitObjectReader, listed: Callable[..., list[TreeEntry]], store: BundleStore
) -> Callable[..., BuiltBundle]:
    """bundled(commit, paths): stored in `store`."""

    def call(commit: str, paths: Sequence[str] = ()) -> BuiltBundle:
        return build(reader, listed(commit, paths), store)

    return call
