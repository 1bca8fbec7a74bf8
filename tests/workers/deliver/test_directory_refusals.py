"""What the directory driver refuses or stops at: what is not its own, what is outside its root, full disks, damaged states."""

import errno
import os
import resource
from pathlib import Path

import pytest

from tests.workers.deliver.targets import (
    DEADLINE,
    UUID,
    MemoryBundle,
    ended,
    in_child,
    leftovers,
    shown,
    target,
)
from tests.workers.deliver.test_directory_driver import A, B, applied, apply, driver, remove, store
from workers.deliver.drivers.base import Applied, DriverError, Order
from workers.deliver.drivers.directory import DirectoryDriver
from workers.deliver.drivers.directory_place import _disk_errors


@pytest.mark.parametrize("kind", ["file", "folder", "link of a user"])
def test_it_never_touches_what_is_not_its_own(tmp_path: Path, kind: str) -> None:
    mine, path = tmp_path / "mine", tmp_path / "target"
    path.mkdir()
    mine.write_text("precious")
    if kind == "file":
        (path / "shop").write_text("precious")
    elif kind == "folder":
        (path / "shop").mkdir()
    else:
        (path / "shop").symlink_to("../mine")

    with pytest.raises(DriverError, match=r"prod-eu, folder .*: shop is there .* Move it away") as refusal:
        apply(path, A, 0, 1)

    assert refusal.value.cause == "occupied"
    assert applied(path) is None
    assert mine.read_text() == "precious"
    remove(path, 0, 2)
    assert (path / "shop").exists()


def test_a_dangling_link_gives_way(tmp_path: Path) -> None:
    (tmp_path / "shop").symlink_to("nowhere")
    apply(tmp_path, A, 0, 1)
    assert shown(tmp_path) == A.content


@pytest.mark.parametrize("which", ["path", "store", "folder", "releases"])
def test_a_symbolic_link_in_the_place_of_a_folder_leads_nothing_out(tmp_path: Path, which: str) -> None:
    out, path = tmp_path / "out", tmp_path / "target"
    out.mkdir()
    link = {
        "path": path,
        "store": path / ".fleetsync",
        "folder": path / ".fleetsync" / UUID,
        "releases": path / ".fleetsync" / UUID / "releases",
    }[which]
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(out)

    with pytest.raises(DriverError, match="Not a directory"):
        apply(path, A, 0, 1)
    with pytest.raises(DriverError):
        remove(path, 0, 1)
    assert list(out.iterdir()) == []


ROOTS = {
    "below": ("root/a/b", True),
    "by a link inside": ("root/in/b", True),
    "the root": ("root", False),
    "beside": ("rootless/a", False),
    "by a link out": ("root/out/b", False),
    "a link at the end": ("root/in", False),
}


@pytest.mark.parametrize(("where", "allowed"), ROOTS.values(), ids=ROOTS)
def test_no_target_leaves_the_root(tmp_path: Path, where: str, allowed: bool) -> None:
    for folder in ("root/inner", "outer"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "root/in").symlink_to("inner")
    (tmp_path / "root/out").symlink_to("../outer")
    bound, path = DirectoryDriver(below=str(tmp_path / "root")), tmp_path / where
    before = sorted(tmp_path.rglob("*"))

    if allowed:
        assert bound.applied(target(path), deadline=DEADLINE) is None
        bound.apply(target(path), A, Order(0, 1), deadline=DEADLINE)
        assert bound.verify(target(path), A, deadline=DEADLINE)
        assert shown(path) == A.content
    else:
        with pytest.raises(DriverError, match=r"must lead to a folder below|Not a directory"):
            bound.apply(target(path), A, Order(0, 1), deadline=DEADLINE)
        with pytest.raises(DriverError, match=r"must lead to a folder below|Not a directory"):
            bound.applied(target(path), deadline=DEADLINE)
        assert sorted(tmp_path.rglob("*")) == before


SETTINGS = {
    "no path": {},
    "relative": {"path": "srv"},
    "the root": {"path": "//"},
    "parent": {"path": "/srv/../etc"},
    "newline": {"path": "/srv/a\nb"},
    "NUL": {"path": "/srv/\0"},
    "a number": {"path": 5},
    "keep none": {"path": "/srv/x", "keep_releases": 0},
    "keep true": {"path": "/srv/x", "keep_releases": True},
}


@pytest.mark.parametrize("saved", SETTINGS.values(), ids=SETTINGS)
def test_settings_written_past_the_door_are_refused(tmp_path: Path, saved: dict[str, object]) -> None:
    wrong = target(tmp_path)
    object.__setattr__(wrong, "settings", saved)
    with pytest.raises(DriverError, match="edit the cluster") as refusal:
        driver.apply(wrong, A, Order(0, 1), deadline=DEADLINE)
    assert refusal.value.cause == "settings"


@pytest.mark.parametrize("options", [{"uuid": "../../etc"}, {"name": ".."}, {"name": "a/b"}, {"name": ".fleetsync"}])
def test_names_that_are_paths_are_refused(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(DriverError, match="can't name a folder"):
        apply(tmp_path, A, 0, 1, **options)
    assert list(tmp_path.iterdir()) == []


def test_no_time_left_leaves_the_old_content(tmp_path: Path) -> None:
    apply(tmp_path, A, 0, 1)
    with pytest.raises(DriverError) as refusal:
        driver.apply(target(tmp_path), B, Order(0, 2), deadline=0.0)
    assert refusal.value.cause == "timeout"
    with pytest.raises(DriverError):
        driver.remove(target(tmp_path), Order(0, 2), deadline=0.0)
    assert shown(tmp_path) == A.content
    assert applied(tmp_path) == Applied(Order(0, 1), A.sha256)
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    ("limit_bytes", "bundle"),
    [(2000, MemoryBundle({"a": b"1", "big": bytes(5000)})), (100, B)],
    ids=["file", "state"],
)
def test_a_disk_that_refuses_leaves_nothing_partial(tmp_path: Path, limit_bytes: int, bundle: MemoryBundle) -> None:
    apply(tmp_path, A, 0, 1)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))
        apply(tmp_path, bundle, 0, 2)

    assert ended(in_child(work)) == 10
    assert shown(tmp_path) == A.content
    assert applied(tmp_path) == Applied(Order(0, 1), A.sha256)
    assert not leftovers(tmp_path)
    apply(tmp_path, bundle, 0, 2)
    assert shown(tmp_path) == bundle.content


@pytest.mark.parametrize(
    ("number", "cause", "hint"),
    [
        (errno.ENOSPC, "disk_full", "Free space there"),
        (errno.EDQUOT, "disk_full", "Free space there"),
        (errno.EROFS, "read_only", "Mount it writable"),
        (errno.EACCES, "permission", "Give it the right to"),
        (errno.EIO, "disk", "Input/output error. Look at that folder and its disk"),
    ],
)
def test_a_disk_error_names_cluster_folder_and_remedy(number: int, cause: str, hint: str) -> None:
    with pytest.raises(DriverError) as refusal, _disk_errors(target(Path("/srv/x")), "/srv/x"):
        raise OSError(number, os.strerror(number), "a\nb")
    assert refusal.value.cause == cause
    assert str(refusal.value).startswith("Cluster prod-eu, folder /srv/x (at 'a\\nb'): ")
    assert hint in str(refusal.value)


def test_a_folder_without_rights_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)

    def work() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        with pytest.raises(DriverError) as refusal:
            apply(tmp_path / "x", A, 0, 1)
        assert refusal.value.cause == "permission"

    assert ended(in_child(work)) == 0


def test_a_bundle_that_cannot_be_read_does_not_blame_the_disk(tmp_path: Path) -> None:
    class Broken(MemoryBundle):
        def entries(self):  # type: ignore[no-untyped-def]
            yield from super().entries()
            raise OSError(errno.EIO, "the store is away")

    with pytest.raises(DriverError) as refusal:
        apply(tmp_path, Broken(dict(A.content)), 0, 1)
    assert refusal.value.cause == "bundle_unreadable"
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"epoch": 1}', "\xff"])
def test_a_state_edited_by_hand_is_told_and_not_guessed(tmp_path: Path, text: str) -> None:
    apply(tmp_path, A, 0, 1)
    (store(tmp_path) / "state.json").write_text(text, encoding="latin-1")
    with pytest.raises(DriverError, match="Delete that file") as refusal:
        apply(tmp_path, B, 0, 2)
    assert refusal.value.cause == "state_damaged"
    assert shown(tmp_path) == A.content
