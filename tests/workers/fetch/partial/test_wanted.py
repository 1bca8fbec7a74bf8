"""Mirrors that have all folders and only the wanted files, from a real server over http."""

import os
from pathlib import Path

import pytest

from tests.git_servers import GitServer, Repository, Submodule, git
from tests.workers.fetch.conftest import Fetch
from tests.workers.fetch.partial.objects import PLENTY, AnyReader, fetches, files, present, read
from workers.fetch import partial
from workers.fetch.errors import MirrorCorrupt
from workers.fetch.limits import FetchLimits
from workers.fetch.mirror import Mirror, Source
from workers.fetch.partial import Wish, wish
from workers.git_environment import RemoteAccess


@pytest.mark.parametrize(
    ("setting", "scheme", "paths", "becomes"),
    [
        ("auto", "https", ["deploy"], Wish.PARTIAL),
        ("auto", "http", ["deploy"], Wish.PARTIAL),
        ("auto", "ssh", ["deploy/prod", "base/*.yaml"], Wish.PARTIAL),
        ("auto", "https", ["./deploy/"], Wish.PARTIAL),
        ("auto", "https", ["deploy/**"], Wish.PARTIAL),
        ("auto", "https", ["README.md"], Wish.PARTIAL),
        ("auto", "https", [], Wish.AS_IT_IS),
        ("auto", "https", [""], Wish.AS_IT_IS),
        ("auto", "https", ["."], Wish.AS_IT_IS),
        ("auto", "https", ["/"], Wish.AS_IT_IS),
        ("auto", "https", ["**"], Wish.AS_IT_IS),
        ("auto", "https", ["*/deploy"], Wish.AS_IT_IS),
        ("auto", "https", ["deplo?"], Wish.AS_IT_IS),
        ("auto", "https", ["[ab]/deploy"], Wish.AS_IT_IS),
        ("auto", "https", ["deploy", "."], Wish.AS_IT_IS),
        ("auto", "file", ["deploy"], Wish.AS_IT_IS),
        ("off", "https", ["deploy"], Wish.WHOLE),
        ("off", "https", [], Wish.WHOLE),
    ],
    ids=str,
)
def test_when_it_pays(setting: str, scheme: str, paths: list[str], becomes: Wish) -> None:
    assert wish(setting, scheme, paths) is becomes


class TestWantedFiles:
    def test_only_they_are_fetched_and_at_once(
        self, commit: str, get: Fetch, mirror: Mirror, server: GitServer, reading: AnyReader
    ) -> None:
        report = get(commit)
        assert report.partial and report.fell_back == ""
        assert report.bytes < 50_000
        before = fetches(server)

        with reading() as reader:
            ids = files(reader, commit, "deploy")
            reader.want(list(ids.values()), max_bytes=PLENTY)
            assert read(reader, list(ids.values())) == [path.replace("/", " ").encode() for path in ids]
            assert reader.filled == 10
            others = set(files(reader, commit, "big").values())

        assert fetches(server) == before + 1
        assert present(mirror).isdisjoint(others)
        with reading() as reader:
            reader.want(list(ids.values()), max_bytes=PLENTY)
            assert reader.filled == 0
        assert fetches(server) == before + 1

    def test_what_nobody_wanted_is_lacking_and_never_fetched_behind_our_back(
        self, commit: str, get: Fetch, server: GitServer, reading: AnyReader
    ) -> None:
        get(commit)
        asked = len(server.log)
        with reading() as reader:
            ids = list(files(reader, commit, "deploy").values())
            with pytest.raises(MirrorCorrupt):
                reader.sizes(ids)
            with pytest.raises(MirrorCorrupt):
                read(reader, ids)
        assert len(server.log) == asked

    def test_they_come_in_batches(
        self, commit: str, get: Fetch, server: GitServer, reading: AnyReader, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(partial, "BATCH", 4)
        get(commit)
        before = fetches(server)
        with reading() as reader:
            ids = list(files(reader, commit, "deploy").values())
            reader.want([*ids, *ids], max_bytes=PLENTY)
            assert reader.sizes(ids) == [8] * 10
        assert fetches(server) == before + 3

    def test_a_request_may_be_bigger_than_a_pipe(
        self, repository: Repository, get: Fetch, server: GitServer, reading: AnyReader
    ) -> None:
        commit = repository.commit({f"deploy/{n}": f"file {n}" for n in range(3_000)})
        get(commit)
        before = fetches(server)
        with reading() as reader:
            ids = list(files(reader, commit, "deploy").values())
            reader.want(ids, max_bytes=PLENTY)
            assert sum(reader.sizes(ids)) == sum(len(f"file {n}") for n in range(3_000))
        assert fetches(server) == before + 1

    def test_the_next_commit_costs_what_is_new(
        self, commit: str, repository: Repository, get: Fetch, mirror: Mirror, reading: AnyReader
    ) -> None:
        get(commit)
        with reading() as reader:
            reader.want(list(files(reader, commit, "deploy").values()), max_bytes=PLENTY)
        again = repository.commit({"deploy/3": "changed", "big/3": os.urandom(20_000)})

        assert get(again).bytes < 20_000

        with reading() as reader:
            ids = files(reader, again, "deploy")
            reader.want(list(ids.values()), max_bytes=PLENTY)
            assert reader.filled == 1
            assert read(reader, [ids["deploy/3"]]) == [b"changed"]
        assert mirror.size_bytes() < 100_000

    def test_a_commit_that_is_there_asks_nobody(self, commit: str, get: Fetch, server: GitServer) -> None:
        get(commit)
        asked = len(server.log)
        assert not get(commit, "2").fetched
        assert len(server.log) == asked

    def test_several_gitrepos_with_other_paths_share_it(
        self, commit: str, get: Fetch, mirror: Mirror, reading: AnyReader
    ) -> None:
        get(commit, "1")
        with reading() as reader:
            reader.want(list(files(reader, commit, "deploy").values()), max_bytes=PLENTY)
        get(commit, "2")
        with reading() as reader:
            ids = list(files(reader, commit, "big").values())[:5]
            reader.want(ids, max_bytes=PLENTY)
            assert reader.filled == 5
            reader.want(list(files(reader, commit, "deploy").values()), max_bytes=PLENTY)
            assert reader.filled == 5
        assert mirror.refs() == {"1": commit, "2": commit}

    def test_paths_that_become_the_whole_repository_get_the_rest(
        self, commit: str, get: Fetch, mirror: Mirror, reading: AnyReader
    ) -> None:
        get(commit)
        assert get(commit, wish=Wish.AS_IT_IS).partial
        with reading() as reader:
            ids = list(files(reader, commit, "big", "deploy").values())
            reader.want(ids, max_bytes=PLENTY)
            assert reader.filled == 60 and len(read(reader, ids)) == 60
        assert "missing" not in git("fsck", "--no-progress", folder=mirror.folder)

    def test_sha256(self, root: Path, server: GitServer, fetch: Fetch, mirror: Mirror, run_folder: Path) -> None:
        repository = Repository.make(root / "new.git", object_format="sha256")
        repository.git("config", "uploadpack.allowFilter", "true")
        commit = repository.commit({"deploy/a": "x", "big/b": "y"})
        assert fetch(server.url(repository), commit, wish=Wish.PARTIAL).partial
        source = Source(RemoteAccess(server.url(repository)), FetchLimits(), run_folder)
        with mirror.reader(deadline_seconds=20, source=source) as reader:
            ids = list(files(reader, commit, "deploy").values())
            reader.want(ids, max_bytes=PLENTY)
            assert read(reader, ids) == [b"x"]

    def test_a_repository_with_submodules_is_no_obstacle(
        self, repository: Repository, get: Fetch, reading: AnyReader
    ) -> None:
        """git's checks want to read .gitmodules, which is a file that nobody wanted."""
        modules = '[submodule "lib"]\n\tpath = lib\n\turl = https://git.example.com/lib.git\n'
        commit = repository.commit({".gitmodules": modules, "lib": Submodule("1" * 40), "deploy/a": "x"})
        assert get(commit).partial
        with reading() as reader:
            reader.want(list(files(reader, commit, "deploy").values()), max_bytes=PLENTY)
