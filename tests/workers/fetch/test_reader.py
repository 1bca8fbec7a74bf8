import os

import pytest

from tests.git_servers import Repository
from tests.workers.fetch.conftest import Fetch
from workers.fetch.errors import GitTimeout, MirrorCorrupt
from workers.fetch.mirror import Mirror
from workers.fetch.reader import WINDOW, parse_tree


@pytest.fixture
def commit(repository: Repository, fetch: Fetch) -> str:
    files = {f"f/{n:04}": f"content {n}\n" * n for n in range(5 * WINDOW)}
    commit = repository.commit({**files, "big": b"b" * 3_000_000, "empty": ""})
    fetch(repository.file_url, commit)
    return commit


def test_it_reads_trees_sizes_and_blobs(mirror: Mirror, commit: str) -> None:
    with mirror.reader(deadline_seconds=20) as reader:
        top = {item.name: item for item in reader.tree(reader.root_tree(commit))}
        assert {name: item.mode for name, item in top.items()} == {
            b"big": 0o100644,
            b"empty": 0o100644,
            b"f": 0o40000,
        }
        below = reader.tree(top[b"f"].object_id)
        ids = [item.object_id for item in below] + [top[b"big"].object_id, top[b"empty"].object_id]
        expected = [f"content {n}\n" * n for n in range(5 * WINDOW)] + ["b" * 3_000_000, ""]
        assert reader.sizes(ids) == [len(text) for text in expected]
        assert [blob.read().decode() for blob in reader.blobs(ids)] == expected
        assert [(blob.object_id, blob.size) for blob in reader.blobs(ids)] == [
            (i, len(text)) for i, text in zip(ids, expected, strict=True)
        ]


def test_blobs_may_be_left_unread_or_the_rest_forgotten(mirror: Mirror, commit: str) -> None:
    with mirror.reader(deadline_seconds=20) as reader:
        top = {item.name: item.object_id for item in reader.tree(reader.root_tree(commit))}
        blobs = reader.blobs([top[b"big"], top[b"empty"], top[b"big"]])
        assert next(blobs).read(3) == b"bbb"
        assert next(blobs).read() == b""
        blobs.close()  # type: ignore[attr-defined]
        assert len(reader.tree(reader.root_tree(commit))) == 3


def test_a_commit_that_is_not_here(mirror: Mirror, commit: str) -> None:
    with mirror.reader(deadline_seconds=20) as reader:
        with pytest.raises(MirrorCorrupt):
            reader.root_tree("1" * 40)
        assert reader.root_tree(commit)


def test_an_object_that_is_missing_means_a_damaged_mirror(mirror: Mirror, commit: str) -> None:
    with mirror.reader(deadline_seconds=20) as reader:
        with pytest.raises(MirrorCorrupt):
            reader.sizes(["1" * 40])
        with pytest.raises(MirrorCorrupt):
            next(reader.blobs(["1" * 40]))
        with pytest.raises(MirrorCorrupt):
            reader.tree("1" * 40)


def test_an_object_of_another_kind_means_a_damaged_mirror(mirror: Mirror, commit: str) -> None:
    with mirror.reader(deadline_seconds=20) as reader, pytest.raises(MirrorCorrupt):
        reader.tree(commit)


def test_noise_in_a_pack_is_told(mirror: Mirror, commit: str) -> None:
    (pack,) = mirror.folder.glob("objects/pack/*.pack")
    pack.chmod(0o644)
    size = pack.stat().st_size
    pack.write_bytes(b"PACK\0\0\0\2" + os.urandom(size - 8))
    with pytest.raises(MirrorCorrupt), mirror.reader(deadline_seconds=20) as reader:
        list(reader.tree(reader.root_tree(commit)))


def test_reading_has_a_deadline(mirror: Mirror, commit: str) -> None:
    with mirror.reader(deadline_seconds=0) as reader, pytest.raises(GitTimeout):
        reader.root_tree(commit)


@pytest.mark.parametrize("data", [b"100644", b"100644 a", b"100644 a\0short", b"x a\0" + bytes(20), b" \0" + bytes(20)])
def test_a_tree_that_is_no_tree(data: bytes) -> None:
    with pytest.raises(MirrorCorrupt):
        parse_tree(data, 20)
