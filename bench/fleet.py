"""A whole fleet, end to end: beat, Redis, one worker container and PostgreSQL poll many remotes at an interval of 60 s.

    python -m bench.fleet [--size small|full]

Servers are one process that answers from memory (bench/servers), on as many ports as there are Hosts. GitRepos are written in
bulk as they are after a first poll and sync, due over the interval (bench/rows.py). One run for each case: the first interval
opens connections and is not counted, the next two are. How late each poll was claimed is read from its line in the log.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bench import frame
from bench.frame import Report
from bench.installation import PARTS, Installation, Usage, difference, installation, percentile
from bench.servers import MAIN, MAIN_COMMIT, git_server, why_no_git_server

COUNTED_INTERVALS = 2
# A poll that is later than this against its schedule counts as missed.
LATE_SECONDS = 3.0
JITTER = 0.10
POLL_LINE = "Reconciling GitRepo status"
# Places at a single host: one is taken from the claim until the answer is written, which is some tenths of a second, and there
# are 1 667 polls a second.
ONE_HOST = 1_000


@dataclass(frozen=True)
class Case:
    remotes: int
    hosts: int
    delay_ms: int = 0
    host_concurrency: int = 20

    @property
    def name(self) -> str:
        name = f"{self.remotes:,} remotes, {self.hosts} host{'s' if self.hosts > 1 else ''}"
        return name + (f", servers take {self.delay_ms} ms" if self.delay_ms else "")

    @property
    def env(self) -> dict[str, str]:
        return {} if self.host_concurrency == 20 else {"GIT_HOST_CONCURRENCY": str(self.host_concurrency)}


CASES = {
    "full": (
        Case(1_000, 100),
        Case(10_000, 100),
        Case(10_000, 100, delay_ms=250),
        Case(100_000, 100),
        Case(100_000, 1, host_concurrency=ONE_HOST),
    ),
    "small": (Case(200, 100), Case(1_000, 100, delay_ms=250), Case(1_000, 1, host_concurrency=ONE_HOST)),
}


@dataclass(frozen=True)
class Found:
    case: Case
    seconds: float
    lags: list[float]
    errors: int
    missed: int
    cpu: dict[str, float]
    git_server_cpu: float
    usage: dict[str, Usage]
    database_bytes: int
    grown_bytes: int

    @property
    def us_a_poll(self) -> float:
        """Microseconds of CPU of everything but the git server, for each poll."""
        return sum(self.cpu.values()) / len(self.lags) * 1e6


def run(case: Case, interval: int) -> Found:
    with (
        git_server(delay_ms=case.delay_ms, ports=case.hosts) as server,
        installation(case.env) as running,
    ):
        write_fleet(running, case, server.ports, interval)
        running.stack.start_beat()
        running.start_worker()
        spread(running, interval)
        time.sleep(interval * (1 + JITTER))
        size, usage, git = running.database_bytes(), running.usage(), server.cpu_seconds
        [(began,)] = running.stack.sql("SELECT clock_timestamp()")
        time.sleep(interval * COUNTED_INTERVALS)
        [(ended,)] = running.stack.sql("SELECT clock_timestamp()")
        after, git = running.usage(), server.cpu_seconds - git
        grown = running.database_bytes() - size
        unseen = overdue(running, interval, case)
        lags, errors = lags_between(running.stack.logs / "worker1.log", began, ended)
        late = sum(lag > LATE_SECONDS for lag in lags)
        return Found(
            case, (ended - began).total_seconds(), lags, errors, unseen + late, difference(usage, after), git, after,
            size, grown,
        )  # fmt: skip


def write_fleet(running: Installation, case: Case, ports: tuple[int, ...], interval: int) -> None:
    running.run(
        "from bench.rows import make_fleet\n"
        f"ports = {ports!r}\n"
        f"make_fleet({case.remotes}, lambda n: f'http://127.0.0.1:{{ports[n % len(ports)]}}/team/r{{n}}.git', "
        f"lambda n: {{{MAIN!r}: {MAIN_COMMIT!r}}}, interval_seconds={interval})"
    )


def spread(running: Installation, interval: int) -> None:
    """Due over the interval from now on: writing the rows took its time. Locked in the order of their keys, because workers
    are at work already.
    """
    running.stack.sql(
        "WITH locked AS MATERIALIZED (SELECT id FROM repos_remote ORDER BY id FOR UPDATE) "
        "UPDATE repos_remote SET next_poll_at = clock_timestamp() + random() * %s * interval '1 second', wait_seconds = %s "
        "FROM locked WHERE repos_remote.id = locked.id",
        interval,
        interval,
    )


def overdue(running: Installation, interval: int, case: Case) -> int:
    """Remotes whose last claim is longer ago than the schedule and LATE_SECONDS allow."""
    longest = interval * (1 + JITTER) + LATE_SECONDS + case.delay_ms / 1000
    [(count,)] = running.stack.sql(
        "SELECT count(*) FROM repos_remote WHERE lease_until IS NULL AND (last_poll_at IS NULL OR "
        "last_poll_at < clock_timestamp() - %s * interval '1 second')",
        longest,
    )
    return int(count)


def poll_lines(log: Path) -> Iterator[dict[str, object]]:
    with log.open(errors="replace") as lines:
        for line in lines:
            if POLL_LINE in line:
                yield json.loads(line[line.index("{") :])


def lags_between(log: Path, began: datetime, ended: datetime) -> tuple[list[float], int]:
    """How late each poll was that was claimed meanwhile, in seconds and sorted; and how many of them failed."""
    lags, errors = [], 0
    first, last = began.isoformat(), ended.isoformat()
    for line in poll_lines(log):
        if first <= str(line["claimed_at"]) < last:
            lags.append(float(str(line["lag_seconds"])))
            errors += line["result"] != "ok"
    return sorted(lags), errors


def main() -> int:
    options = frame.options(__doc__)
    report = Report("fleet", "A whole fleet, polled at an interval", "python -m bench.fleet", options)
    if reason := why_no_git_server():
        report.note(f"Skipped: {reason}")
        return report.finish()
    interval = 10 if options.small else 60
    lateness = report.table(
        f"Polled every {interval} s: how late each poll was claimed",
        "fleet", "polls a second", "lag p50 s", "p99 s", "max s", "missed", "failed", "all but git, µs of CPU a poll",
    )  # fmt: skip
    cores = report.table("CPU, in thousandths of a core", "fleet", *PARTS, "(git server)")
    memory = report.table("Memory at its peak, MB (pages that processes share are counted for each)", "fleet", *PARTS)
    disk = report.table(
        "Database", "fleet", "MB", "bytes a remote", "bytes more a poll", "MB more in an hour, extrapolated"
    )
    found = []
    for case in CASES[options.size]:
        print(f"  {case.name} …", file=sys.stderr, flush=True)
        one = run(case, interval)
        found.append(one)
        polls = len(one.lags)
        quantiles = [percentile(one.lags, p) for p in (50, 99, 100)]
        lateness.row(case.name, polls / one.seconds, *quantiles, one.missed, one.errors, one.us_a_poll)
        used = [one.cpu[part] / one.seconds * 1000 for part in PARTS]
        cores.row(case.name, *used, one.git_server_cpu / one.seconds * 1000)
        memory.row(case.name, *(one.usage[part].peak_mb for part in PARTS))
        grown = one.grown_bytes / polls
        per_hour = grown * case.remotes * 3600 / interval
        disk.row(case.name, one.database_bytes / 1e6, one.database_bytes / case.remotes, grown, per_hour / 1e6)
    judge(report, found)
    report.note("Default settings, but where a row has one host: GIT_HOST_CONCURRENCY is 1 000 there.")
    report.note(
        "A poll is missed if it was claimed more than 3 s after it was due. Rows were written in bulk, as registration, a "
        f"first poll and a first sync leave them. The first interval is not counted, {COUNTED_INTERVALS} are; one run each."
    )
    report.note(
        "What the database grows is what the table of remotes gains until its free space is enough: an hour's growth is this "
        "run's, multiplied, and too high where the run was short."
    )
    report.bars("Microseconds of CPU a poll, all but the git server", {one.case.name: one.us_a_poll for one in found})
    return report.finish()


def judge(report: Report, found: list[Found]) -> None:
    by_case = {one.case: one for one in found}
    slow = by_case.get(Case(10_000, 100, delay_ms=250))
    why = "small sizes"
    report.require(
        "10,000 remotes, 250 ms: all but the git server", slow.us_a_poll if slow else None,
        at_most=250, unit="µs of CPU a poll", not_measured=why,
    )  # fmt: skip
    for case in (Case(100_000, 100), Case(100_000, 1, host_concurrency=ONE_HOST)):
        one = by_case.get(case)
        missed, p99 = (float(one.missed), percentile(one.lags, 99)) if one else (None, None)
        report.require(f"{case.name}: missed", missed, at_most=0, not_measured=why)
        report.require(f"{case.name}: lag p99", p99, at_most=LATE_SECONDS, unit="s", not_measured=why)


if __name__ == "__main__":
    sys.exit(main())
