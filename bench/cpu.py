"""CPU seconds and memory of processes, read from /proc."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU `seconds` so far (of ended and reaped children too), and resident memory in `bytes` (shared pages each time)."""

    seconds: float = 0.0
    bytes: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.seconds + other.seconds, self.bytes + other.bytes)


def _fields(pid: int) -> list[str]:
    # The name in parentheses may hold anything, so the fields are counted from its end.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def usage_of(pid: int) -> Usage:
    """Of one process; nothing if it is gone."""
    try:
        fields = _fields(pid)
    except (FileNotFoundError, ProcessLookupError):
        return Usage()
    return Usage(sum(map(int, fields[11:15])) / TICK, int(fields[21]) * PAGE)


def tree(root: int) -> list[int]:
    """`root` and the processes below it."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        pid = int(stat.parent.name)
        try:
            parents.setdefault(int(_fields(pid)[1]), []).append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = [root]
    for pid in found:
        found += parents.get(pid, [])
    return found


def usage_of_all(pids: Iterable[int]) -> Usage:
    return sum(map(usage_of, pids), Usage())
