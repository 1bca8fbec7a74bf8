"""Real workers on a real broker, with a database of their own."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from celery import Celery

from fleetsync import processes
from tests.fleetsync.conftest import RedisServer

ROOT = Path(__file__).resolve().parents[2]


class Work:
    """`manage.py work` with one process for each of two queues, and what it prints. `settings` are environment variables."""

    def __init__(self, folder: Path, server: RedisServer, **settings: str) -> None:
        self.failpoints = folder / "failpoints"
        self.failpoints.mkdir()
        self.output = folder / "output"
        self.environment = {
            **os.environ,
            "DATA_DIR": str(folder / "data"),
            "DATABASE_URL": f"sqlite:///{folder}/data/test.sqlite3",
            "REDIS_URL": server.url,
            "WORKER_QUEUES": "control,poll",
            "CONTROL_PROCESSES": "1",
            "POLL_PROCESSES": "1",
            "FAILPOINTS_DIR": str(self.failpoints),
            **settings,
        }
        subprocess.run(processes.manage("migrate", "-v", "0"), env=self.environment, cwd=ROOT, check=True)
        self.server = server
        self.app = Celery("test", broker=server.url)

    def __enter__(self) -> "Work":
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                processes.manage("work"), env=self.environment, cwd=ROOT, stdout=output, stderr=output
            )
        assert holds(lambda: self.serves("poll") and self.serves("control")), self.output.read_text()
        return self

    def __exit__(self, *_: object) -> None:
        for queue in ("poll", "control"):
            if pid := self.pid(queue):
                os.kill(pid, signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def python(self, code: str) -> str:
        """What `code` prints, run with this one's settings and database."""
        code = f"import django; django.setup()\n{code}"
        environment = {**self.environment, "DJANGO_SETTINGS_MODULE": "fleetsync.settings"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout.strip()

    def send(self, task: str, queue: str) -> None:
        self.app.send_task(f"workers.tasks.{task}", queue=queue, ignore_result=True)

    def waiting(self, queue: str) -> int:
        return int(self.server.client.llen(queue))

    def pid(self, queue: str) -> int:
        """The parent of the worker that serves `queue`; 0 if there is none."""
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                queues = words[words.index(b"--queues") + 1].split(b",")
                if parent == self.process.pid and queue.encode() in queues:
                    return int(folder.name)
        return 0

    def serves(self, queue: str) -> bool:
        """Whether a message to the queue is taken."""
        task = {"control": "adopt", "poll": "poll"}[queue]
        if not self.waiting(queue):
            self.send(task, queue)
        return holds(lambda: self.waiting(queue) == 0, 2.0)

    def arm(self, name: str, **order: object) -> None:
        (self.failpoints / f"{name}.draft").write_text(json.dumps(order))
        (self.failpoints / f"{name}.draft").rename(self.failpoints / name)

    def was_hit(self, name: str) -> bool:
        return any(self.failpoints.glob(f"{name}.hit-*"))

    def ended(self) -> list[str]:
        """Who the watchdog ended, and why."""
        found = re.finditer(r"(\w+) +\| (.*), and is ended", self.output.read_text())
        return [f"{match[1]}: {match[2]}" for match in found]


def holds(condition: Callable[[], bool], seconds: float = 40.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
