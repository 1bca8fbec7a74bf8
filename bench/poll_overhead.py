"""What a poll costs besides the asking: claim, store, schedule, log, and PostgreSQL's part of it.

    python bench/poll_overhead.py [--remotes 10000] [--hosts 100] [--interval 60] [--latency 0.25] [--seconds 30]
                                  [--all-due] [--profile] [--asking]

One process runs poll sessions as a worker's child does, over an engine that asks nobody and answers from memory after
`--latency` seconds, on a PostgreSQL of its own. `--all-due`: everything is due at once, as after downtime. `--asking`: the
real engine asks a server that answers from memory, and counts.
"""

import argparse
import cProfile
import heapq
import os
import platform
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psycopg

from bench.installation import AS_PRODUCTION, Usage, below, usage_of
from bench.servers import MAIN, MAIN_COMMIT, git_server

CHILD = "OVERHEAD_POSTMASTER"


class FromMemory:
    """An engine that gives each remote the refs of its number, `latency_seconds` after it was asked."""

    def __init__(self, latency_seconds: float) -> None:
        self.latency_seconds = latency_seconds
        self._waiting: list[tuple[float, int, str]] = []
        self.cpu_seconds = 0.0

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    def start(self, request: "PollRequest") -> None:
        began = time.thread_time()
        heapq.heappush(self._waiting, (time.monotonic() + self.latency_seconds, request.key, request.access.url))
        self.cpu_seconds += time.thread_time() - began

    def wait(self, timeout_seconds: float) -> list["PollResult"]:
        began = time.thread_time()
        now = time.monotonic()
        if self._waiting and self._waiting[0][0] > now:
            time.sleep(min(timeout_seconds, self._waiting[0][0] - now))
        results = []
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, key, url = heapq.heappop(self._waiting)
            results.append(PollResult(key, self.latency_seconds, refs_of(number_in(url))))
        self.cpu_seconds += time.thread_time() - began
        return results

    def abandon(self) -> None:
        self._waiting = []

    close = abandon


def whole(pid: int) -> float:
    """CPU seconds of a process and of all below it."""
    return sum(map(usage_of, (pid, *below(pid))), Usage()).seconds


def number_in(url: str) -> int:
    return int(url.rpartition("/r")[2].removesuffix(".git"))


def refs_of(number: int) -> dict[str, str]:
    return {"refs/heads/main": f"{number:040x}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--remotes", type=int, default=10_000)
    parser.add_argument("--hosts", type=int, default=100)
    parser.add_argument("--interval", type=float, default=60.0)
    parser.add_argument("--latency", type=float, default=0.25)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--all-due", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--asking", action="store_true")
    options = parser.parse_args()
    if not options.asking:
        measure(
            options, FromMemory(options.latency), lambda n: f"http://h{n % options.hosts}.example.com/team/r{n}.git"
        )
        return
    with git_server(delay_ms=int(options.latency * 1000), ports=options.hosts) as answering:
        measure(options, RemoteEngine(options.limit), lambda n: answering.url(f"team/r{n}.git", n))


def measure(options: argparse.Namespace, engine: "Engine", url_of: Callable[[int], str]) -> None:
    refs = (lambda _: {MAIN: MAIN_COMMIT}) if options.asking else refs_of
    make_fleet(options.remotes, url_of, refs, interval_seconds=options.interval)
    now = database_now()
    if options.all_due:
        Remote.objects.update(next_poll_at=F("next_poll_at") - timedelta(seconds=options.interval), wait_seconds=0)
    profile = cProfile.Profile()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_statements_reset()")
    server = int(os.environ[CHILD])
    mine, theirs = usage_of(os.getpid()).seconds, whole(server)
    began, engines = time.monotonic(), getattr(engine, "cpu_seconds", 0.0)
    polled = sessions = 0
    if options.profile:
        profile.enable()
    while (left := began + options.seconds - time.monotonic()) > 0:
        turn = time.monotonic()
        report = Session(engine, limit=options.limit, budget_seconds=min(20.0, left), stopping=lambda: False).run()
        polled += report.polled
        sessions += 1
        time.sleep(max(0.0, turn + 1.0 - time.monotonic()))
    profile.disable()
    seconds = time.monotonic() - began
    mine, theirs = usage_of(os.getpid()).seconds - mine, whole(server) - theirs
    engines = getattr(engine, "cpu_seconds", 0.0) - engines
    lags = sorted(
        lag or 0.0 for lag in Remote.objects.filter(last_poll_at__gte=now).values_list("last_lag_seconds", flat=True)
    )
    print(
        f"{polled} polls in {seconds:.1f} s and {sessions} sessions, {polled / seconds:.0f} a second; CPU a poll: "
        f"worker {(mine - engines) / polled * 1e6:.0f} µs, its engine {engines / polled * 1e6:.0f} µs, "
        f"PostgreSQL {theirs / polled * 1e6:.0f} µs; lag p50 {lags[len(lags) // 2]:.2f} s, "
        f"p99 {lags[len(lags) * 99 // 100]:.2f} s; {platform.python_version()}"
    )
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT calls, total_exec_time, total_plan_time, left(query, 110) FROM pg_stat_statements "
            "ORDER BY total_exec_time + total_plan_time DESC LIMIT 18"
        )
        for calls, execution, planning, query in cursor.fetchall():
            print(
                f"{calls:7} × {execution / calls:8.3f} ms  = {execution / polled * 1000:6.1f} µs a poll "
                f"(+ {planning / polled * 1000:.1f} plan)  {' '.join(query.split())}"
            )
    if options.profile:
        pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(45)
        pstats.Stats(profile, stream=sys.stdout).sort_stats("cumulative").print_stats(60)


def with_postgresql() -> int:
    """Run this file again as a child whose settings name a PostgreSQL of its own; the child's status."""
    with tempfile.TemporaryDirectory(prefix="fs-overhead-") as folder:
        os.environ.update(
            DJANGO_SETTINGS_MODULE="fleetsync.settings",
            **AS_PRODUCTION,
            DATA_DIR=folder,
            LOG_FORMAT="json",
            GIT_ALLOW_HTTP="on",
            GIT_ALLOWED_NETWORKS="127.0.0.0/8",
            REDIS_URL=f"redis+socket://{folder}/nobody.sock",
        )
        from tests.postgresql import PostgreSQL

        server = PostgreSQL(durable=True)
        try:
            with psycopg.connect(server.url, autocommit=True) as admin:
                admin.execute("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
            server.restart()
            with psycopg.connect(server.url, autocommit=True) as admin:
                admin.execute("ALTER SYSTEM SET pg_stat_statements.track_planning = on")
                admin.execute("SELECT pg_reload_conf()")
            pid = (server.data / "postmaster.pid").read_text().split()[0]
            environment = {**os.environ, "DATABASE_URL": server.url, CHILD: pid}
            return subprocess.run([sys.executable, *sys.argv], check=False, env=environment).returncode
        finally:
            server.close()


if __name__ == "__main__":
    if CHILD not in os.environ:
        sys.exit(with_postgresql())
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connection
    from django.db.models import F

    from bench.rows import make_fleet
    from repos.leases import database_now
    from repos.models import Remote
    from workers.poll.engine import Engine, PollRequest, PollResult
    from workers.poll.everything import RemoteEngine
    from workers.poll.session import Session

    call_command("migrate", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION pg_stat_statements")
    main()
