import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.git_servers import Content, Link, Repository, Script
from tests.workers.bundle.conftest import MakeReader
from workers.bundle.build import BuiltBundle, build
from workers.bundle.content import Entry
from workers.bundle.errors import ContentChanged, ContentRefused
from workers.bundle.select import Limits, TreeEntry, list_entries, selection_key
from workers.bundle.store import BundleStore
from workers.fetch.mirror import Mirror
from workers.fetch.reader import GitObjectReader
from workers.git_environment import RemoteAccess

Bundled = Callable[..., BuiltBundle]

FILES: dict[str, Content] = {
    "deploy/app.yaml": "kind: ConfigMap\n",
    "deploy/run": Script(b"#!/bin/sh\n"),
    "deploy/empty": "",
    "deploy/link": Link("app.yaml"),
    "deploy/" + "long/" * 60 + "file": "deep",
    "deploy/n\u00e4me \u65e5": "utf-8",
    "deploy/a\nb": "newline",
    "deploy/-rf": "dash",
    "deploy/block": b"x" * 512,
    "deploy/App.yaml": "other",
    "deploy/far": Link("./" * 60 + "app.yaml"),
}


def contents(store: BundleStore, sha256: str) -> dict[str, tuple[int, bytes | str]]:
    found: dict[str, tuple[int, bytes | str]] = {}
    with store.open_bundle(sha256) as bundle:
        for entry, stream in bundle.entries():
            found[entry.path] = (entry.mode, stream.read() if stream else entry.link_target)
    return found


def expected(files: dict[str, Content]) -> dict[str, tuple[int, bytes | str]]:
    result: dict[str, tuple[int, bytes | str]] = {}
    for path, content in files.items():
        match content:
            case Link(target):
                result[path] = (0o120000, target)
            case Script(script):
                result[path] = (0o755, script)
            case str():
                result[path] = (0o644, content.encode())
            case bytes():
                result[path] = (0o644, content)
    return result


def test_what_goes_in_comes_out(repository: Repository, bundled: Bundled, store: BundleStore) -> None:
    built = bundled(repository.commit({**FILES, "other": "not selected"}), ["deploy"])

    assert contents(store, built.sha256) == expected(FILES)
    assert built.files == len(FILES)
    assert built.size == store.path_of(built.sha256).stat().st_size
    assert built.content_bytes == sum(len(c) for _, c in expected(FILES).values() if isinstance(c, bytes))


def test_entries_come_in_the_order_of_bytes_and_more_than_once(
    repository: Repository, bundled: Bundled, store: BundleStore
) -> None:
    built = bundled(repository.commit({"a.b": "1", "a/c": "2", "a-b": "3", "B": "4"}))
    with store.open_bundle(built.sha256) as bundle:
        assert bundle.sha256 == built.sha256
        for _ in range(2):
            assert [entry for entry, _ in bundle.entries()] == [
                Entry("B", 0o644, 1, ""),
                Entry("a-b", 0o644, 1, ""),
                Entry("a.b", 0o644, 1, ""),
                Entry("a/c", 0o644, 1, ""),
            ]


def test_two_mirrors_make_the_same_bytes(
    tmp_path: Path, repository: Repository, store: BundleStore, reader_of: MakeReader
) -> None:
    """One fetched at once, one in steps and repacked, from repositories with different histories."""
    other = Repository.make(tmp_path / "other.git")
    for number in range(3):
        last = other.commit({f"x{number}": "x", **FILES}, when=1_800_000_000 + number)
    commit = repository.commit(FILES)
    made = []
    for name, source, wanted in (("1", repository, [commit]), ("2", other, [last + "^", last])):
        mirror = Mirror(tmp_path / "mirrors" / name)
        for revision in wanted:
            sha = source.git("rev-parse", revision)
            mirror.fetch(RemoteAccess(source.file_url), sha, "1", deadline_seconds=20, run_folder=tmp_path / "run")
        mirror.maintain(deadline_seconds=20)
        with mirror.reader(deadline_seconds=20) as reader:
            selection = selection_key(reader, sha, ["deploy"])
            made.append((selection.key, build(reader, list_entries(reader, selection, Limits()), store)))
    assert made[0] == made[1]


def test_the_bytes_are_those_that_they_have_always_been(
    repository: Repository, bundled: Bundled, store: BundleStore
) -> None:
    """A change here makes every deployed bundle new: then raise OPTIONS_VERSION too."""
    built = bundled(repository.commit({"deploy/app.yaml": "kind: ConfigMap\n", "run": Script(b"x"), "l": Link("run")}))
    assert built.sha256 == "fd29e3c6982e3f059009276b51173814f60fbcddf4009f2dbec237372e4503ed"


def test_plain_tar_reads_it(repository: Repository, bundled: Bundled, store: BundleStore) -> None:
    built = bundled(repository.commit(FILES))
    with tarfile.open(store.path_of(built.sha256)) as tar:
        members = tar.getmembers()
        assert {m.name for m in members} == set(FILES)
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}


def test_the_same_content_twice_is_one_bundle(repository: Repository, bundled: Bundled, store: BundleStore) -> None:
    first = bundled(repository.commit({"deploy/a": "x"}), ["deploy"])
    second = bundled(repository.commit({"other": "y"}), ["deploy"])
    assert first == second
    assert len(list(store.names())) == 1


class TestRefusals:
    @pytest.mark.parametrize(
        "pointer",
        [
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "version https://git-lfs.github.com/spec/v1\next-0-x sha256:1\noid sha256:4d7a\nsize 1\n",
            "version http://git-media.io/v/2\noid sha256:4d7a\nsize 12345\n",
        ],
    )
    def test_an_lfs_pointer_is_refused_by_name(
        self, pointer: str, repository: Repository, bundled: Bundled, store: BundleStore
    ) -> None:
        commit = repository.commit({"deploy/a": "x", "deploy/model.bin": pointer, "deploy/z": "z"})
        with pytest.raises(ContentRefused, match=r"deploy/model\.bin: it is kept in Git LFS") as caught:
            bundled(commit)
        assert caught.value.cause == "lfs"
        assert list(store.names()) == []
        assert list((store.folder / "drafts").iterdir()) == []

    def test_a_text_about_lfs_is_no_pointer(self, repository: Repository, bundled: Bundled) -> None:
        long = "version https://git-lfs.github.com/spec/v1\n" + "x" * 1024
        assert bundled(repository.commit({"a": long, "b": "see version https://git-lfs.github.com/spec/v1"}))

    def test_after_a_refusal_the_reader_is_still_good(
        self, repository: Repository, bundled: Bundled, reader: GitObjectReader
    ) -> None:
        pointer = "version https://git-lfs.github.com/spec/v1\n"
        commit = repository.commit({"d/a": pointer, **{f"d/{n}": b"x" * 100_000 for n in range(20)}, "e/f": "x"})
        with pytest.raises(ContentRefused):
            bundled(commit, ["d"])
        assert bundled(commit, ["e"]).files == 1

    @pytest.mark.parametrize("size", [4, 6, 0])
    def test_a_store_that_gives_other_than_it_listed(
        self, size: int, repository: Repository, reader: GitObjectReader, store: BundleStore
    ) -> None:
        blob = repository.blob(b"12345")
        with pytest.raises(ContentChanged):
            build(reader, [TreeEntry("a", 0o644, blob, size)], store)
        assert list(store.names()) == []

    def test_a_store_that_gives_less(self, store: BundleStore) -> None:
        class Short:
            object_id, size = "1" * 40, 5000

            def __init__(self) -> None:
                self.data = io.BytesIO(b"x" * 4000)

            def read(self, size: int = -1, /) -> bytes:
                return self.data.read(size)

        class ShortReader:
            def blobs(self, object_ids: object) -> object:
                return iter([Short()])

        with pytest.raises(ContentChanged):
            build(ShortReader(), [TreeEntry("a", 0o644, "1" * 40, 5000)], store)  # type: ignore[arg-type]
        assert list((store.folder / "drafts").iterdir()) == []
