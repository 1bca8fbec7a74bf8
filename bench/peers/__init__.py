"""Clients that are compared, each a process of its own that ends with a line of `bench.measuring.say`."""

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bench.measuring import Stopwatch, say
from bench.servers import MAIN, MAIN_COMMIT


@dataclass(frozen=True, slots=True)
class Task:
    """Ask `polls` times, so many at a time, for `branch` of repositories below `base`, one after the other of `remotes`."""

    base: str
    polls: int
    in_flight: int
    remotes: int
    branch: str
    commit: str

    def url(self, number: int) -> str:
        # A base that ends with .git is the one repository there is.
        if self.base.endswith(".git"):
            return self.base
        return f"{self.base}/team/repository-{number % self.remotes}.git"

    def words(self) -> list[str]:
        """The command line that from_command_line() reads, and the Go program too."""
        return [
            f"-polls={self.polls}", f"-in-flight={self.in_flight}", f"-remotes={self.remotes}", f"-branch={self.branch}",
            f"-commit={self.commit}", self.base,
        ]  # fmt: skip


def from_command_line() -> Task:
    parser = argparse.ArgumentParser()
    for name, default in (("polls", 1000), ("in-flight", 50), ("remotes", 100)):
        parser.add_argument(f"-{name}", type=int, default=default)
    parser.add_argument("-branch", default=MAIN)
    parser.add_argument("-commit", default=MAIN_COMMIT)
    parser.add_argument("base")
    found = parser.parse_args()
    return Task(found.base, found.polls, found.in_flight, found.remotes, found.branch, found.commit)


def measure_threads(poll: Callable[[str, str], str], task: Task, *, warm_up: int) -> None:
    """For clients that block: threads, as many as are to be in flight. `poll` of (URL, branch) answers the commit."""

    def ask(number: int) -> None:
        found = poll(task.url(number), task.branch)
        if found != task.commit:
            sys.exit(f"{task.branch} is {found!r}")

    with ThreadPoolExecutor(task.in_flight) as threads:
        for _ in threads.map(ask, range(warm_up)):
            pass
        watch = Stopwatch()
        for _ in threads.map(ask, range(task.polls)):
            pass
        say(watch.stop(task.polls))


def patience(seconds: float) -> float:
    """An instant of the monotonic clock, so many seconds from now."""
    return time.monotonic() + seconds
