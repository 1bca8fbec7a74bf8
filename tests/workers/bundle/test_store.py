import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from workers.bundle.errors import BundleCorrupt, BundleMissing, StoreFull, StoreRefused, disk_errors
from workers.bundle.store import BundleStore

PROJECT = Path(__file__).resolve().parents[3]
TAR = bytes(10_240)
NAME = hashlib.sha256(TAR).hexdigest()
ABSENT = "1" * 64


def put(store: BundleStore, data: bytes = TAR) -> str:
    with store.draft() as draft:
        draft.write(data)
    return draft.sha256


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_it_is_stored_under_its_hash(store: BundleStore) -> None:
    assert put(store) == NAME
    assert files_below(store.folder) == [f"{NAME[:2]}/{NAME}.tar"]
    assert store.exists(NAME) and not store.exists(ABSENT)
    assert [name for name, _ in store.names()] == [NAME]


def test_twice_is_once(store: BundleStore) -> None:
    put(store)
    with store.open_bundle(NAME) as bundle:
        put(store)
        assert list(bundle.entries()) == []
    assert files_below(store.folder) == [f"{NAME[:2]}/{NAME}.tar"]


def test_an_error_leaves_nothing(store: BundleStore) -> None:
    with pytest.raises(KeyError), store.draft() as draft:
        draft.write(TAR)
        raise KeyError
    assert files_below(store.folder) == []


def test_a_missing_one_says_so(store: BundleStore) -> None:
    with pytest.raises(BundleMissing), store.open_bundle(ABSENT):
        pass


@pytest.mark.parametrize("damage", ["a bit", "cut off", "longer", "empty"])
def test_a_damaged_one_is_told_before_any_entry_and_removed(damage: str, store: BundleStore) -> None:
    put(store)
    path = store.path_of(NAME)
    data = bytearray(TAR)
    match damage:
        case "a bit":
            data[5000] ^= 1
        case "cut off":
            del data[5000:]
        case "longer":
            data += b"\0"
        case "empty":
            data.clear()
    path.write_bytes(data)

    with pytest.raises(BundleCorrupt), store.open_bundle(NAME):
        raise AssertionError("it was opened")

    assert not path.exists()
    put(store)
    with store.open_bundle(NAME) as bundle:
        assert bundle.sha256 == NAME


def test_a_new_one_heals_a_damaged_one(store: BundleStore) -> None:
    put(store)
    store.path_of(NAME).write_bytes(b"noise")
    put(store)
    with store.open_bundle(NAME):
        pass


def test_delete(store: BundleStore) -> None:
    put(store)
    assert store.delete(NAME)
    assert not store.delete(NAME)
    assert not store.exists(NAME)


@pytest.mark.parametrize("name", ["", "x", "../" + "1" * 61, "1" * 63, "A" * 64, "1" * 64 + "\n"])
def test_only_a_hash_is_a_name(name: str, store: BundleStore) -> None:
    for use in (store.exists, store.delete, lambda n: store.open_bundle(n).__enter__()):
        with pytest.raises(ValueError, match="64 lower-case hex digits"):
            use(name)


def test_a_sweep_removes_old_drafts_only(store: BundleStore) -> None:
    put(store)
    drafts = store.folder / "drafts"
    for name, age in (("draft-old", 1000), ("draft-new", 10)):
        (drafts / name).write_bytes(b"half")
        then = time.time() - age
        os.utime(drafts / name, (then, then))
    assert store.sweep(older_than_seconds=100) == 1
    assert files_below(store.folder) == sorted(["drafts/draft-new", f"{NAME[:2]}/{NAME}.tar"])


def test_nothing_to_sweep(store: BundleStore) -> None:
    assert store.sweep(0) == 0
    assert list(store.names()) == []


class TestDisk:
    def test_a_place_that_can_not_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        store = BundleStore(tmp_path / "file" / "bundles")
        with pytest.raises(StoreRefused):
            put(store)

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
    def test_a_full_disk_has_a_name(self, number: int) -> None:
        with pytest.raises(StoreFull), disk_errors():
            raise OSError(number, os.strerror(number))

    def test_a_write_that_the_kernel_refuses_leaves_nothing(self, store: BundleStore) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
        try:
            with pytest.raises(StoreFull):
                put(store)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert files_below(store.folder) == []

    def test_a_real_full_disk_leaves_nothing(self, tmp_path: Path) -> None:
        folder = tmp_path / "small"
        folder.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True)
        if mounted.returncode:
            pytest.skip("mounting needs rights that this user lacks")
        try:
            store = BundleStore(folder / "bundles")
            put(store)
            with pytest.raises(StoreFull):
                put(store, os.urandom(200_000))
            assert files_below(store.folder) == [f"{NAME[:2]}/{NAME}.tar"]
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            with pytest.raises(StoreRefused):
                put(store)
            with store.open_bundle(NAME):
                pass
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def test_a_killed_writer_leaves_no_bundle(store: BundleStore) -> None:
    script = """
        import os, signal, sys
        from pathlib import Path
        from workers.bundle.store import BundleStore
        with BundleStore(Path(sys.argv[1])).draft() as draft:
            draft.write(bytes(3_000_000))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(store.folder)], cwd=PROJECT)
    assert done.returncode == -signal.SIGKILL
    assert list(store.names()) == []
    assert store.sweep(0) == 1
    assert files_below(store.folder) == []
