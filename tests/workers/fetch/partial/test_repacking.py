"""Repacking a partial mirror."""

import os
from pathlib import Path

import pytest

from tests.git_servers import GitServer, Repository
from tests.workers.fetch.conftest import Fetch
from tests.workers.fetch.partial.objects import PLENTY, AnyReader, files, present, read
from workers.fetch import layout, partial
from workers.fetch.mirror import Mirror


class TestRepacking:
    @pytest.fixture
    def last(self, commit: str, repository: Repository, get: Fetch, reading: AnyReader) -> str:
        """The newest of many commits, each of which brought a file that is not there any more."""
        last = commit
        for _ in range(22):
            last = repository.commit({"deploy/3": os.urandom(10_000)})
            get(last)
            with reading() as reader:
                reader.want(list(files(reader, last, "deploy").values()), max_bytes=PLENTY)
        return last

    def test_it_keeps_what_refs_hold_and_forgets_the_rest(
        self, last: str, repository: Repository, get: Fetch, mirror: Mirror, server: GitServer, reading: AnyReader
    ) -> None:
        assert mirror.maintenance_due()
        before, asked = mirror.size_bytes(), len(server.log)

        mirror.maintain(deadline_seconds=30)

        assert not mirror.maintenance_due()
        assert mirror.size_bytes() < before / 5
        assert (mirror.folder / "shallow").read_text().split() == [last]
        names = {path.suffix for path in mirror.folder.glob("objects/pack/*")}
        assert {".pack", ".idx", ".promisor"} <= names and len(partial.pack_names(mirror.folder)) == 1
        with reading() as reader:
            ids = list(files(reader, last, "deploy").values())
            reader.want(ids, max_bytes=PLENTY)
            assert reader.filled == 0 and len(read(reader, ids)) == 10
        assert not get(last).fetched
        assert len(server.log) == asked
        again = get(repository.commit({"deploy/3": "again"}))
        assert again.partial and again.bytes < 20_000

    def test_twice_is_as_good(self, last: str, get: Fetch, mirror: Mirror) -> None:
        mirror.maintain(deadline_seconds=30)
        once = present(mirror)
        mirror.maintain(deadline_seconds=30)
        assert present(mirror) == once
        assert not get(last).fetched

    def test_a_dropped_ref_lets_its_files_go(
        self, commit: str, repository: Repository, get: Fetch, mirror: Mirror, reading: AnyReader
    ) -> None:
        get(commit, "1")
        with reading() as reader:
            ids = set(files(reader, commit, "big").values())
            reader.want(list(ids), max_bytes=PLENTY)
        other = repository.commit({"big": None, "deploy/0": "x"})
        get(other, "2")
        mirror.drop_ref("1")
        mirror.maintain(deadline_seconds=30)
        assert present(mirror).isdisjoint(ids)
        assert not get(other, "2").fetched

    @pytest.mark.parametrize("where", ["workshop", "mark", "pack", "index"])
    def test_one_that_died_leaves_nothing_unreadable(
        self, where: str, last: str, repository: Repository, get: Fetch, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each is the last thing that it did. What it left is tidied or does no harm, and the next one repacks."""

        class Died(Exception):
            pass

        real = Path.rename

        def rename(self: Path, target: Path) -> Path:
            if where == "mark" and self.suffix == ".pack":
                raise Died
            done = real(self, target)
            if (where, self.suffix) in (("pack", ".pack"), ("index", ".idx")):
                raise Died
            return done

        def touch(self: Path) -> None:
            raise Died

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", rename)
            if where == "workshop":
                patched.setattr(Path, "touch", touch)
            # What a process that is killed does not do any more.
            patched.setattr(layout, "tidy", lambda folder: 0)
            with pytest.raises(Died):
                mirror.maintain(deadline_seconds=30)

        assert not get(last).fetched
        assert get(repository.commit({"deploy/3": "again"})).partial
        mirror.maintain(deadline_seconds=30)
        assert len(partial.pack_names(mirror.folder)) == 1
        assert not (mirror.folder / partial.WORKSHOP).exists()
        assert {path.stem for path in mirror.folder.glob("objects/pack/*")} == partial.pack_names(mirror.folder)
