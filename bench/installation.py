"""A whole installation for a question: PostgreSQL, Redis, beat, a worker container, web if wanted, each as production runs
it, in a folder of its own; and what each of its parts uses.
"""

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.fernet import Fernet

if TYPE_CHECKING:
    from tests.end_to_end.stack import Stack
    from tests.postgresql import PostgreSQL

# With DEBUG on, Django writes down every statement, which costs more than asking it.
AS_PRODUCTION = {
    "DEBUG": "off",
    "SECRET_KEY": secrets.token_urlsafe(50),
    "ENCRYPTION_KEYS": Fernet.generate_key().decode(),
    "ALLOWED_HOSTS": "127.0.0.1,localhost",
    # There is no proxy that speaks TLS before the web process.
    "SECURE_SSL_REDIRECT": "off",
    "SECURE_COOKIES": "off",
}
TICK = os.sysconf("SC_CLK_TCK")
QUEUES = ("control", "poll", "sync", "deliver")
# The parts of an installation, as tables name them. The rest of a worker container are its supervisor and the Celery
# processes that hand out messages.
PARTS = (*QUEUES, "rest of worker", "beat", "web", "PostgreSQL", "Redis")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU `seconds` so far, those of children that have ended too; the sum of resident memory at its `peak_mb`, pages that
    are shared counted each time; how many `processes`.
    """

    seconds: float = 0.0
    peak_mb: float = 0.0
    processes: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.seconds + other.seconds, self.peak_mb + other.peak_mb, self.processes + other.processes)


def usage_of(pid: int) -> Usage:
    """Of one process; nothing if it is gone."""
    try:
        # The name in parentheses may hold anything, so the fields are counted from its end.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return Usage()
    peak = sum(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    return Usage(sum(map(int, fields[11:15])) / TICK, peak / 1024, 1)


def below(pid: int) -> list[int]:
    """The process ids below `pid`."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [found for child in map(int, children) for found in (child, *below(child))]


def _queue_of(pid: int) -> str:
    """The queue that a Celery process serves, or ""."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return words[words.index("--queues") + 1].split(",")[0] if "--queues" in words else ""


@dataclass
class Installation:
    stack: "Stack"
    server: "PostgreSQL"

    def usage(self) -> dict[str, Usage]:
        """What each of PARTS has used so far."""
        found = dict.fromkeys(PARTS, Usage())

        def add(part: str, *pids: int) -> None:
            found[part] = sum(map(usage_of, pids), found[part])

        postmaster = int((self.server.data / "postmaster.pid").read_text().split()[0])
        add("PostgreSQL", postmaster, *below(postmaster))
        for name, part in self.stack.parts.items():
            if not name.startswith("worker"):
                add("Redis" if name == "redis" else name, part.pid, *below(part.pid))
                continue
            add("rest of worker", part.pid)
            for main in map(int, Path(f"/proc/{part.pid}/task/{part.pid}/children").read_text().split()):
                add("rest of worker", main)
                add(_queue_of(main) or "rest of worker", *below(main))
        return found

    def database_bytes(self) -> int:
        [(size,)] = self.stack.sql("SELECT pg_database_size(current_database())")
        return int(size)

    def run(self, script: str, timeout: float = 1800) -> str:
        """Run Python in this installation's settings; what it prints."""
        return self.stack.manage("shell", "--verbosity", "0", "--command", script, timeout=timeout)

    def start_worker(self, name: str = "worker1", env: Mapping[str, str] | None = None) -> None:
        """One worker container, and wait until it listens."""
        from tests.end_to_end.stack import wait_until

        part = self.stack.start_worker(name, env)
        queues = (env or {}).get("WORKER_QUEUES", ",".join(QUEUES)).split(",")
        wait_until(f"{name} listens", lambda: part.log.read_text(errors="replace").count(" ready") >= len(queues), 120)


def difference(before: Mapping[str, Usage], after: Mapping[str, Usage]) -> dict[str, float]:
    """CPU seconds of each part between two looks."""
    return {part: after[part].seconds - before[part].seconds for part in PARTS}


@contextmanager
def installation(env: Mapping[str, str] | None = None, *, web: bool = False) -> Iterator[Installation]:
    """Everything but workers, with an empty database, default settings but `env`, and PostgreSQL as it
    comes, fsync on. Everything is ended and removed afterwards.
    """
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fleetsync.settings")
    with tempfile.TemporaryDirectory(prefix="fs-bench-") as name:
        folder = Path(name)
        # The settings of this process are of no use but to import; they must not touch an installation that is there.
        os.environ["DATA_DIR"] = str(folder / "unused")
        from tests.end_to_end.stack import Stack, wait_until
        from tests.postgresql import PostgreSQL

        server = PostgreSQL(durable=True)
        try:
            defaults = {f"{queue.upper()}_PROCESSES": "2" for queue in QUEUES} | {"WEB_PROCESSES": "2"}
            stack = Stack(folder, {**AS_PRODUCTION, **defaults, **(env or {})}, workers=0, admin_url=server.url)
            stack.create_database()
            try:
                stack.start_redis()
                stack.manage("migrate", "--verbosity", "0")
                if web:
                    stack.token = stack.make_token()
                    stack.start_web()
                    wait_until("the web process is ready", stack.is_ready, 60)
                yield Installation(stack, server)
            finally:
                stack.stop()
        finally:
            server.close()


def in_threads(calls: Sequence[Callable[[], object]], threads: int = 8) -> None:
    """Make all the calls, so many at a time, as so many clients would; the first error is raised."""
    with ThreadPoolExecutor(threads) as pool:
        for made in [pool.submit(call) for call in calls]:
            made.result()


def percentile(values: list[float], percent: float) -> float:
    """Of sorted `values`, not empty: the smallest that so many percent do not exceed."""
    return values[min(len(values) - 1, int(len(values) * percent / 100))]
