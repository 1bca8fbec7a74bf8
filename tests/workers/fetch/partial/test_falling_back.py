"""Partial mirrors that are made whole, because the server or the operator wants it so, or made anew."""

import os
import shutil

import pytest

from tests.git_servers import GitServer, Repository, git
from tests.workers.fetch.conftest import Fetch
from tests.workers.fetch.partial.objects import PLENTY, AnyReader, files, read
from workers.fetch import layout
from workers.fetch.errors import CommitNotFound, ObjectsRefused
from workers.fetch.mirror import Mirror
from workers.fetch.partial import Wish

# What the config of a mirror was before there were partial ones; the code of that time makes every other one anew.
CONFIG_OF_BEFORE = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n"


class TestFallingBack:
    def test_a_server_without_filters(
        self, commit: str, repository: Repository, get: Fetch, mirror: Mirror, server: GitServer
    ) -> None:
        repository.git("config", "uploadpack.allowFilter", "false")

        report = get(commit)

        assert not report.partial and "allowFilter" in report.fell_back
        assert report.bytes > 900_000
        assert git("fsck", "--no-progress", folder=mirror.folder).count("missing") == 0
        assert list(mirror.folder.glob("objects/pack/*.promisor")) == []
        assert (mirror.folder / "config").read_text() == CONFIG_OF_BEFORE
        asked = len(server.log)
        assert not get(commit).fetched
        assert len(server.log) == asked
        again = get(repository.commit({"deploy/3": "changed"}))
        assert again.fell_back == "" and again.bytes < 20_000

    def test_a_server_that_allows_filters_no_more(
        self, commit: str, repository: Repository, get: Fetch, mirror: Mirror, reading: AnyReader
    ) -> None:
        """It sends a change of a file that is not here, so git can't put it together: the mirror is made anew."""
        text = os.urandom(40_000).hex()
        get(repository.commit({"deploy/long": text}))
        repository.git("config", "uploadpack.allowFilter", "false")
        changed = repository.commit({"deploy/long": text + "x"})

        report = get(changed)

        assert not report.partial and "allowFilter" in report.fell_back
        with reading() as reader:
            ids = list(files(reader, changed, "big", "deploy").values())
            reader.want(ids, max_bytes=PLENTY)
            assert reader.filled == 0 and len(read(reader, ids)) == 61

    def test_a_server_that_refuses_ids(
        self, commit: str, repository: Repository, get: Fetch, mirror: Mirror, server: GitServer, reading: AnyReader
    ) -> None:
        server.protocol_v2 = False
        repository.git("config", "uploadpack.allowAnySHA1InWant", "false")
        assert get(commit).partial
        with reading() as reader:
            ids = list(files(reader, commit, "deploy").values())
            with pytest.raises(ObjectsRefused) as caught:
                reader.want(ids, max_bytes=PLENTY)
        assert "unadvertised" in caught.value.detail

        assert not get(commit, wish=Wish.WHOLE).partial

        with reading() as reader:
            reader.want(ids, max_bytes=PLENTY)
            assert len(read(reader, ids)) == 10
        assert not get(commit).partial

    def test_a_remote_that_has_lost_the_files(
        self, commit: str, repository: Repository, get: Fetch, reading: AnyReader
    ) -> None:
        get(commit)
        shutil.rmtree(repository.folder / "objects")
        (repository.folder / "objects").mkdir()
        shutil.rmtree(repository.folder / "refs/heads")
        (repository.folder / "refs/heads").mkdir()
        repository.commit({"other": "x"})
        with reading() as reader, pytest.raises(ObjectsRefused):
            reader.want(list(files(reader, commit, "deploy").values()), max_bytes=PLENTY)
        with pytest.raises(CommitNotFound):
            get(commit, wish=Wish.WHOLE)

    def test_off_makes_a_partial_one_whole(self, commit: str, get: Fetch, mirror: Mirror, reading: AnyReader) -> None:
        assert get(commit).partial
        assert not get(commit, wish=Wish.WHOLE).partial
        assert mirror.refs() == {"1": commit}
        assert mirror.size_bytes() > 900_000

    def test_one_that_was_made_whole_before_stays_usable(
        self, commit: str, repository: Repository, get: Fetch, mirror: Mirror, server: GitServer
    ) -> None:
        get(commit, wish=Wish.AS_IT_IS)
        assert (mirror.folder / "config").read_text() == CONFIG_OF_BEFORE
        asked = len(server.log)

        report = get(commit)

        assert not report.fetched and not report.partial and report.fell_back == ""
        assert len(server.log) == asked
        assert get(repository.commit({"big/1": "x"})).bytes < 20_000

    @pytest.mark.parametrize("kind", ["sha1", "sha256"])
    def test_an_older_version_takes_a_partial_one_for_a_strangers(self, kind: str) -> None:
        assert layout.config("sha1", partial=False) == CONFIG_OF_BEFORE
        assert layout.config(kind, partial=True) != layout.config(kind, partial=False)

    @pytest.mark.parametrize("how", ["config", "a pack is missing", "a pack is cut off", "HEAD"])
    def test_a_damaged_one_is_made_anew(
        self, how: str, commit: str, repository: Repository, get: Fetch, mirror: Mirror, reading: AnyReader
    ) -> None:
        get(commit)
        pack = next(mirror.folder.glob("objects/pack/*.pack"))
        pack.chmod(0o644)
        match how:
            case "config":
                (mirror.folder / "config").write_text(CONFIG_OF_BEFORE + "[fleetsync]\n\tpartial = true\n[a]\nb = c\n")
            case "a pack is missing":
                pack.unlink()
                pack.with_suffix(".idx").unlink()
            case "a pack is cut off":
                os.truncate(pack, pack.stat().st_size // 2)
            case "HEAD":
                (mirror.folder / "HEAD").unlink()
        again = repository.commit({"deploy/3": "changed"})

        assert get(again).partial

        with reading() as reader:
            ids = list(files(reader, again, "deploy").values())
            reader.want(ids, max_bytes=PLENTY)
            assert len(read(reader, ids)) == 10
