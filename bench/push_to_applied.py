"""From a push to the content at the cluster: N repositories get a commit at the same moment.

    python bench/push_to_applied.py [--repositories 30] [--interval 5] [--rounds 5]

Starts a whole fleetsync of its own (Redis, web, beat, two worker containers) on loopback, on DATABASE_URL's server if
there is one, else on SQLite. Prints percentiles of the time from the end of `git push`'s work to `applied_at`, and the
peak memory of every process.
"""

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fleetsync.settings")

import django

django.setup()

from tests.end_to_end.manifests import manifest, register_all
from tests.end_to_end.stack import Stack, running_stack, wait_until
from tests.git_servers import Repository, make_many

APPLIED = (
    "SELECT count(*) FROM repos_delivery d JOIN repos_revision r ON r.id = d.applied_revision_id WHERE r.number = %s"
)


def instant(value: str | datetime) -> float:
    return (value if isinstance(value, datetime) else datetime.fromisoformat(value + "+00:00")).timestamp()


def one_round(stack: Stack, repositories: list[Repository], number: int, patience: float) -> list[float]:
    """Seconds from each push to its delivery."""
    pushed = {}
    for n, repository in enumerate(repositories):
        repository.commit({"deploy/app.yaml": f"round {number} of {n}\n"})
        pushed[f"r{n}"] = time.time()
    wait_until(f"round {number}", lambda: stack.sql(APPLIED, number) == [(len(repositories),)], patience, every=0.25)
    rows = stack.sql("SELECT g.name, d.applied_at FROM repos_delivery d JOIN repos_gitrepo g ON g.id = d.gitrepo_id")
    return [instant(applied) - pushed[name] for name, applied in rows]


def peak_memory(stack: Stack) -> dict[str, tuple[int, int]]:
    """For each part its processes and the sum of their peak resident memory in MiB, shared pages counted each time."""
    found = {}
    for name, part in stack.parts.items():
        peaks = []
        for pid in (part.pid, *part.children()):
            status = Path(f"/proc/{pid}/status")
            if status.exists():
                peaks += [int(line.split()[1]) // 1024 for line in status.read_text().splitlines() if "VmHWM" in line]
        found[name] = (len(peaks), max(peaks, default=0))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repositories", type=int, default=30)
    parser.add_argument("--interval", type=int, default=5, help="seconds")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fs-"))
    try:
        with running_stack(folder) as stack:
            stack.add_cluster("c")
            repositories = make_many(stack.repositories / "many", options.repositories)
            began = time.time()
            register_all(
                stack,
                (
                    manifest(
                        f"r{n}",
                        r.file_url,
                        pollingInterval=f"{options.interval}s",
                        targets=[{"clusterName": "c"}],
                    )
                    for n, r in enumerate(repositories)
                ),
            )
            patience = 120 + options.repositories
            wait_until(
                "first round",
                lambda: stack.sql(APPLIED, 1) == [(options.repositories,)],
                patience,
                every=0.25,
            )
            print(f"registered and delivered in {time.time() - began:.1f} s")
            times = []
            for number in range(2, options.rounds + 2):
                times += one_round(stack, repositories, number, patience)
            cuts = statistics.quantiles(times, n=100)
            database = "PostgreSQL" if stack.is_postgresql else "SQLite"
            print(
                f"{options.repositories} repositories, interval {options.interval} s, {options.rounds} rounds, {database}, "
                f"{os.cpu_count()} cores, Python {platform.python_version()}: "
                f"p50 {cuts[49]:.2f} s, p99 {cuts[98]:.2f} s, max {max(times):.2f} s"
            )
            for name, (count, largest) in peak_memory(stack).items():
                print(f"{name:10} {count:3} processes, the largest at its peak {largest} MiB")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
