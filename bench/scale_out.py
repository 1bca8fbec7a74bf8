"""Scale out: 1, 2 and 4 poll processes against slow servers, each process with 50 requests in flight.

    python -m bench.scale_out [--size small|full]

10,000 remotes on 100 Hosts, due over 60 s (167 polls a second), servers that take 250 ms or a second, default settings but
POLL_PROCESSES. Where the processes can't keep up, polls a second is what they can do, and lag grows for as long as it lasts.
"""

import sys
import time

from bench import frame
from bench.fleet import Case, lags_between, spread, write_fleet
from bench.frame import Report
from bench.installation import difference, installation, percentile
from bench.servers import git_server, why_no_git_server

PROCESSES = (1, 2, 4)
CASES = {
    "full": (60, (Case(10_000, 100, delay_ms=250), Case(10_000, 100, delay_ms=1_000))),
    "small": (10, (Case(500, 100, delay_ms=1_000),)),
}


def main() -> int:
    options = frame.options(__doc__)
    report = Report("scale_out", "Poll processes against slow servers", "python -m bench.scale_out", options)
    if reason := why_no_git_server():
        report.note(f"Skipped: {reason}")
        return report.finish()
    interval, cases = CASES[options.size]
    table = report.table(
        f"{cases[0].remotes:,} remotes, due over {interval} s",
        "servers take", "poll processes", "polls a second", "lag p50 s", "p99 s", "poll processes' cores", "PostgreSQL's",
    )  # fmt: skip
    rates: dict[str, float] = {}
    for case in cases:
        with git_server(delay_ms=case.delay_ms, ports=case.hosts) as server, installation(case.env) as running:
            write_fleet(running, case, server.ports, interval)
            running.stack.start_beat()
            for processes in PROCESSES:
                print(f"  {case.name}, {processes} …", file=sys.stderr, flush=True)
                name = f"worker{processes}"
                running.start_worker(name, {"POLL_PROCESSES": str(processes)})
                spread(running, interval)
                # Each remote is met for the first time by this worker, which takes a question more.
                time.sleep(interval)
                before = running.usage()
                [(began,)] = running.stack.sql("SELECT clock_timestamp()")
                time.sleep(interval / 2)
                [(ended,)] = running.stack.sql("SELECT clock_timestamp()")
                cpu, seconds = difference(before, running.usage()), (ended - began).total_seconds()
                running.stack.parts.pop(name).stop()
                lags, _ = lags_between(running.stack.logs / f"{name}.log", began, ended)
                rate = len(lags) / seconds
                label = f"{case.delay_ms} ms"
                table.row(
                    label, str(processes), rate, percentile(lags, 50), percentile(lags, 99),
                    cpu["poll"] / seconds, cpu["PostgreSQL"] / seconds,
                )  # fmt: skip
                rates[f"{label}, {processes} process{'es' if processes > 1 else ''}"] = rate
    report.note(f"Wanted are {cases[0].remotes / interval / 1.05:.0f} polls a second, the jitter included.")
    report.bars("Polls a second", rates)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
