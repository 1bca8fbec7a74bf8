"""What dead processes left on this worker's machine, listed and not removed: whose sweeper should have come by long ago."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from django.conf import settings

from workers.bundle.store import BundleStore
from workers.fetch.mirror import Mirror
from workers.git_environment import abandoned_run_folders, default_run_folder
from workers.git_errors import MirrorBusy

MOST = 100
MIRROR_LOCK = re.compile(r"[0-9a-f]{64}\.lock")
# A collector comes by once a minute where one machine syncs, and in turn where there are more; with room for a dozen.
SWEPT_SECONDS = 900.0
# Between the two looks at a process: one that was just killed is gone at the second.
SECOND_LOOK_SECONDS = 1.0
PROC = Path("/proc")


def debris(older_than_seconds: float, abandoned_seconds: float) -> list[str]:
    """Sentences, at most MOST. `older_than_seconds`: what lies in a mirror for so long was not tidied by the retry of the
    job that left it; `abandoned_seconds`: drafts that old have no writer.
    """
    found: list[str] = []
    for things in (
        in_mirrors(older_than_seconds),
        in_drafts(abandoned_seconds + SWEPT_SECONDS),
        in_run_folder(),
        orphans(),
    ):
        for thing in things:
            if len(found) == MOST:
                return found
            found.append(thing)
    return found


def in_mirrors(older_than_seconds: float) -> Iterator[str]:
    """In mirrors that nobody works in at this moment."""
    before = time.time() - older_than_seconds
    for lock in sorted(Path(settings.MIRROR_DIR).glob("*.lock")):
        if not MIRROR_LOCK.fullmatch(lock.name):
            continue
        with suppress(MirrorBusy, OSError):
            for path in Mirror(lock.with_suffix("")).leftovers():
                with suppress(OSError):
                    if path.lstat().st_mtime < before:
                        yield f"a dead git's file in a mirror: {path}"


def in_drafts(older_than_seconds: float) -> Iterator[str]:
    for path in BundleStore().abandoned(older_than_seconds):
        yield f"a bundle that nobody finished: {path}"


def in_run_folder() -> Iterator[str]:
    for path in abandoned_run_folders(SWEPT_SECONDS):
        yield f"a dead process's folder of git settings: {path}"


def is_worker(command: list[str]) -> bool:
    """Whether this command line is a Celery worker's."""
    line = " ".join(command).lower()
    return "celery" in line and "worker" in line


def orphans(parent_is_alive: Callable[[list[str]], bool] = is_worker) -> Iterator[str]:
    """Git processes of ours that no worker waits for any more, seen twice."""
    first = dict(_orphans(parent_is_alive))
    if first:
        time.sleep(SECOND_LOOK_SECONDS)
        again = dict(_orphans(parent_is_alive))
        for key in sorted(first.keys() & again.keys()):
            yield f"process {key[0]} without a worker: {first[key]}"


def _orphans(parent_is_alive: Callable[[list[str]], bool]) -> Iterator[tuple[tuple[int, str], str]]:
    """((process id, when it started), its command) for each."""
    ours = (str(settings.MIRROR_DIR), str(default_run_folder()))
    for folder in PROC.glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            if folder.stat().st_uid != os.getuid() or not _name(folder).startswith("git"):
                continue
            environment = (folder / "environ").read_bytes().decode(errors="replace")
            if not any(f"={path}/" in environment for path in ours):
                continue
            if not any(parent_is_alive(_command(PROC / str(pid))) for pid in _ancestors(int(folder.name))):
                words = " ".join(_command(folder))[:200]
                yield (int(folder.name), _stat(folder)[19]), words


def _name(folder: Path) -> str:
    return (folder / "comm").read_text().strip()


def _command(folder: Path) -> list[str]:
    try:
        return (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _stat(folder: Path) -> list[str]:
    """The fields of /proc/<pid>/stat after the name, which may hold anything: the second is the parent's id."""
    return (folder / "stat").read_text().rpartition(")")[2].split()


def _ancestors(pid: int) -> Iterator[int]:
    for _ in range(64):
        try:
            pid = int(_stat(PROC / str(pid))[1])
        except (OSError, ValueError, IndexError):
            return
        if pid <= 0:
            return
        yield pid
