"""Faults of the worker machines' disks and of targets."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.end_to_end.stack import wait_until
from tests.faults.judge import Report
from tests.faults.processes import http_load
from tests.faults.table import Fault, add, fault
from tests.faults.world import BACKOFF_CAP, World, cannot_mount

MIB = 1024 * 1024


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """The disk of `folder` has no byte left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    remount(folder, "ro")
    try:
        yield
    finally:
        remount(folder, "rw")


def remount(folder: Path, mode: str) -> None:
    # Somebody may just be writing: then it is tried again.
    for _ in range(100):
        done = subprocess.run(["mount", "-o", f"remount,{mode}", str(folder)], capture_output=True)
        if done.returncode == 0:
            return
        time.sleep(0.1)
    raise AssertionError(done.stderr.decode())


KINDS = {"full": full, "read_only": read_only}


def disk(name: str, kind: str, world: World, report: Report) -> None:
    one = http_load(world)
    with KINDS[kind](world.disks[name]):
        one.push()
        status = wait_until(
            "the error shows",
            lambda: (s := world.stack.gitrepo(one.name)["status"])["display_state"] in ("ErrSync", "ErrApplied") and s,
            30,
        )
        report.notes["shown"] = status["message"][:120]
    began = time.monotonic()
    wait_until("it goes on by itself", lambda: world.delivered(one), 3 * BACKOFF_CAP + 30, every=0.2)
    report.notes["delivered after"] = round(time.monotonic() - began, 2)


for _disk in ("mirrors", "bundles"):
    for _kind in KINDS:
        add(
            Fault(
                f"{_disk}_{_kind}",
                partial(disk, _disk, _kind),
                woken=True,
                needs=cannot_mount,
            )
        )


def mirrors_of(world: World) -> list[Path]:
    return [path for path in world.disks["mirrors"].iterdir() if (path / "HEAD").exists()]


@fault()
def mirrors_corrupted(world: World, report: Report) -> None:
    """The newest pack of every mirror loses its second half."""
    for mirror in mirrors_of(world):
        for pack in sorted((mirror / "objects/pack").glob("*.pack"), key=lambda path: path.stat().st_mtime)[-1:]:
            pack.chmod(0o600)
            with pack.open("r+b") as file:
                file.truncate(pack.stat().st_size // 2)
    for one in world.followed:
        one.push()


@fault()
def stale_git_locks(world: World, report: Report) -> None:
    for mirror in mirrors_of(world):
        for name in ("shallow.lock", "packed-refs.lock", "config.lock", "HEAD.lock"):
            (mirror / name).touch()
        for ref in (mirror / "refs").rglob("*"):
            if ref.is_file() and not ref.name.endswith(".lock"):
                Path(f"{ref}.lock").touch()
        (mirror / "objects/pack/tmp_pack_leftover").write_bytes(b"half of a pack")
    for one in world.followed:
        one.push()


@fault()
def bundles_lost_and_damaged(world: World, report: Report) -> None:
    """Bundles are a cache: what is gone or damaged is made again."""
    # What is wanted by a delivery that is still to be made, at the moment when it is opened.
    world.arm("deliver.apply", "raise", times=2)
    world.wait_hit("deliver.apply")
    for number, path in enumerate(world.disks["bundles"].glob("??/*.tar")):
        if number % 2:
            path.unlink()
        else:
            with path.open("r+b") as file:
                file.write(b"damaged!")
    world.disarm("deliver.apply")


@fault()
def target_down(world: World, report: Report) -> None:
    """A file stands where the cluster's folder was."""
    folder = world.folders["us"]
    aside = folder.with_name("us-aside")
    folder.rename(aside)
    folder.write_text("not a folder")
    one = http_load(world)
    one.push()
    try:
        status = wait_until(
            "the error shows",
            lambda: (s := world.stack.gitrepo(one.name)["status"])["display_state"] == "ErrApplied" and s,
            30,
        )
        report.notes["shown"] = status["message"][:120]
        wait_until(
            "the other cluster has it",
            lambda: (world.folders["eu"] / one.name / "current/deploy/app.yaml").read_text() == f"{one.number}\n",
            30,
        )
    finally:
        folder.unlink()
        aside.rename(folder)


@fault()
def target_slow(world: World, report: Report) -> None:
    """Beyond DELIVERY_TIMEOUT, while its lock is held."""
    world.arm("directory.switch", "sleep", seconds=11, times=2)
    world.wait_hit("directory.switch", more_than=1, seconds=60)
    time.sleep(11)


@fault()
def target_applies_and_drops_its_answer(world: World, report: Report) -> None:
    world.arm("deliver.applied", "raise", times=4)
    world.wait_hit("deliver.applied", more_than=3, seconds=60)


@fault()
def content_at_a_target_is_changed_by_somebody_else_while_it_is_delivered(world: World, report: Report) -> None:
    one = http_load(world)
    with world.frozen_at("deliver.applied", f"{one.name} us", push=one):
        place = world.folders["us"] / one.name / "current/deploy/app.yaml"
        place.chmod(0o600)
        place.write_text("0\n")
    world.watcher.forget(one.name)
