"""From a push to the content at the cluster: many repositories get a commit at the same moment.

    python -m bench.push_to_applied [--size small|full] [--rounds N]

By a poll at the default interval of 15 s, and by a wake-up: right after the push, a forced sync of each by REST, from eight
clients. Real small repositories over http (bench/servers/repositories.py), the driver `directory`, one worker container,
default settings, PostgreSQL.
"""

import sys
import tempfile
import time
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench import frame
from bench.frame import Report
from bench.installation import Installation, in_threads, installation, percentile
from bench.registration import Client, make_repositories, register, wait_delivered
from bench.servers.repositories import repository_server

if TYPE_CHECKING:
    from tests.git_servers import Repository

# How many repositories, and how many rounds of each way at most.
COUNTS = {"full": ((30, 5), (300, 3), (1_000, 2)), "small": ((10, 2),)}
BOUNDS = {30: 2.0, 300: 20.0}
NEVER = "24h"
APPLIED = (
    "SELECT g.name, d.applied_at FROM repos_delivery d JOIN repos_gitrepo g ON g.id = d.gitrepo_id "
    "JOIN repos_revision r ON r.id = d.applied_revision_id WHERE r.commit = ANY(%s)"
)


def prepare(repositories: "list[Repository]", number: int) -> list[str]:
    """A commit for each on a branch beside main, to be pushed later; the commits."""
    return [
        repository.commit(
            {"deploy/app.yaml": f"round {number} of {n}\n"}, branch=f"next{number}", parent=repository.head()
        )
        for n, repository in enumerate(repositories)
    ]


def push(repositories: "list[Repository]", commits: list[str]) -> float:
    """Move all main branches; when that was done."""
    for repository, commit in zip(repositories, commits, strict=True):
        new = repository.folder / "refs" / "heads" / "main.lock"
        new.write_text(commit + "\n")
        new.rename(new.with_suffix(""))
    return time.time()


def applied(running: Installation, commits: list[str], patience_seconds: float) -> dict[str, float]:
    """When each GitRepo's commit was applied, once all are."""
    until = time.monotonic() + patience_seconds
    while True:
        rows: list[tuple[str, datetime]] = running.stack.sql(APPLIED, commits)
        if len(rows) == len(commits):
            return {name: at.timestamp() for name, at in rows}
        if time.monotonic() > until:
            raise TimeoutError(f"{len(rows)} of {len(commits)} applied within {patience_seconds:g} s")
        time.sleep(0.25)


def one_round(
    running: Installation, client: Client | None, repositories: "list[Repository]", number: int
) -> tuple[list[float], list[float]]:
    """Seconds from the push to each applied commit, and from each wake-up if a `client` sends some."""
    commits = prepare(repositories, number)
    pushed = push(repositories, commits)
    woken: dict[str, float] = {}

    def wake(name: str) -> None:
        woken[name] = time.time()
        assert client
        client.call("POST", f"gitrepos/{name}/sync/")

    if client:
        in_threads([partial(wake, f"r{n}") for n in range(len(repositories))])
    found = applied(running, commits, 120 + len(repositories))
    return [at - pushed for at in found.values()], [found[name] - at for name, at in woken.items()]


def measure(count: int, rounds: int) -> dict[str, list[float]]:
    """All times by the way that the change took, sorted."""
    times: dict[str, list[float]] = {"poll": [], "wake-up": [], "wake-up, from the request": []}
    with tempfile.TemporaryDirectory(prefix="fs-repositories-") as folder, installation(web=True) as running:
        repositories = make_repositories(Path(folder), count)
        with repository_server(Path(folder)) as server:
            running.stack.start_beat()
            running.start_worker()
            running.stack.add_cluster("c")
            client = Client(running)
            register(client, server.port, repositories, polling_interval=NEVER)
            wait_delivered(running, count, 120 + count)
            for number in range(rounds):
                from_push, from_request = one_round(running, client, repositories, number)
                times["wake-up"] += from_push
                times["wake-up, from the request"] += from_request
            in_threads(
                [partial(client.call, "PATCH", f"gitrepos/r{n}/", {"polling_interval": "15s"}) for n in range(count)]
            )
            # The edits woke all of them; afterwards they are spread by their jitter, as they would be.
            time.sleep(20)
            for number in range(rounds, 2 * rounds):
                times["poll"] += one_round(running, None, repositories, number)[0]
    return {way: sorted(found) for way, found in times.items()}


def main() -> int:
    options = frame.options(__doc__)
    report = Report("push_to_applied", "From a push to the cluster", "python -m bench.push_to_applied", options)
    table = report.table(
        "Seconds from the push until the commit is applied",
        "at once", "by", "rounds", "p50", "p99", "max",
    )  # fmt: skip
    medians: dict[str, float] = {}
    for count, most in COUNTS[options.size]:
        rounds = min(options.rounds, most)
        print(f"  {count:,} repositories …", file=sys.stderr, flush=True)
        for way, times in measure(count, rounds).items():
            table.row(f"{count:,}", way, str(rounds), *(percentile(times, p) for p in (50, 99, 100)))
            medians[f"{count:,} by {way}"] = percentile(times, 50)
            if way == "wake-up" and count in BOUNDS:
                report.require(
                    f"{count} at once, after a wake-up: p99", percentile(times, 99), at_most=BOUNDS[count], unit="s"
                )
    report.note(
        "“wake-up” counts from the push, so that the REST requests for all of them are in it; “from the request” counts from "
        "each one's own request. Percentiles are of all rounds together."
    )
    report.bars("Seconds from push to applied, p50", medians)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
