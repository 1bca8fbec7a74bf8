"""Mirrors that have all folders and only the wanted files, from a real server over http."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.git_servers import GitServer, Repository, Submodule, git
from tests.workers.fetch.conftest import Fetch
from tests.workers.fetch.processes import processes_with
from workers.fetch import layout, partial
from workers.fetch.errors import (
    CommitNotFound,
    GitTimeout,
    LimitExceeded,
    MirrorBusy,
    MirrorCorrupt,
    ObjectsRefused,
)
from workers.fetch.limits import FetchLimits
from workers.fetch.mirror import FetchReport, Mirror, Source
from workers.fetch.partial import Wish, wish
from workers.fetch.reader import GitObjectReader
from workers.git_environment import RemoteAccess

# What the config of a mirror was before there were partial ones; the code of that time makes every other one anew.
CONFIG_OF_BEFORE = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n"
PLENTY = 10_000_000
AnyReader = Callable[..., AbstractContextManager[GitObjectReader]]


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


def files(reader: GitObjectReader, commit: str, *folders: str) -> dict[str, str]:
    """Path and id of the files in those folders of the commit."""
    top = {item.name.decode(): item for item in reader.tree(reader.root_tree(commit))}
    return {
        f"{folder}/{item.name.decode()}": item.object_id
        for folder in folders
        for item in reader.tree(top[folder].object_id)
    }


def read(reader: GitObjectReader, ids: Sequence[str]) -> list[bytes]:
    return [blob.read() for blob in reader.blobs(ids)]


def present(mirror: Mirror) -> set[str]:
    """The ids of all objects that are in the mirror."""
    lines = git("cat-file", "--batch-check", "--batch-all-objects", folder=mirror.folder).splitlines()
    return {line.split()[0] for line in lines}


def fetches(server: GitServer) -> int:
    return len([request for request in server.requests("git-upload-pack") if request.method == "POST"])


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


class TestBounds:
    @pytest.mark.parametrize(
        ("of_fetch", "of_bundle", "setting"),
        [(300_000, PLENTY, "GIT_FETCH_MAX_BYTES"), (PLENTY, 300_000, "BUNDLE_MAX_BYTES")],
    )
    def test_files_beyond_a_limit_are_stopped_and_removed(
        self, of_fetch: int, of_bundle: int, setting: str, commit: str, get: Fetch, mirror: Mirror, reading: AnyReader
    ) -> None:
        get(commit)
        before = mirror.size_bytes()
        with reading(max_bytes=of_fetch) as reader:
            ids = list(files(reader, commit, "big").values())
            with pytest.raises(LimitExceeded) as caught:
                reader.want(ids, max_bytes=of_bundle)
        assert caught.value.setting == setting
        assert setting in str(caught.value) and "300000 bytes" in str(caught.value)
        assert mirror.size_bytes() <= before
        with reading() as reader:
            reader.want(ids, max_bytes=50 * 20_000)
            assert len(read(reader, ids)) == 50

    def test_batches_are_counted_together(
        self, commit: str, get: Fetch, mirror: Mirror, reading: AnyReader, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(partial, "BATCH", 5)
        get(commit)
        before = mirror.size_bytes()
        with reading(max_bytes=300_000) as reader, pytest.raises(LimitExceeded):
            reader.want(list(files(reader, commit, "big").values()), max_bytes=PLENTY)
        assert mirror.size_bytes() <= before

    def test_a_server_that_stops_in_the_middle_of_the_files(
        self, commit: str, get: Fetch, mirror: Mirror, server: GitServer, reading: AnyReader, run_folder: Path
    ) -> None:
        get(commit)
        server.behaviour.hang_after_bytes = 100_000
        with reading(deadline_seconds=2) as reader:
            ids = list(files(reader, commit, "big").values())
            with pytest.raises(GitTimeout):
                reader.want(ids, max_bytes=PLENTY)
        assert processes_with(f"GIT_DIR={mirror.folder}") == {}
        assert [path.name for path in mirror.folder.rglob("tmp_*")] == []
        assert list(run_folder.iterdir()) == []
        server.behaviour.hang_after_bytes = None
        with reading() as reader:
            reader.want(ids, max_bytes=PLENTY)
            assert len(read(reader, ids)) == 50

    def test_what_came_before_the_stop_is_not_fetched_again(
        self, commit: str, get: Fetch, server: GitServer, reading: AnyReader, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(partial, "BATCH", 10)
        get(commit)
        # The answer to the first batch, the small files, is shorter than this.
        server.behaviour.hang_after_bytes = 100_000
        with reading(deadline_seconds=4) as reader:
            ids = list(files(reader, commit, "deploy", "big").values())
            with pytest.raises(GitTimeout):
                reader.want(ids, max_bytes=PLENTY)
        server.behaviour.hang_after_bytes = None
        with reading() as reader:
            reader.want(ids, max_bytes=PLENTY)
            assert reader.filled == 50

    def test_it_waits_for_nobody_who_reads_too(
        self, commit: str, get: Fetch, mirror: Mirror, reading: AnyReader
    ) -> None:
        get(commit)
        with mirror.shared(), pytest.raises(MirrorBusy), reading() as reader:
            reader.want(list(files(reader, commit, "deploy").values()), max_bytes=PLENTY)
        with reading() as reader:
            reader.want(list(files(reader, commit, "deploy").values()), max_bytes=PLENTY)
            # Others may read again once the files are there.
            with mirror.shared():
                pass

    def test_it_fetches_alone(
        self, commit: str, get: Fetch, mirror: Mirror, reading: AnyReader, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = partial.fetch_blobs

        def fetch_blobs(*arguments: object, **options: object) -> None:
            with pytest.raises(MirrorBusy), mirror.shared():
                pass
            real(*arguments, **options)  # type: ignore[arg-type]

        get(commit)
        monkeypatch.setattr(partial, "fetch_blobs", fetch_blobs)
        with reading() as reader:
            reader.want(list(files(reader, commit, "deploy").values()), max_bytes=PLENTY)
            assert reader.filled == 10


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
