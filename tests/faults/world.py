"""The world that faults happen in: a whole stack under load, real git servers, two clusters, and what is true of them.

Leases and timeouts are seconds here, so that what takes a minute in life takes seconds.
"""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from django.db import DatabaseError, InterfaceError, connections

from tests.end_to_end.manifests import manifest, register_all
from tests.end_to_end.stack import ROOT, Part, Stack, wait_until
from tests.faults.load import INTERVAL, Followed, Pusher, content_at
from tests.faults.watching import LogReader, Watcher
from tests.git_servers import Repository, git_server
from tests.postgresql import PostgreSQL

POLL_LEASE, JOB_LEASE, DELIVERY_LEASE = 8.0, 4.0, 4.0
SYNC_PERIOD = 20.0
BACKOFF_CAP = 6.0
TICK = 1.0
ENVIRONMENT = {
    "GITREPO_SYNC_PERIOD": f"{SYNC_PERIOD:g}s",
    "GITREPO_BACKOFF_CAP": f"{BACKOFF_CAP:g}s",
    "GIT_TIMEOUT": "2s",
    "GIT_FETCH_TIMEOUT": "6s",
    "POLL_LEASE": f"{POLL_LEASE:g}s",
    "JOB_LEASE": f"{JOB_LEASE:g}s",
    "DELIVERY_LEASE": f"{DELIVERY_LEASE:g}s",
    # Longer than a frozen worker stays frozen: its late apply must be refused by the target, not by the time.
    "DELIVERY_TIMEOUT": "10s",
    "SESSION_BUDGET": "3s",
    "STOP_GRACE": "5s",
    "WATCHDOG": "8s",
    # Everything else happens while old revisions are being pruned.
    "RETENTION_REVISIONS": "10",
}
# What is waited for after a fault is over: the longest lease, a backoff at its cap, and the work itself on busy cores.
SETTLE = 60.0


@cache
def cannot_mount() -> str:
    """Why this machine has no small disks for tests, "" if it has; asked once, by mounting one."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True, text=True)
        if done.returncode == 0:
            subprocess.run(["umount", "--lazy", folder], check=True)
            return ""
    return f"a small disk cannot be mounted here (root may): {done.stderr.strip()[:100]}"


class World:
    """See the module. `database` is "sqlite" or "postgresql"."""

    def __init__(self, database: str, *, env: Mapping[str, str] | None = None, gitrepos: int = 10) -> None:
        self.database = database
        # Whether a fault may hit any GitRepo, and not only the one that its entry looks at.
        self.anyone = False
        self.closing = ExitStack()
        # A short path: a Unix socket's name has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="fs-"))
        self.closing.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.failpoints = self.folder / "failpoints"
        self.failpoints.mkdir()
        self.postgresql: PostgreSQL | None = None
        try:
            self._start({**ENVIRONMENT, "FAILPOINTS_DIR": str(self.failpoints), **(env or {})}, gitrepos)
        except BaseException:
            self.closing.close()
            raise

    def _start(self, env: dict[str, str], gitrepos: int) -> None:
        admin_url = ""
        if self.database == "postgresql":
            self.postgresql = PostgreSQL()
            self.closing.callback(self.postgresql.close)
            admin_url = self.postgresql.url
        self.stack = Stack(self.folder, env, workers=0, admin_url=admin_url)
        self._mount_disks()
        self.closing.callback(self.stack.stop)
        self.stack.start()
        self.prune_often()
        self.start_beats(2)
        self.start_workers()
        self.stack.wait_ready()
        self.server = self.closing.enter_context(git_server(self.stack.repositories))
        self.lock = threading.Lock()
        self.folders = {name: self.stack.add_cluster(name, {"world": "yes"}) for name in ("eu", "us")}
        self.followed: list[Followed] = []
        self.log = LogReader(self.stack.logs)
        self.watcher = Watcher(self)
        self.closing.callback(self.watcher.stop)
        self.pusher = Pusher(self)
        self.closing.callback(self.pusher.stop)
        self.follow(gitrepos)
        self.settle()

    # -- the parts -------------------------------------------------------------------------------------------------

    WORKERS = ("worker1", "worker2")

    def prune_often(self) -> None:
        """Edit beat's entry, as an operator may in the admin: every five seconds instead of once a minute."""
        self.sql("UPDATE django_celery_beat_intervalschedule SET every = 5 WHERE every = 60")
        self.sql(
            "INSERT INTO django_celery_beat_periodictasks (ident, last_update) VALUES (1, CURRENT_TIMESTAMP) "
            "ON CONFLICT (ident) DO UPDATE SET last_update = excluded.last_update"
        )

    def start_beats(self, count: int) -> None:
        # Stack.start() has started "beat"; more of them are its equals.
        for number in range(2, count + 1):
            self.stack.start_beat(f"beat{number}")

    def start_workers(self) -> None:
        for name in self.WORKERS:
            self.stack.start_worker(name)

    def start_again(self, name: str) -> Part:
        """Start a part that was ended, as its supervisor would."""
        if name == "web":
            return self.stack.start_web()
        if name == "redis":
            return self.stack.start_redis()
        if name.startswith("beat"):
            return self.stack.start_beat(name)
        return self.stack.start_worker(name)

    def celery_children(self, queue: str) -> list[int]:
        """Process ids of the prefork children that serve `queue`, in all workers."""
        found = []
        for name in self.WORKERS:
            part = self.stack.parts[name]
            for pid in part.children():
                with suppress(OSError):
                    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                    parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
                    if (
                        "--queues" in words
                        and words[words.index("--queues") + 1].split(",")[0] == queue
                        and int(parent) != part.pid
                    ):
                        found.append(pid)
        return found

    def celery_parents(self, queue: str) -> list[int]:
        """Process ids of the celery main processes that serve `queue`."""
        children = self.celery_children(queue)
        return sorted({int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in children})

    def _mount_disks(self) -> None:
        """Mirrors and bundles lie on small disks of their own where this user may mount them (root may)."""
        self.disks = {name: self.stack.data / name for name in ("mirrors", "bundles")}
        for path in self.disks.values():
            path.mkdir()
            if not cannot_mount():
                self.run(["mount", "-t", "tmpfs", "-o", "size=128m", "none", str(path)])
                self.closing.callback(self.run, ["umount", "--lazy", str(path)])

    def set_clock(self, hours: int) -> None:
        """How far the clock of faked_clock() is ahead."""
        with (self.folder / "clock").open("r+b") as file:
            file.write(struct.pack("=q", hours * 3600))

    @contextmanager
    def faked_clock(self, names: list[str]) -> Iterator[None]:
        """Run these parts by a clock that set_clock() sets; then start them without it."""
        library, clock = self.folder / "clock.so", self.folder / "clock"
        self.run(["cc", "-shared", "-fPIC", "-O", "-o", str(library), str(Path(__file__).with_name("clock.c")), "-ldl"])
        clock.write_bytes(bytes(8))
        faked = {"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(clock)}
        kept = self.stack.env
        try:
            for name in names:
                self.stack.parts[name].stop()
            self.stack.env = {**kept, **faked}
            for name in names:
                self.start_again(name)
            self.stack.env = kept
            self.wait_listening(names)
            yield
        finally:
            self.stack.env = kept
            for name in names:
                self.stack.parts[name].stop()
                self.start_again(name)
            self.wait_listening(names)

    def wait_listening(self, names: list[str]) -> None:
        wait_until("the web process is back", self.stack.is_ready, 60)
        for name in names:
            if name.startswith("worker"):
                part = self.stack.parts[name]
                wait_until(f"{name} has its children", partial(self._has_children, part), 60)

    @staticmethod
    def _has_children(part: Part) -> bool:
        return len(part.children()) >= 8

    @staticmethod
    def run(command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}: {done.stderr}"

    # -- the load --------------------------------------------------------------------------------------------------

    def follow(
        self, count: int, prefix: str = "load", *, interval: str = f"{INTERVAL:g}s", http: bool = True
    ) -> list[Followed]:
        """Register `count` GitRepos more with one commit each; every second one over http."""
        new = []
        for number in range(count):
            name = f"{prefix}-{number}"
            one = Followed(name, Repository.make(self.stack.repositories / f"{name}.git"))
            one.push()
            new.append(one)
        for number, one in enumerate(new):
            one.url = self.server.url(one.repository) if http and number % 2 else one.repository.file_url
            one.interval = interval
            one.is_load = prefix == "load"
        targets = [{"clusterSelector": {"matchLabels": {"world": "yes"}}}]
        register_all(
            self.stack,
            (manifest(one.name, one.url, pollingInterval=interval, paths=one.paths, targets=targets) for one in new),
        )
        with self.lock:
            self.followed += new
        return new

    @staticmethod
    def spec_of(one: Followed) -> dict[str, Any]:
        """What registers the GitRepo by REST as follow() did."""
        return {
            "name": one.name,
            "url": one.url,
            "branch": "main",
            "paths": one.paths,
            "polling_interval": one.interval,
            "targets": [{"cluster_selector": {"matchLabels": {"world": "yes"}}}],
        }

    def forget(self, names: list[Followed]) -> None:
        """Delete GitRepos of the load, and wait until they have left nothing behind."""
        with self.lock:
            self.followed = [one for one in self.followed if one not in names]
        for one in names:
            self.stack.api("DELETE", f"gitrepos/{one.name}/")
        for one in names:
            wait_until(f"{one.name} is gone", partial(self._is_gone, one.name), SETTLE)

    def _is_gone(self, name: str) -> bool:
        return not self.is_anywhere(name)

    def is_anywhere(self, name: str) -> bool:
        return any((folder / name).exists() for folder in self.folders.values())

    def delivered(self, one: Followed) -> bool:
        """Whether both clusters show the newest commit, byte for byte what it holds below the paths."""
        return all(content_at(folder / one.name / "current") == one.wanted for folder in self.folders.values())

    def late(self) -> list[Followed]:
        with self.lock:
            return [one for one in self.followed if not self.delivered(one)]

    def settle(self, seconds: float = SETTLE) -> float:
        """Wait until every head is at every cluster and the database says so; how many seconds it took."""
        began = time.monotonic()
        try:
            wait_until("every newest commit is everywhere", lambda: not self.late(), seconds, every=0.3)
        except AssertionError as error:
            late = [(one.name, one.head[:8], self._shown(one.name)) for one in self.late()]
            raise AssertionError(f"{error}: {late}") from None
        wait_until("nothing is left to do", self.is_quiet, seconds, every=0.3)
        return time.monotonic() - began

    def _shown(self, name: str) -> Any:
        with suppress(Exception):
            return self.stack.gitrepo(name)["status"]
        return "no answer"

    def is_quiet(self) -> bool:
        """No job open, no delivery to do, of anything that is not paused."""
        jobs = (
            "SELECT count(*) FROM repos_syncjob WHERE state IN ('pending', 'running', 'failed') AND due_at IS NOT NULL"
        )
        deliveries = "SELECT count(*) FROM repos_delivery WHERE due_at IS NOT NULL"
        return self.sql(jobs) == [(0,)] and self.sql(deliveries) == [(0,)]

    # -- looking ---------------------------------------------------------------------------------------------------

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Stack.sql, over a new connection where the old one was broken by a fault."""
        try:
            return self.stack.sql(statement, *parameters)
        except (DatabaseError, InterfaceError):
            self.disconnect()
            return self.stack.sql(statement, *parameters)

    def disconnect(self) -> None:
        connections[self.stack.alias].close()

    def doctor(self, *arguments: str) -> dict[str, Any]:
        """The findings as JSON, whatever the exit status says of them."""
        done = subprocess.run(
            [sys.executable, "manage.py", "doctor", "--json", *arguments],
            env=self.stack.environment(), cwd=ROOT, capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        assert done.returncode in (0, 1, 2), done.stdout + done.stderr
        try:
            found: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise AssertionError(done.stdout + done.stderr) from None
        return found

    # -- failpoints ------------------------------------------------------------------------------------------------

    def arm(self, name: str, action: str, *, about: str = "", times: int = 1, seconds: float = 0.0) -> None:
        order = {"action": action, "about": about, "times": times, "seconds": seconds}
        aside = self.failpoints / f"{name}.aside"
        aside.write_text(json.dumps(order))
        aside.rename(self.failpoints / name)

    def disarm(self, name: str) -> None:
        (self.failpoints / name).unlink(missing_ok=True)

    def hits(self, name: str) -> list[int]:
        """Process ids of those who were hit, in their order."""
        found = sorted(self.failpoints.glob(f"{name}.hit-*"), key=lambda path: path.stat().st_ctime_ns)
        return [int(path.name.split("-")[-2]) for path in found]

    def wait_hit(self, name: str, seconds: float = 30, *, more_than: int = 0) -> int:
        """The process id of the newest hit beyond the first `more_than`."""
        hits: list[int] = wait_until(
            f"the failpoint {name} is hit", lambda: h if len(h := self.hits(name)) > more_than else None, seconds, 0.05
        )
        return hits[-1]

    def clear_failpoints(self) -> None:
        for path in self.failpoints.iterdir():
            path.unlink(missing_ok=True)

    @contextmanager
    def frozen_at(self, name: str, about: str = "", push: Followed | None = None) -> Iterator[int]:
        """Freeze whoever comes by `name` first; go on with it when the block ends. A push to `push` brings somebody by."""
        self.arm(name, "stop", about=about)
        pid = 0
        try:
            if push is not None:
                push.push()
            pid = self.wait_hit(name)
            yield pid
        finally:
            self.disarm(name)
            if pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        self.closing.close()
