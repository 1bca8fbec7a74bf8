"""Who is running: read from /proc."""

import time
from pathlib import Path


def processes_with(variable: str) -> dict[int, str]:
    """The command line of every live process that has `variable` (NAME=value) in its environment."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def running(variable: str, word: str, *, seconds: float = 10) -> dict[int, str]:
    """The same, once one of them has `word` in its command line."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = processes_with(variable)
        if any(word in line for line in found.values()):
            return found
        time.sleep(0.02)
    raise AssertionError(f"no process with {word} in {seconds} s")


def gone(variable: str, *, seconds: float = 10) -> bool:
    """Whether all such processes end in time."""
    end = time.monotonic() + seconds
    while processes_with(variable):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def open_files(pid: int) -> set[Path]:
    """What its descriptors lead to."""
    return {link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir()}
