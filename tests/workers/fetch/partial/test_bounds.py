"""What fetching the wanted files of a partial mirror may take: bytes, seconds, and the mirror for itself."""

from pathlib import Path

import pytest

from tests.git_servers import GitServer
from tests.workers.fetch.conftest import Fetch
from tests.workers.fetch.partial.objects import PLENTY, AnyReader, files, read
from tests.workers.fetch.processes import processes_with
from workers.fetch import partial
from workers.fetch.errors import GitTimeout, LimitExceeded, MirrorBusy
from workers.fetch.mirror import Mirror


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
