"""What is looked at while faults happen: the log's polls, and what stands at the clusters."""

import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.end_to_end.stack import POLL_LINE

if TYPE_CHECKING:
    from tests.faults.world import World


# Seconds from a result's being written to its line in the log, on busy cores.
LOGGED_WITHIN = 1.0


@dataclass(frozen=True)
class Poll:
    """One line of the log about one poll; `owned` says that its result was written, shortly before `logged_at`."""

    gitrepo: str
    repository: str
    claimed_at: datetime
    logged_at: datetime
    seconds: float
    result: str
    owned: bool


class LogReader:
    """Reads what was added to the logs of all parts since it last looked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.polls: list[Poll] = []
        self.events: list[dict[str, Any]] = []
        self._read: dict[Path, int] = {}

    def look(self) -> None:
        for path in sorted(self.folder.glob("*.log")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read()
            whole = data.rfind(b"\n") + 1
            self._read[path] = self._read.get(path, 0) + whole
            for line in data[:whole].splitlines():
                self._take(line)

    def _take(self, line: bytes) -> None:
        start = line.find(b"{")
        if start < 0:
            return
        try:
            found = json.loads(line[start:])
        except ValueError:
            return
        if found.get("event") == POLL_LINE:
            claimed_at = datetime.fromisoformat(found["claimed_at"])
            poll = Poll(
                gitrepo=found["gitrepo"],
                repository=found["repository"],
                claimed_at=claimed_at,
                logged_at=datetime.fromisoformat(found["timestamp"].replace("Z", "+00:00")),
                seconds=found["poll_seconds"],
                result=found["result"],
                owned=found["owned"],
            )
            self.polls.append(poll)
        else:
            self.events.append(found)

    def count(self, event: str) -> int:
        return sum(1 for found in self.events if found.get("event") == event)

    def polls_of(self, gitrepo: str, since: datetime | None = None) -> list[Poll]:
        """Polls whose results were written, in the order of their claims."""
        found = [p for p in self.polls if p.gitrepo == gitrepo and p.owned and (since is None or p.claimed_at >= since)]
        return sorted(found, key=lambda poll: poll.claimed_at)


def doubled(polls: list[Poll], lease_seconds: float) -> Iterator[tuple[Poll, Poll]]:
    """Neighbours of which the second began before the first had its answer or had lost its lease: two polls of one remote
    at once.
    """
    for first, second in itertools.pairwise(sorted(polls, key=lambda poll: poll.claimed_at)):
        if (second.claimed_at - first.claimed_at).total_seconds() < min(first.seconds, lease_seconds) - 0.05:
            yield first, second


def written_too_late(polls: list[Poll]) -> Iterator[tuple[Poll, Poll]]:
    """Neighbours of which the first was written although the second had claimed the remote since: the fence is down."""
    for first, second in itertools.pairwise(sorted(polls, key=lambda poll: poll.claimed_at)):
        if (first.logged_at - second.claimed_at).total_seconds() > LOGGED_WITHIN:
            yield first, second


@dataclass
class Watcher:
    """Samples the targets some times a second: their order only rises, and what they show only gets newer."""

    world: "World"
    wrong: list[str] = field(default_factory=list)
    samples: int = 0

    def __post_init__(self) -> None:
        self._orders: dict[tuple[str, str], tuple[int, int]] = {}
        self._numbers: dict[tuple[str, str], int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="watcher")
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(10)

    def forget(self, name: str) -> None:
        """Somebody else has written there: what was seen of `name` says nothing."""
        for key in [key for key in self._numbers if key[1] == name]:
            del self._numbers[key]
        self.wrong = [sentence for sentence in self.wrong if not sentence.startswith(f"{name} at ")]

    def _run(self) -> None:
        took = 0.0
        while not self._over.wait(max(0.2, 4 * took)):
            began = time.monotonic()
            for cluster, folder in list(self.world.folders.items()):
                self._look(cluster, folder)
            self.samples += 1
            took = time.monotonic() - began

    def _look(self, cluster: str, folder: Path) -> None:
        for path in folder.glob(".fleetsync/*/state.json"):
            with suppress(OSError, ValueError, KeyError):
                state = json.loads(path.read_text())
                order = (state["epoch"], state["sequence"])
                key = (cluster, path.parent.name)
                if order < self._orders.get(key, (0, 0)):
                    self.wrong.append(f"{state['gitrepo']} at {cluster} went from {self._orders[key]} back to {order}")
                self._orders[key] = order
        with self.world.lock:
            followed = [one for one in self.world.followed if not one.reverts]
        for one in followed:
            with suppress(OSError, ValueError):
                number = int((folder / one.name / "current/deploy/app.yaml").read_text())
                key = (cluster, one.name)
                if number < self._numbers.get(key, 0):
                    self.wrong.append(f"{one.name} at {cluster} showed {self._numbers[key]} and then {number}")
                self._numbers[key] = number
