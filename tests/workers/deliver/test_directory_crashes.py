"""The directory driver under kill -9, under other appliers, and frozen."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.workers.deliver.targets import (
    DEADLINE,
    LATER_UUID,
    UUID,
    MemoryBundle,
    content_of,
    ended,
    in_child,
    killed_before,
    leftovers,
    shown,
    target,
)
from workers.content import Entry
from workers.deliver.drivers.base import Applied, DriverError, Order, TargetAhead
from workers.deliver.drivers.directory import DirectoryDriver

A = MemoryBundle({"one": b"a" * 100, "d/two": b"a", "l": ("link", "d/two")})
B = MemoryBundle({"one": b"b" * 100, "d/three": b"b"})
driver = DirectoryDriver()


def nothing(path: Path) -> None:
    path.mkdir()


def apply_a(path: Path) -> None:
    driver.apply(target(path), A, Order(0, 1), deadline=DEADLINE)


def apply_b(path: Path) -> None:
    driver.apply(target(path, keep_releases=1), B, Order(0, 2), deadline=DEADLINE)


def apply_b_over_an_older_gitrepo(path: Path) -> None:
    driver.apply(target(path, uuid=LATER_UUID, created=5.0), A, Order(7, 7), deadline=DEADLINE)


def apply_b_and_edit(path: Path) -> None:
    apply_b(path)
    (path / "shop/current/d/three").write_bytes(b"edited")


def remove(path: Path) -> None:
    driver.remove(target(path), Order(0, 2), deadline=DEADLINE)


@dataclass(frozen=True)
class Case:
    before: Callable[[Path], None]
    act: Callable[[Path], None]
    after: MemoryBundle | None


CASES = {
    "first": Case(nothing, apply_b, B),
    "switch": Case(apply_a, apply_b, B),
    "repair": Case(apply_b_and_edit, apply_b, B),
    "take a name over": Case(apply_b_over_an_older_gitrepo, apply_b, B),
    "remove": Case(apply_a, remove, None),
    "remove nothing": Case(nothing, remove, None),
}


def releases(path: Path) -> list[Path]:
    folder = path / ".fleetsync" / UUID / "releases"
    return [item for item in folder.iterdir() if not item.name.startswith(".")] if folder.exists() else []


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_killed_at_any_step_it_has_the_old_or_the_new_and_heals(tmp_path: Path, case: Case) -> None:
    template = tmp_path / "template"
    case.before(template)
    old, order_before = shown(template), driver.applied(target(template), deadline=DEADLINE)
    new = case.after.content if case.after else None
    seen = []
    for step in range(1, 10_000):
        path = tmp_path / f"step{step}"
        shutil.copytree(template, path, symlinks=True)
        status = ended(in_child(killed_before(step, lambda path=path: case.act(path))))  # type: ignore[misc]
        assert status in (0, -signal.SIGKILL)

        found, has = shown(path), driver.applied(target(path), deadline=DEADLINE)
        assert found in (old, new), step
        assert has is None or has.order in (Order(0, 1), Order(0, 2)), step
        assert order_before is None or (has is not None and has.order >= order_before.order), step
        assert all(content_of(release) in (old, new) for release in releases(path)), step
        if found == new != old:
            assert has is not None and has.order == Order(0, 2), step
        if has is not None and has.order == Order(0, 2):
            with pytest.raises(TargetAhead):
                apply_a(path)
            assert shown(path) == found, step
        assert status == 0 or has is None or has == order_before or not has.complete or found == new, step
        seen.append(found == new)

        case.act(path)
        assert shown(path) == new, step
        assert driver.applied(target(path), deadline=DEADLINE) == Applied(
            Order(0, 2), case.after.sha256 if case.after else ""
        )
        assert not leftovers(path), step
        assert len(releases(path)) == (1 if case.after else 0), step
        shutil.rmtree(path)
        if status == 0:
            break
    assert step > 20
    assert seen == sorted(seen), "what users see goes from old to new once"


def test_of_many_appliers_the_highest_order_ends_there(tmp_path: Path) -> None:
    orders = [Order(epoch, sequence) for epoch in (0, 1) for sequence in range(1, 13)]
    bundles = {order: MemoryBundle({"who": repr(order).encode(), "pad": os.urandom(2000)}) for order in orders}
    random.Random(7).shuffle(orders)

    def work(mine: list[Order]) -> None:
        for order in mine:
            before = driver.applied(target(tmp_path), deadline=DEADLINE)
            try:
                driver.apply(target(tmp_path), bundles[order], order, deadline=DEADLINE)
            except TargetAhead as error:
                assert error.order > order
            else:
                assert before is None or before.order < order
            after = driver.applied(target(tmp_path), deadline=DEADLINE)
            assert after is not None and after.order >= order

    children = [in_child(lambda mine=orders[start::4]: work(mine)) for start in range(4)]  # type: ignore[misc]
    readers_saw: set[bytes | tuple[str, str]] = set()
    until = time.monotonic() + DEADLINE
    while bundles[max(orders)].content["who"] not in readers_saw and time.monotonic() < until:
        readers_saw |= read_who(tmp_path)
    assert [ended(child) for child in children] == [0] * 4
    assert readers_saw <= {bundle.content["who"] for bundle in bundles.values()}
    assert shown(tmp_path) == bundles[max(orders)].content
    assert not leftovers(tmp_path)


def read_who(path: Path) -> set[bytes]:
    """One file through the links, as a reader would; nothing before the first release."""
    try:
        return {(path / "shop" / "current" / "who").read_bytes()}
    except FileNotFoundError:
        return set()


class Freezing(MemoryBundle):
    """Stops its own process, once, when it is read."""

    def __init__(self, bundle: MemoryBundle, where: str) -> None:
        super().__init__(bundle.content)
        self._name, self._where = self.sha256, where
        del self.sha256

    def __getattr__(self, name: str) -> str:
        if name != "sha256":
            raise AttributeError(name)
        self._freeze("before the lock")
        return self._name

    def entries(self) -> Iterator[tuple[Entry, BinaryIO | None]]:
        for item in super().entries():
            yield item
            self._freeze("under the lock")
        self._freeze("after the last entry")

    def _freeze(self, where: str) -> None:
        if self._where == where:
            self._where = ""
            os.kill(os.getpid(), signal.SIGSTOP)


def frozen(path: Path, where: str, deadline: float = DEADLINE) -> int:
    pid = in_child(lambda: driver.apply(target(path), Freezing(A, where), Order(0, 1), deadline=deadline))
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    return pid


def test_a_worker_frozen_before_the_lock_does_not_take_back(tmp_path: Path) -> None:
    pid = frozen(tmp_path, "before the lock")
    apply_b(tmp_path)

    os.kill(pid, signal.SIGCONT)

    assert ended(pid) == 12  # TargetAhead
    assert shown(tmp_path) == B.content


@pytest.mark.parametrize("where", ["under the lock", "after the last entry"])
@pytest.mark.parametrize(("deadline", "status"), [(DEADLINE, 0), (0.5, 10)], ids=["in time", "too late"])
def test_a_worker_frozen_under_the_lock_holds_up_the_newer_until_its_deadline(
    tmp_path: Path, deadline: float, status: int, where: str
) -> None:
    pid = frozen(tmp_path, where, deadline)
    started = time.monotonic()
    with pytest.raises(DriverError, match="another delivery of GitRepo shop held the target") as refusal:
        driver.apply(target(tmp_path), B, Order(0, 2), deadline=0.6)
    assert refusal.value.cause == "busy"
    assert 0.6 <= time.monotonic() - started < 5
    assert driver.applied(target(tmp_path), deadline=DEADLINE) is None  # asked without the lock
    other = target(tmp_path, uuid=LATER_UUID, name="other")
    driver.apply(other, B, Order(0, 1), deadline=DEADLINE)  # and nobody else is held up

    os.kill(pid, signal.SIGCONT)
    assert ended(pid) == status
    assert shown(tmp_path) == (A.content if status == 0 else None)
    apply_b(tmp_path)
    assert shown(tmp_path) == B.content
    assert not leftovers(tmp_path)


def test_a_frozen_worker_that_is_killed_frees_the_target(tmp_path: Path) -> None:
    pid = frozen(tmp_path, "under the lock")
    assert leftovers(tmp_path)
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL

    apply_b(tmp_path)

    assert shown(tmp_path) == B.content
    assert not leftovers(tmp_path)
