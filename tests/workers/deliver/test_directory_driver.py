"""The directory driver on real files."""

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workers.deliver.targets import (
    DEADLINE,
    LATER_UUID,
    UUID,
    MemoryBundle,
    leftovers,
    shown,
    target,
)
from workers.deliver.drivers import driver_for
from workers.deliver.drivers.base import Applied, DriverError, Order, Plan, TargetAhead
from workers.deliver.drivers.directory import DirectoryDriver

A = MemoryBundle({"app.yaml": b"a: 1\n", "same": b"same", "run": ("exec", "#!"), "d/e/f": b"x", "l": ("link", "d/e")})
B = MemoryBundle({"app.yaml": b"a: 2\n", "same": b"same", "new/file": b"new"})
driver = DirectoryDriver()


def apply(path: Path, bundle: MemoryBundle, epoch: int, sequence: int, **options: object) -> None:
    driver.apply(target(path, **options), bundle, Order(epoch, sequence), deadline=DEADLINE)  # type: ignore[arg-type]


def remove(path: Path, epoch: int, sequence: int, **options: object) -> None:
    driver.remove(target(path, **options), Order(epoch, sequence), deadline=DEADLINE)  # type: ignore[arg-type]


def applied(path: Path, **options: object) -> Applied | None:
    return driver.applied(target(path, **options), deadline=DEADLINE)  # type: ignore[arg-type]


def store(path: Path) -> Path:
    return path / ".fleetsync" / UUID


def test_the_registry_binds_it_to_the_root_and_names_an_unknown_one(tmp_path: Path) -> None:
    found = driver_for("directory")
    assert found.name == "directory"
    with pytest.raises(DriverError, match="must lead to a folder below"):
        found.apply(target(tmp_path), A, Order(0, 1), deadline=DEADLINE)
    with pytest.raises(DriverError, match=r"'nope\\n'; set the cluster's driver to one of: directory"):
        driver_for("nope\n")


def test_it_lays_out_links_releases_and_state(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on the way"

    apply(path, A, 0, 1)

    assert (path / "shop").readlink() == Path(f".fleetsync/{UUID}")
    assert (store(path) / "current").readlink() == Path(f"releases/{A.sha256}")
    assert shown(path) == A.content
    state = json.loads((store(path) / "state.json").read_text())
    assert {key: state[key] for key in ("epoch", "sequence", "bundle", "gitrepo", "removed")} == {
        "epoch": 0,
        "sequence": 1,
        "bundle": A.sha256,
        "gitrepo": "shop",
        "removed": False,
    }
    assert applied(path) == Applied(Order(0, 1), A.sha256)
    assert not leftovers(path)


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        apply(tmp_path / "x", A, 0, 1)
    finally:
        os.umask(before)

    for item in (tmp_path / "x").rglob("*"):
        if item.suffix != ".lock" and not item.is_symlink():
            assert item.stat().st_mode & 0o777 == (0o755 if item.is_dir() or item.name == "run" else 0o644), item


# (asked for, what, outcome) at a target that has (1, 5) with A, or after a removal at (1, 5)
ORDERS = [
    ("lower sequence", (1, 4), A, "ahead"),
    ("lower sequence, other bundle", (1, 4), B, "ahead"),
    ("lower epoch, higher sequence", (0, 9), B, "ahead"),
    ("equal, same bundle", (1, 5), A, "done"),
    ("equal, other bundle", (1, 5), B, "ahead"),
    ("equal, removal", (1, 5), None, "ahead"),
    ("lower, removal", (1, 4), None, "ahead"),
    ("higher sequence", (1, 6), B, "done"),
    ("higher sequence, same bundle", (1, 6), A, "done"),
    ("higher epoch, lower sequence", (2, 1), B, "done"),
    ("higher, removal", (1, 6), None, "done"),
]


@pytest.mark.parametrize(("order", "bundle", "outcome"), [row[1:] for row in ORDERS], ids=[row[0] for row in ORDERS])
def test_the_target_compares_orders(
    tmp_path: Path, order: tuple[int, int], bundle: MemoryBundle | None, outcome: str
) -> None:
    apply(tmp_path, A, 1, 5)

    def act() -> None:
        if bundle is None:
            remove(tmp_path, *order)
        else:
            apply(tmp_path, bundle, *order)

    if outcome == "ahead":
        with pytest.raises(TargetAhead, match=r"has delivery 1\.5 of GitRepo shop") as refusal:
            act()
        assert refusal.value.order == Order(1, 5)
        assert shown(tmp_path) == A.content
        assert applied(tmp_path) == Applied(Order(1, 5), A.sha256)
    else:
        act()
        assert shown(tmp_path) == (bundle.content if bundle else None)
        assert applied(tmp_path) == Applied(Order(*order), bundle.sha256 if bundle else "")


def test_a_removal_keeps_the_order_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("a user's")
    apply(tmp_path, A, 0, 1)
    apply(tmp_path, B, 0, 2)

    remove(tmp_path, 0, 3)
    remove(tmp_path, 0, 3)

    assert {item.name for item in tmp_path.iterdir()} == {"mine", ".fleetsync"}
    assert {item.name for item in store(tmp_path).rglob("*")} == {"state.json", "releases"}
    assert applied(tmp_path) == Applied(Order(0, 3), "")
    with pytest.raises(TargetAhead):
        apply(tmp_path, A, 0, 3)
    with pytest.raises(TargetAhead):
        apply(tmp_path, A, 0, 2)
    apply(tmp_path, A, 0, 4)
    assert shown(tmp_path) == A.content


def test_a_removal_of_what_never_came_holds_up_a_late_apply(tmp_path: Path) -> None:
    remove(tmp_path / "x", 0, 2)
    with pytest.raises(TargetAhead):
        apply(tmp_path / "x", A, 0, 1)


def test_reading_makes_nothing(tmp_path: Path) -> None:
    missing = tmp_path / "x"
    assert applied(missing) is None
    assert not driver.verify(target(missing), A, deadline=DEADLINE)
    assert driver.plan(target(missing), A, deadline=DEADLINE) == Plan(added=5, changed=0, removed=0, kept=0)
    assert not missing.exists()


def test_the_plan_counts_files_and_links(tmp_path: Path) -> None:
    apply(tmp_path, A, 0, 1)
    plan = driver.plan(target(tmp_path), B, deadline=DEADLINE)

    assert plan == Plan(added=1, changed=1, removed=3, kept=1)
    assert plan.removed_part == pytest.approx(3 / 5)
    assert driver.plan(target(tmp_path), A, deadline=DEADLINE) == Plan(added=0, changed=0, removed=0, kept=5)
    assert shown(tmp_path) == A.content


def test_the_plan_of_an_empty_target_removes_nothing() -> None:
    assert Plan(added=3, changed=0, removed=0, kept=0).removed_part == 0.0


def swap_for_fifo(top: Path) -> None:
    (top / "same").unlink()
    os.mkfifo(top / "same")


def swap_for_link(top: Path) -> None:
    (top / "same").rename(top.parent / "elsewhere")
    (top / "same").symlink_to("../elsewhere")


def repoint(top: Path, to: str) -> None:
    (top / "l").unlink()
    (top / "l").symlink_to(to)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a changed byte": lambda top: (top / "same").write_bytes(b"sbme"),
    "a byte more": lambda top: (top / "same").write_bytes(b"same!"),
    "an extra file": lambda top: (top / "d" / "extra").write_bytes(b""),
    "an extra folder": lambda top: (top / "extra").mkdir(),
    "a missing file": lambda top: (top / "app.yaml").unlink(),
    "a mode without x": lambda top: (top / "run").chmod(0o644),
    "a mode with w for all": lambda top: (top / "same").chmod(0o666),
    "a folder's mode": lambda top: (top / "d").chmod(0o700),
    "a link elsewhere": lambda top: repoint(top, "d"),
    "a FIFO for a file": swap_for_fifo,
    "a link for a file": swap_for_link,
    "no name": lambda top: (top.parents[3] / "shop").unlink(),
    "no current": lambda top: (top.parents[1] / "current").unlink(),
    "no release": lambda top: top.rename(top.parent / "gone"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_verify_sees_drift_and_the_same_order_again_repairs_it(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    apply(tmp_path, A, 0, 1)
    assert driver.verify(target(tmp_path), A, deadline=DEADLINE)
    assert not driver.verify(target(tmp_path), B, deadline=DEADLINE)

    damage(store(tmp_path) / "releases" / A.sha256)

    assert not driver.verify(target(tmp_path), A, deadline=DEADLINE)
    apply(tmp_path, A, 0, 1)
    assert driver.verify(target(tmp_path), A, deadline=DEADLINE)
    assert shown(tmp_path) == A.content
    assert len(list((store(tmp_path) / "releases").iterdir())) == 1


def test_a_release_that_is_intact_is_used_again(tmp_path: Path) -> None:
    apply(tmp_path, A, 0, 1)
    kept = (store(tmp_path) / "releases" / A.sha256).stat().st_ino
    apply(tmp_path, B, 0, 2)
    apply(tmp_path, A, 0, 3)

    assert shown(tmp_path) == A.content
    assert (store(tmp_path) / "releases" / A.sha256).stat().st_ino == kept


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_it_keeps_the_releases_applied_last(tmp_path: Path, keep: int) -> None:
    bundles = [MemoryBundle({"f": bytes([number])}) for number in range(5)]
    order = [0, 1, 2, 3, 1, 4]
    for sequence, number in enumerate(order, start=1):
        apply(tmp_path, bundles[number], 0, sequence, keep_releases=keep)

    wanted = [bundles[number].sha256 for number in (4, 1, 3)][:keep]
    assert {item.name for item in (store(tmp_path) / "releases").iterdir()} == set(wanted)


def test_a_renamed_gitrepo_takes_its_link_along(tmp_path: Path) -> None:
    apply(tmp_path, A, 0, 1)
    apply(tmp_path, A, 0, 2, name="store")
    assert shown(tmp_path) is None
    assert shown(tmp_path, "store") == A.content


OLD, NEW = {"uuid": UUID, "created": 1000.0}, {"uuid": LATER_UUID, "created": 2000.0}
STEPS = ["old apply", "old remove", "new apply", "old apply", "new apply"]


@pytest.mark.parametrize("steps", sorted(set(itertools.permutations(STEPS))), ids=", ".join)
def test_the_later_gitrepo_ends_with_the_name(tmp_path: Path, steps: tuple[str, ...]) -> None:
    for step in steps:
        if step == "new apply":
            apply(tmp_path, B, 0, 1, **NEW)
        elif step == "old remove":
            remove(tmp_path, 0, 2, **OLD)
        else:
            try:
                apply(tmp_path, A, 0, 1, **OLD)
            except DriverError as error:
                assert error.cause in ("target_ahead", "name_taken")
    assert shown(tmp_path) == B.content
    assert driver.verify(target(tmp_path, **NEW), B, deadline=DEADLINE)  # type: ignore[arg-type]
    assert applied(tmp_path, **OLD) == Applied(Order(0, 2), "")


def test_an_owner_that_was_removed_gives_way_though_its_link_is_still_there(tmp_path: Path) -> None:
    apply(tmp_path, B, 0, 1, **NEW)
    remove(tmp_path, 0, 2, **NEW)
    (tmp_path / "shop").symlink_to(f".fleetsync/{LATER_UUID}")  # as if killed before it was unlinked

    assert applied(tmp_path, **NEW) == Applied(Order(0, 2), "", complete=False)
    apply(tmp_path, A, 0, 1, **OLD)

    assert shown(tmp_path) == A.content


def test_a_database_restored_to_before_the_deletion_gets_the_name_back(tmp_path: Path) -> None:
    apply(tmp_path, A, 0, 1, **OLD)
    remove(tmp_path, 0, 2, **OLD)
    apply(tmp_path, B, 0, 1, **NEW)

    with pytest.raises(TargetAhead):
        apply(tmp_path, A, 0, 1, **OLD)
    apply(tmp_path, A, 1, 1, **OLD)
    assert shown(tmp_path) == A.content

    with pytest.raises(DriverError, match=f"registered later.*{UUID}"):
        apply(tmp_path, B, 0, 1, **NEW)
    apply(tmp_path, A, 1, 2, **OLD)
    assert shown(tmp_path) == A.content

    apply(tmp_path, B, 0, 1, uuid="22222222-2222-4222-8222-222222222222", created=3000.0)
    assert shown(tmp_path) == B.content
