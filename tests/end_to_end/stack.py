"""A whole fleetsync on this machine for tests: Redis, web, beat, and worker containers as real processes.

Each part runs the command line that production runs. Everything listens on loopback or on a socket in a folder of its
own, and every process that is started here is ended here, by its process id.
"""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import environ
import psycopg
from django.db import connections

from fleetsync import processes

ROOT = Path(__file__).resolve().parent.parent.parent
POLL_LINE = "Reconciling GitRepo status"


class ApiError(AssertionError):
    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status}: {body}")
        self.status, self.body = status, body


@dataclass
class Part:
    """One running process of the stack, the leader of its own group."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    asked_to_stop: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    def children(self) -> list[int]:
        """Process ids of everything below this part, the deepest last."""
        found, level = [], [self.pid]
        while level:
            level = [child for pid in level for child in children_of(pid)]
            found += level
        return found

    def signal(self, number: int) -> None:
        """Send to the part and everything below it."""
        for pid in (*reversed(self.children()), self.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """As a machine that loses power: SIGKILL to the whole tree."""
        self.signal(signal.SIGKILL)
        self.process.wait(20)

    def terminate(self) -> None:
        """Ask it to stop; only once, for a second SIGTERM means "at once"."""
        if self.process.poll() is None and not self.asked_to_stop:
            self.asked_to_stop = True
            self.process.terminate()

    def stop(self, seconds: float = 40) -> int:
        """SIGTERM, and the exit status; SIGKILL after `seconds`."""
        self.terminate()
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.wait(5)


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(what: str, condition: Callable[[], Any], seconds: float, every: float = 0.1) -> Any:
    """The first true answer of `condition`; AssertionError naming `what` after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        if answer := condition():
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(every)


@dataclass
class Stack:
    """`env` is what tells this stack from the defaults; `workers` is the number of worker containers; `admin_url` is a
    PostgreSQL in which to make a database, or "" for SQLite.
    """

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    workers: int = 2
    admin_url: str = field(default_factory=lambda: os.environ.get("DATABASE_URL", ""))
    parts: dict[str, Part] = field(default_factory=dict)
    token: str = ""

    def __post_init__(self) -> None:
        self.data = self.folder / "data"
        self.logs = self.folder / "logs"
        self.repositories = self.data / "repositories"
        self.clusters = self.data / "clusters"
        for folder in (self.data, self.logs, self.repositories, self.clusters, self.folder / "redis"):
            folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.redis_socket = self.folder / "redis.sock"
        self.alias = f"stack-{uuid.uuid4().hex[:8]}"
        self.database_name = self.alias.replace("-", "_")
        self.is_postgresql = self.admin_url.startswith("postgres")

    # -- the parts -------------------------------------------------------------------------------------------------

    @property
    def database_url(self) -> str:
        if self.is_postgresql:
            return urlunsplit(urlsplit(self.admin_url)._replace(path="/" + self.database_name))
        return f"sqlite:///{self.data}/fleetsync.sqlite3"

    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ") if name in os.environ}
        return {
            **kept,
            "DATA_DIR": str(self.data),
            "DATABASE_URL": self.database_url,
            "REDIS_URL": f"redis+socket://{self.redis_socket}",
            "PORT": str(self.port),
            "GIT_FILE_ROOT": str(self.repositories),
            "GIT_ALLOW_HTTP": "on",
            "GIT_ALLOWED_NETWORKS": "127.0.0.0/8",
            "LOG_FORMAT": "json",
            "CONTROL_PROCESSES": "1",
            "POLL_PROCESSES": "1",
            "SYNC_PROCESSES": "1",
            "DELIVER_PROCESSES": "1",
            "WEB_PROCESSES": "1",
            **self.env,
        }

    def start(self) -> "Stack":
        """Everything, from an empty database on; returns when the web process is ready and the workers listen."""
        self.create_database()
        self.start_redis()
        self.manage("migrate", "--verbosity", "0")
        self.token = self.make_token()
        self.start_web()
        self.start_beat()
        for number in range(1, self.workers + 1):
            self.start_worker(f"worker{number}")
        self.wait_ready()
        return self

    def start_part(self, name: str, command: list[str], env: Mapping[str, str] | None = None) -> Part:
        log = self.logs / f"{name}.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                command,
                env={**self.environment(), **(env or {})},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.parts[name] = Part(name, process, log)
        return self.parts[name]

    def start_redis(self) -> Part:
        part = self.start_part("redis", processes.redis(self.redis_socket, self.folder / "redis").argv)
        wait_until("Redis listens", self.redis_socket.exists, 10)
        return part

    def start_web(self) -> Part:
        return self.start_part("web", processes.web())

    def start_beat(self, name: str = "beat") -> Part:
        return self.start_part(name, processes.beat())

    def start_worker(self, name: str, env: Mapping[str, str] | None = None) -> Part:
        return self.start_part(name, processes.manage("work"), {"WORKER_HOST": name, **(env or {})})

    def wait_ready(self) -> None:
        wait_until("the web process is ready", self.is_ready, 60)
        for name, part in list(self.parts.items()):
            if name.startswith("worker"):
                wait_until(f"{name} listens on its queues", partial(self.is_listening, part), 60)

    def is_ready(self) -> bool:
        try:
            return self.request("GET", "/readyz")[0] == 200
        except OSError:
            return False

    @staticmethod
    def is_listening(part: Part) -> bool:
        return len(set(re.findall(r"(\w+)-\d+@\S+ ready", part.log.read_text(errors="replace")))) >= 4

    def stop(self) -> None:
        """End every process that was started, workers before Redis, and drop the database."""
        order = ("web", "beat", "worker", "redis")
        named = sorted(
            self.parts.values(),
            key=lambda p: next((i for i, o in enumerate(order) if p.name.startswith(o)), 2),
        )
        for part in named:
            part.signal(signal.SIGCONT)
        for part in named:
            if part.name != "redis":
                part.terminate()
        for part in named:
            part.stop()
        self.drop_database()

    def manage(self, *arguments: str, timeout: float = 120) -> str:
        """Run a management command as an operator would; its output."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            env=self.environment(), cwd=ROOT, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    # -- the database, for looking ---------------------------------------------------------------------------------

    def create_database(self) -> None:
        if self.is_postgresql:
            with psycopg.connect(self.admin_url, autocommit=True) as admin:
                admin.execute(f'CREATE DATABASE "{self.database_name}"')
        # The tests' own database may be of the other kind: nothing of it but what Django wants to find is taken.
        mine: dict[str, Any] = {
            "TIME_ZONE": None,
            "ATOMIC_REQUESTS": False,
            "AUTOCOMMIT": True,
            "CONN_HEALTH_CHECKS": False,
            "CONN_MAX_AGE": 0,
        }
        mine["OPTIONS"] = {} if self.is_postgresql else {"transaction_mode": "IMMEDIATE", "timeout": 30}
        mine["TEST"] = {"NAME": None, "MIRROR": None, "CHARSET": None, "COLLATION": None, "MIGRATE": False}
        connections.databases[self.alias] = {**mine, **environ.Env.db_url_config(self.database_url)}

    def drop_database(self) -> None:
        connections[self.alias].close()
        connections.databases.pop(self.alias, None)
        if self.is_postgresql:
            with psycopg.connect(self.admin_url, autocommit=True) as admin:
                admin.execute(f'DROP DATABASE IF EXISTS "{self.database_name}" WITH (FORCE)')

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run one statement in the stack's database, and its rows."""
        with connections[self.alias].cursor() as cursor:
            cursor.execute(statement, parameters)
            return list(cursor.fetchall()) if cursor.description else []

    # -- the doors -------------------------------------------------------------------------------------------------

    def make_token(self) -> str:
        script = (
            "from django.contrib.auth.models import User; from rest_framework.authtoken.models import Token; "
            "u = User.objects.create_superuser('admin', password='admin'); print(Token.objects.create(user=u).key)"
        )
        return self.manage("shell", "--verbosity", "0", "--command", script).split()[-1]

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        content_type: str = "application/json",
    ) -> tuple[int, Any]:
        """One request to the web process with the token; status and decoded JSON (or text)."""
        data = raw if raw is not None else json.dumps(body).encode() if body is not None else None
        call = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=data,
            method=method,
            headers={"Authorization": f"Token {self.token}", "Content-Type": content_type},
        )
        try:
            with urllib.request.urlopen(call, timeout=180) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        try:
            return status, json.loads(text) if text else None
        except ValueError:
            return status, text

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """A REST call below /api/v1/ that is expected to succeed; ApiError otherwise."""
        status, answer = self.request(method, f"/api/v1/{path}", body)
        if status >= 300:
            raise ApiError(status, answer)
        return answer

    def add_cluster(self, name: str, labels: Mapping[str, str] | None = None) -> Path:
        """Register a cluster with the driver `directory`; the folder that it is."""
        folder = self.clusters / name
        self.api("POST", "clusters/", {
            "name": name, "labels": dict(labels or {}), "driver": "directory", "settings": {"path": str(folder)},
        })  # fmt: skip
        return folder

    def add_gitrepo(self, name: str, url: str, **spec: Any) -> Any:
        return self.api("POST", "gitrepos/", {"name": name, "url": url, **spec})

    def gitrepo(self, name: str) -> Any:
        return self.api("GET", f"gitrepos/{name}/")

    def wait_delivered(self, name: str, commit: str, seconds: float = 30) -> Any:
        """The GitRepo's JSON once its status says Ready at `commit`."""

        def delivered() -> Any:
            shown = self.gitrepo(name)
            status = shown["status"]
            return shown if status["display_state"] == "Ready" and status["commit"] == commit else None

        try:
            return wait_until(f"{name} is Ready at {commit}", delivered, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; it shows {self.gitrepo(name)['status']}") from None

    # -- the logs --------------------------------------------------------------------------------------------------

    def lines(self, event: str = "", **fields: Any) -> Iterator[dict[str, Any]]:
        """Log lines of all parts with this event and these fields, those of each part in its order."""
        for part in sorted(self.logs.glob("*.log")):
            for line in part.read_text(errors="replace").splitlines():
                start = line.find("{")
                if start < 0 or (event and event not in line):
                    continue
                try:
                    found = json.loads(line[start:])
                except ValueError:
                    continue
                if (not event or found.get("event") == event) and all(found.get(k) == v for k, v in fields.items()):
                    yield found

    def polls(self, gitrepo: str) -> list[datetime]:
        """When the remote of this GitRepo was claimed for each poll, in order."""
        return sorted(datetime.fromisoformat(line["claimed_at"]) for line in self.lines(POLL_LINE, gitrepo=gitrepo))


def gaps(instants: list[datetime]) -> list[float]:
    """Seconds between each instant and the next."""
    return [(after - before).total_seconds() for before, after in itertools.pairwise(instants)]


@contextmanager
def running_stack(folder: Path, env: Mapping[str, str] | None = None, *, workers: int = 2) -> Iterator[Stack]:
    stack = Stack(folder, dict(env or {}), workers)
    try:
        yield stack.start()
    finally:
        stack.stop()
