"""The machine, the CPU and memory of a client's process, and rounds that take turns."""

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pycurl

GIBIBYTE = 1024 * 1024 * 1024
T = TypeVar("T")


def machine() -> dict[str, str]:
    """What the numbers were measured on, by name."""
    return {
        "cpu": _first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GIBIBYTE:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "git": _said("git", "--version").removeprefix("git version "),
        "libcurl": pycurl.version.split()[1].removeprefix("libcurl/"),
        "go": _said("go", "env", "GOVERSION").removeprefix("go") or "missing",
        # What else was running: numbers of a busy machine are no numbers.
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def one_line(found: Mapping[str, str]) -> str:
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['memory']}, {found['kernel']}, Python {found['python']}, "
        f"git {found['git']}, libcurl {found['libcurl']}, Go {found['go']}"
    )


def _first(path: str, name: str) -> str:
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _said(*command: str) -> str:
    if not shutil.which(command[0]):
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one client: `operations` took `seconds` of time and `cpu_seconds` of the client's own CPU, its children
    included. `peak_bytes` is its largest resident memory.
    """

    operations: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int = 0

    @property
    def cpu_us(self) -> float:
        """Microseconds of CPU for each operation."""
        return self.cpu_seconds / self.operations * 1e6

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def peak_bytes() -> int:
    """The largest resident memory that this process has had (not ru_maxrss, which starts with that of who started it)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class Stopwatch:
    """From its making to `stop()`: the part of a client's run that counts, without imports and warming up."""

    def __init__(self) -> None:
        self.cpu, self.time = cpu_seconds(), time.monotonic()

    def stop(self, operations: int) -> Sample:
        return Sample(operations, time.monotonic() - self.time, cpu_seconds() - self.cpu, peak_bytes())


def say(sample: Sample) -> None:
    """The last line of a client that runs as a process of its own, for `run_client`."""
    print(
        json.dumps(
            {
                "operations": sample.operations,
                "seconds": sample.seconds,
                "cpu_seconds": sample.cpu_seconds,
                "peak_bytes": sample.peak_bytes,
            }
        ),
        flush=True,
    )


def run_client(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, patience_seconds: float = 600
) -> Sample:
    """Run a client that ends with the line of `say()`, and check what it says of its CPU against what the kernel says of
    the whole process and its children.
    """
    whole, output = run_whole(command, env=env, patience_seconds=patience_seconds)
    try:
        said = json.loads(output.splitlines()[-1])
        sample = Sample(
            int(said["operations"]), float(said["seconds"]), float(said["cpu_seconds"]), int(said["peak_bytes"])
        )
    except (IndexError, KeyError, ValueError) as error:
        raise RuntimeError(f"{' '.join(command)} said {output[-500:]!r}") from error
    if sample.cpu_seconds > whole.cpu_seconds + 0.02:
        raise RuntimeError(f"{command[0]} says {sample.cpu_seconds:.3f} s of CPU, the kernel {whole.cpu_seconds:.3f} s")
    return sample


def run_whole(
    command: Sequence[str], *, operations: int = 1, env: Mapping[str, str] | None = None, patience_seconds: float = 600
) -> tuple[Sample, str]:
    """A whole process from start to end, children that it waited for included, and its standard output."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run([*command], env=env, capture_output=True, text=True, timeout=patience_seconds, check=False)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        # Its reason comes first; what follows is how it fell apart.
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}: {done.stderr[:2000]}{done.stdout[-500:]}"
        )
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Sample(operations, seconds, used), done.stdout


def interleaved(cases: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Every case once a round, the order turned by one each time, so that none always follows the same."""
    found: dict[str, list[T]] = {name: [] for name in cases}
    names = list(cases)
    for number in range(rounds):
        turn = number % max(len(names), 1)
        for name in names[turn:] + names[:turn]:
            found[name].append(cases[name]())
        print(f"  round {number + 1} of {rounds}: {', '.join(names)}", file=sys.stderr, flush=True)
    return found
