import fcntl
import os
import shutil
from pathlib import Path

import pytest

from tests.git_servers import GitServer, Repository
from tests.workers.fetch.conftest import Fetch
from workers.fetch.errors import CommitNotFound, GitError, LimitExceeded, MirrorBusy, MirrorCorrupt, NotFound
from workers.fetch.locks import alone
from workers.fetch.mirror import Mirror
from workers.git_environment import RemoteAccess

ABSENT = "1" * 40


def held(mirror: Mirror) -> dict[str, str]:
    return mirror.refs()


def test_it_fetches_a_commit_by_its_id(repository: Repository, server: GitServer, mirror: Mirror, fetch: Fetch) -> None:
    commit = repository.commit({"deploy/app.yaml": "a"})
    later = repository.commit({"deploy/app.yaml": "b"})

    report = fetch(server.url(repository), commit)

    assert report.fetched and report.bytes > 0 and report.seconds > 0
    assert held(mirror) == {"1": commit}
    assert commit != later
    with mirror.reader(deadline_seconds=10) as reader:
        assert [item.name for item in reader.tree(reader.root_tree(commit))] == [b"deploy"]


def test_it_asks_nobody_for_a_commit_that_is_there(
    repository: Repository, server: GitServer, mirror: Mirror, fetch: Fetch
) -> None:
    commit = repository.commit({"a": "a"})
    fetch(server.url(repository), commit)
    asked = len(server.log)

    report = fetch(server.url(repository), commit, "2")

    assert not report.fetched
    assert len(server.log) == asked
    assert held(mirror) == {"1": commit, "2": commit}


def test_a_new_commit_transfers_only_what_is_new(
    repository: Repository, server: GitServer, mirror: Mirror, fetch: Fetch
) -> None:
    big = repository.commit({f"folder/{n}": os.urandom(50_000) for n in range(20)})
    first = fetch(server.url(repository), big)

    small = repository.commit({"folder/one": "small"})
    second = fetch(server.url(repository), small)

    assert first.bytes > 1_000_000
    assert second.bytes < 20_000


def test_it_keeps_no_history(repository: Repository, server: GitServer, mirror: Mirror, fetch: Fetch) -> None:
    old = repository.commit({"old": os.urandom(300_000)})
    new = repository.commit({"old": None, "new": "x"})

    assert fetch(server.url(repository), new).bytes < 20_000
    with mirror.reader(deadline_seconds=10) as reader, pytest.raises(MirrorCorrupt):
        reader.root_tree(old)


def test_it_follows_a_forced_push(repository: Repository, server: GitServer, mirror: Mirror, fetch: Fetch) -> None:
    base = repository.commit({"a": "1"})
    fetch(server.url(repository), repository.commit({"a": "2"}))
    forced = repository.commit({"a": "3"}, parent=base)

    fetch(server.url(repository), forced)

    assert held(mirror) == {"1": forced}


def test_it_reads_sha256_repositories(root: Path, server: GitServer, mirror: Mirror, fetch: Fetch) -> None:
    repository = Repository.make(root / "new.git", object_format="sha256")
    commit = repository.commit({"a": "x"})
    assert len(commit) == 64

    fetch(server.url(repository), commit)

    assert held(mirror) == {"1": commit}


def test_a_remote_that_changes_its_object_format_gets_a_new_mirror(
    root: Path, repository: Repository, server: GitServer, mirror: Mirror, fetch: Fetch
) -> None:
    fetch(server.url(repository), repository.commit({"a": "x"}))
    shutil.rmtree(repository.folder)
    again = Repository.make(repository.folder, object_format="sha256")
    commit = again.commit({"a": "x"})

    fetch(server.url(again), commit)

    assert held(mirror) == {"1": commit}


def test_it_fetches_from_a_file_url(repository: Repository, mirror: Mirror, fetch: Fetch) -> None:
    commit = repository.commit({"a": "x"})
    assert fetch(repository.file_url, commit).fetched


def test_it_fetches_without_protocol_v2(repository: Repository, server: GitServer, fetch: Fetch) -> None:
    server.protocol_v2 = False
    assert fetch(server.url(repository), repository.commit({"a": "x"})).fetched


def test_a_server_without_protocol_v2_that_refuses_the_id_is_commit_not_found(
    repository: Repository, server: GitServer, fetch: Fetch
) -> None:
    server.protocol_v2 = False
    old = repository.commit({"a": "x"})
    repository.commit({"a": "y"})

    with pytest.raises(CommitNotFound):
        fetch(server.url(repository), old)


def test_a_commit_that_the_remote_lacks(
    repository: Repository, server: GitServer, mirror: Mirror, fetch: Fetch
) -> None:
    commit = repository.commit({"a": "x"})
    fetch(server.url(repository), commit)

    with pytest.raises(CommitNotFound) as caught:
        fetch(server.url(repository), ABSENT)

    assert caught.value.cause == "commit-not-found"
    assert held(mirror) == {"1": commit}


def test_a_repository_that_is_not_there(root: Path, server: GitServer, fetch: Fetch) -> None:
    with pytest.raises(NotFound):
        fetch(f"{server.address}/none.git", ABSENT)
    with pytest.raises(NotFound):
        fetch(f"file://{root}/none.git", ABSENT)


@pytest.mark.parametrize("commit", ["", "main", "-x", "1" * 39, "1" * 41, "A" * 40, "--upload-pack=x", "1" * 40 + "\n"])
def test_only_a_commit_id_is_a_commit(fetch: Fetch, commit: str) -> None:
    with pytest.raises(ValueError, match="not a commit id"):
        fetch("https://127.0.0.1/x", commit)


@pytest.mark.parametrize("ref", ["", "../x", "a b", "a.lock", "-/../x", "/a", "a/", "a//b", "x:y", "x" * 101, "a\n"])
def test_only_a_name_of_ours_is_a_ref(fetch: Fetch, ref: str) -> None:
    with pytest.raises(ValueError, match="not a name for a ref"):
        fetch("https://127.0.0.1/x", ABSENT, ref)


class TestLocks:
    def test_a_busy_mirror_says_so_at_once(self, repository: Repository, mirror: Mirror, fetch: Fetch) -> None:
        commit = repository.commit({"a": "x"})
        fetch(repository.file_url, commit)

        with mirror.shared(), mirror.shared():
            for use in (
                lambda: fetch(repository.file_url, commit),
                mirror.remove,
                lambda: mirror.drop_ref("1"),
                lambda: mirror.maintain(deadline_seconds=5),
            ):
                with pytest.raises(MirrorBusy):
                    use()
        fetch(repository.file_url, commit)

    def test_a_reader_is_turned_away_while_somebody_fetches(
        self, repository: Repository, mirror: Mirror, fetch: Fetch
    ) -> None:
        fetch(repository.file_url, repository.commit({"a": "x"}))
        with mirror.lock_file.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(MirrorBusy), mirror.reader(deadline_seconds=5):
                pass

    def test_a_lock_whose_mirror_was_removed_meanwhile_is_nobodys(
        self, repository: Repository, mirror: Mirror, fetch: Fetch
    ) -> None:
        fetch(repository.file_url, repository.commit({"a": "x"}))
        with mirror.shared() as lock:
            with alone(mirror.lock_file, lock):
                pass
            mirror.lock_file.unlink()
            with pytest.raises(MirrorBusy), alone(mirror.lock_file, lock):
                pass

    def test_the_lock_lies_outside_of_the_mirror(self, repository: Repository, mirror: Mirror, fetch: Fetch) -> None:
        fetch(repository.file_url, repository.commit({"a": "x"}))
        assert mirror.lock_file.exists()
        assert mirror.folder not in mirror.lock_file.parents

    def test_remove_leaves_nothing(self, repository: Repository, mirror: Mirror, fetch: Fetch) -> None:
        fetch(repository.file_url, repository.commit({"a": "x"}))
        mirror.remove()
        assert list(mirror.folder.parent.iterdir()) == []
        assert mirror.refs() == {}
        with pytest.raises(MirrorCorrupt), mirror.reader(deadline_seconds=5):
            pass


class TestLeftovers:
    LEFT = (
        "HEAD.lock",
        "config.lock",
        "packed-refs.lock",
        "shallow.lock",
        "refs/fleetsync/1.lock",
        "objects/pack/tmp_pack_AbC",
        "objects/pack/tmp_idx_AbC",
        "objects/pack/.tmp-12-pack-ab.pack",
        "objects/pack/pack-ab.keep",
        "objects/ab/tmp_obj_XyZ",
    )

    def test_they_are_removed_by_the_next_fetch(self, repository: Repository, mirror: Mirror, fetch: Fetch) -> None:
        fetch(repository.file_url, repository.commit({"a": "x"}))
        for name in self.LEFT:
            (mirror.folder / name).parent.mkdir(exist_ok=True)
            (mirror.folder / name).write_text("left")
        half = mirror.folder.with_name("1.old-0")
        half.mkdir()

        commit = repository.commit({"a": "y"})
        fetch(repository.file_url, commit)

        assert held(mirror) == {"1": commit}
        assert not [name for name in self.LEFT if (mirror.folder / name).exists()]
        assert not half.exists()

    def test_those_of_earlier_versions_go_with_the_next_repacking(
        self, repository: Repository, mirror: Mirror, fetch: Fetch
    ) -> None:
        fetch(repository.file_url, repository.commit({"a": "x"}))
        others = [mirror.folder.with_name(name) for name in ("1.old-99", "1.new-99")]
        for other in others:
            other.mkdir()

        mirror.maintain(deadline_seconds=30)

        assert not [other for other in others if other.exists()]


class TestLimits:
    def test_a_pack_beyond_the_limit_is_stopped_and_removed(
        self, repository: Repository, server: GitServer, mirror: Mirror, fetch: Fetch
    ) -> None:
        commit = repository.commit({"big": os.urandom(3_000_000)})

        with pytest.raises(LimitExceeded) as caught:
            fetch(server.url(repository), commit, max_bytes=1_000_000)

        assert caught.value.setting == "GIT_FETCH_MAX_BYTES"
        assert "GIT_FETCH_MAX_BYTES" in str(caught.value)
        assert mirror.size_bytes() < 10_000
        assert mirror.refs() == {}
        fetch(server.url(repository), commit, max_bytes=4_000_000)

    def test_many_small_files_are_counted_together(self, repository: Repository, mirror: Mirror, fetch: Fetch) -> None:
        commit = repository.commit({f"{n}": os.urandom(10_000) for n in range(100)})
        with pytest.raises(LimitExceeded):
            fetch(repository.file_url, commit, max_bytes=500_000)


class TestMaintenance:
    def test_it_keeps_what_refs_hold_and_forgets_the_rest(
        self, repository: Repository, mirror: Mirror, fetch: Fetch
    ) -> None:
        kept = repository.commit({"kept": os.urandom(10_000)})
        fetch(repository.file_url, kept, "kept")
        for number in range(41):
            last = repository.commit({"kept": None, "a": os.urandom(10_000), "n": str(number)})
            fetch(repository.file_url, last)
        assert mirror.maintenance_due()
        before = mirror.size_bytes()

        mirror.maintain(deadline_seconds=30)

        assert not mirror.maintenance_due()
        assert mirror.size_bytes() < before / 5
        assert len((mirror.folder / "shallow").read_text().split()) == 2
        assert held(mirror) == {"kept": kept, "1": last}
        again = repository.commit({"n": "again"})
        assert fetch(repository.file_url, again).bytes < 5_000

    def test_a_dropped_ref_is_gone(self, repository: Repository, mirror: Mirror, fetch: Fetch) -> None:
        commit = repository.commit({"a": "x"})
        fetch(repository.file_url, commit)
        fetch(repository.file_url, commit, "2/7")

        mirror.drop_ref("1")
        mirror.drop_ref("1")

        assert held(mirror) == {"2/7": commit}

    def test_nothing_of_it_needs_a_mirror(self, mirror: Mirror) -> None:
        mirror.drop_ref("1")
        mirror.maintain(deadline_seconds=5)
        mirror.remove()
        assert not mirror.maintenance_due()
        assert mirror.size_bytes() == 0


def test_a_disk_that_can_not_be_written(tmp_path: Path, repository: Repository) -> None:
    (tmp_path / "file").write_text("in the way")
    mirror = Mirror(tmp_path / "file" / "1")
    with pytest.raises(GitError) as caught:
        mirror.fetch(RemoteAccess(repository.file_url), ABSENT, "1", deadline_seconds=5, run_folder=tmp_path / "run")
    assert caught.value.cause == "disk"
