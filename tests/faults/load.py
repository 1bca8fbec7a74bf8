"""The load: repositories that GitRepos follow, who pushes to them, and what a cluster shows of them."""

import random
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.git_servers import Repository

if TYPE_CHECKING:
    from tests.faults.world import World

INTERVAL = 2.0


@dataclass
class Followed:
    """One GitRepo of the load, and its repository: every commit writes its number into deploy/app.yaml."""

    name: str
    repository: Repository
    number: int = 0
    head: str = ""
    # Every commit's content below the paths.
    contents: dict[str, dict[str, str]] = field(default_factory=dict)
    # Commits may come back (A → B → A): the number at a target may then fall.
    reverts: bool = False
    # Whether the pusher pushes to it; what a fault has registered for itself is pushed to by that fault alone.
    is_load: bool = True
    url: str = ""
    interval: str = f"{INTERVAL:g}s"
    paths: list[str] = field(default_factory=lambda: ["deploy"])
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def push(self) -> str:
        """A new commit on top of the last one; it changes two files."""
        with self.lock:
            self.number += 1
            changes = {
                "deploy/app.yaml": f"{self.number}\n",
                f"deploy/{self.number % 5}": f"{self.name} {self.number}\n",
            }
            if not self.head:
                changes["more/note"] = f"{self.name}\n"
            commit = self.repository.commit(changes, parent=self.head or None)
            self.contents[commit] = {**self.contents.get(self.head, {}), **changes}
            self.head = commit
            return commit

    def push_back(self) -> str:
        """Force the branch back to the commit before the newest one."""
        with self.lock:
            self.reverts = True
            earlier = [commit for commit in self.contents if commit != self.head]
            self.head = earlier[-1]
            self.repository.git("update-ref", "refs/heads/main", self.head)
            return self.head

    @property
    def wanted(self) -> dict[str, str]:
        """What a cluster has to show: the newest commit's content below the paths."""
        with self.lock:
            content = self.contents[self.head]
            return {path: text for path, text in content.items() if path.split("/")[0] in self.paths}


class Pusher:
    """Commits to a random repository of the load, some times a second, until it is told to stop."""

    def __init__(self, world: "World", every: float = 1.0) -> None:
        self.world, self.every = world, every
        self.pushed = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._over.clear()
        self._thread = threading.Thread(target=self._run, daemon=True, name="pusher")
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(30)
            self._thread = None

    def _run(self) -> None:
        while not self._over.wait(self.every):
            with self.world.lock:
                candidates = [one for one in self.world.followed if one.is_load and not one.reverts]
                if candidates:
                    random.choice(candidates).push()
                    self.pushed += 1


def content_at(folder: Path) -> dict[str, str]:
    """{path: content} of what a cluster shows."""
    found = {}
    with suppress(FileNotFoundError):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                found[str(path.relative_to(folder))] = path.read_text()
    return found
