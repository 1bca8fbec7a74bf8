"""Bundles held in memory, and what a directory target shows to its users."""

import hashlib
import io
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from workers.content import LINK_MODE, Entry
from workers.deliver.drivers.base import DriverError, Target

UUID = "11111111-1111-4111-8111-111111111111"
LATER_UUID = "00000000-0000-4000-8000-000000000000"  # sorts before: only the instant may decide
DEADLINE = 20.0  # seconds

Content = Mapping[str, bytes | tuple[str, str]]  # a file's bytes, ("link", target) or ("exec", text)


class MemoryBundle:
    """Entries in path order, unless given otherwise."""

    def __init__(self, content: Content) -> None:
        self.content = dict(sorted(content.items()))
        self._entries = [self._entry(path, value) for path, value in self.content.items()]
        self.sha256 = hashlib.sha256(repr(self.content).encode("utf-8", "surrogatepass")).hexdigest()

    @staticmethod
    def _entry(path: str, value: bytes | tuple[str, str]) -> tuple[Entry, bytes]:
        if isinstance(value, bytes):
            return Entry(path, 0o644, len(value), ""), value
        if value[0] == "link":
            return Entry(path, LINK_MODE, 0, value[1]), b""
        return Entry(path, 0o755, len(value[1]), ""), value[1].encode()

    def entries(self) -> Iterator[tuple[Entry, BinaryIO | None]]:
        for entry, data in self._entries:
            yield entry, None if entry.mode == LINK_MODE else io.BytesIO(data)


class RawBundle(MemoryBundle):
    """Any entries, also those that no tree can have."""

    def __init__(self, *entries: tuple[Entry, bytes]) -> None:
        super().__init__({})
        self._entries = list(entries)


def target(path: Path, *, uuid: str = UUID, created: float = 1000.0, name: str = "shop", **settings: Any) -> Target:
    return Target(
        gitrepo_uuid=uuid,
        gitrepo_name=name,
        gitrepo_created=created,
        cluster="prod-eu",
        settings={"path": str(path), **settings},
        secrets={},
    )


def shown(path: Path, name: str = "shop") -> dict[str, bytes | tuple[str, str]] | None:
    """What a user finds below <path>/<name>/current, in a bundle's terms; None if nothing is there."""
    top = path / name / "current"
    return content_of(top) if top.exists() else None


def content_of(top: Path) -> dict[str, bytes | tuple[str, str]]:
    """A folder in a bundle's terms."""
    found: dict[str, bytes | tuple[str, str]] = {}
    for item in sorted(top.rglob("*")):
        key = str(item.relative_to(top))
        if item.is_symlink():
            found[key] = ("link", os.readlink(item))  # noqa: PTH115 - pathlib would tidy it
        elif item.is_file():
            executable = stat.S_IMODE(item.stat().st_mode) == 0o755
            found[key] = ("exec", item.read_text()) if executable else item.read_bytes()
    return found


def leftovers(path: Path) -> list[str]:
    """What a killed worker left aside."""
    store = path / ".fleetsync"
    return [str(item) for item in store.rglob(".*") if "current" not in item.parts] + [
        item.name for item in path.iterdir() if item.name.startswith(".") and item != store
    ]


def in_child(work: Callable[[], object]) -> int:
    """Start ``work`` in a process that ends with 0, 12 for TargetAhead, 10 for a DriverError, else 11."""
    pid = os.fork()
    if pid:
        return pid
    status = 11
    try:
        work()
        status = 0
    except DriverError as error:
        status = 12 if error.cause == "target_ahead" else 10
    except BaseException as error:  # noqa: BLE001
        os.write(2, f"child: {error!r}\n".encode())
    finally:
        os._exit(status)


def ended(pid: int) -> int:
    """The exit status, or the signal's number below zero."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_before(step: int, work: Callable[[], object]) -> Callable[[], object]:
    """``work``, killed right before its ``step``-th call into the operating system.

    Between two such calls nothing changes on a disk, so these are all the instants that differ.
    """

    def watched() -> None:
        calls = 0

        def watch(_: FrameType, event: str, called: Any) -> None:
            nonlocal calls
            if event == "c_call" and getattr(called, "__module__", "") in ("posix", "fcntl"):
                calls += 1
                if calls == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(watch)
        work()
        sys.setprofile(None)

    return watched
