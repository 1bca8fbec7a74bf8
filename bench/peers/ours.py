"""The engine alone: everything of a poll process but its claims and its results, which bench/poll_overhead.py measures.

    python -m bench.peers.ours -polls=20000 -in-flight=50 http://127.0.0.1:PORT

-in-flight is what GITREPO_RECONCILER_WORKERS would be. The process loads all that a poll process loads, so that its memory is
that of one. For ssh it reads a private key and known hosts from the files that BENCH_SSH_KEY and BENCH_SSH_KNOWN_HOSTS name.
"""

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fleetsync.settings")
os.environ |= {"GIT_ALLOW_HTTP": "on", "GIT_ALLOWED_NETWORKS": "127.0.0.0/8"}

from bench.measuring import Stopwatch, say
from bench.peers import Task, from_command_line, patience

STUCK_SECONDS = 120.0


def main(task: Task) -> None:
    import django

    django.setup()
    from workers import tasks  # noqa: F401  (what a poll process holds)
    from workers.git_environment import RemoteAccess
    from workers.poll.engine import Engine, PollRequest
    from workers.poll.everything import RemoteEngine

    access = RemoteAccess("")
    if task.base.startswith("ssh:"):
        key, known_hosts = (Path(os.environ[name]).read_text() for name in ("BENCH_SSH_KEY", "BENCH_SSH_KNOWN_HOSTS"))
        access = RemoteAccess("", kind="ssh", secret=key, known_hosts=known_hosts)
    count = 1 if task.base.endswith(".git") else task.remotes
    accesses = [replace(access, url=task.url(n)) for n in range(count)]
    refs = (task.branch,)
    engine: Engine = RemoteEngine(task.in_flight)

    def run(polls: int) -> None:
        started = ended = 0
        stuck_at = patience(STUCK_SECONDS)
        while ended < polls:
            while started < polls and engine.in_flight < task.in_flight:
                engine.start(PollRequest(started, accesses[started % count], refs, 60.0, 10_000))
                started += 1
            for result in engine.wait(1.0):
                ended += 1
                stuck_at = patience(STUCK_SECONDS)
                if result.refs.get(task.branch) != task.commit:
                    sys.exit(f"{result.error or dict(result.refs)}")
            if patience(0) > stuck_at:
                sys.exit(f"nothing came for {STUCK_SECONDS:g} s")

    # Each remote once: what it speaks is remembered from then on, and connections are there.
    run(max(count, task.in_flight))
    watch = Stopwatch()
    run(task.polls)
    say(watch.stop(task.polls))
    engine.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="bench-ours-") as folder:
        os.environ["DATA_DIR"] = folder
        main(from_command_line())
