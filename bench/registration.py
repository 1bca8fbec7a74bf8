"""Mass registration: GitRepos by REST, one POST each from eight clients, until all are delivered to one cluster.

    python -m bench.registration [--size small|full]

Real small repositories, served over http by bench/servers/repositories.py on the same machine; the driver is `directory`.
Default settings, one worker container, PostgreSQL. For comparison: Flux publishes 4 m 13 s for 1,000 objects on 16 cores.
"""

import json
import sys
import tempfile
import time
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from threading import local
from typing import TYPE_CHECKING, Any

from bench import frame
from bench.frame import Report
from bench.installation import PARTS, Installation, difference, in_threads, installation
from bench.servers.repositories import repository_server

if TYPE_CHECKING:
    from tests.git_servers import Repository

COUNTS = {"full": (1_000, 10_000), "small": (50,)}
CLIENTS = 8
DELIVERED = "SELECT count(*) FROM repos_delivery WHERE applied_revision_id = wanted_revision_id"


class Client:
    """REST calls over connections that are kept, one for each thread."""

    def __init__(self, running: Installation) -> None:
        self._port, self._token = running.stack.port, running.stack.token
        self._kept = local()

    def call(self, method: str, path: str, body: Any = None) -> None:
        """Raises RuntimeError for an answer that is no success."""
        kept = getattr(self._kept, "connection", None) or HTTPConnection("127.0.0.1", self._port, timeout=120)
        self._kept.connection = kept
        headers = {"Authorization": f"Token {self._token}", "Content-Type": "application/json"}
        for left in (1, 0):
            try:
                kept.request(method, f"/api/v1/{path}", json.dumps(body) if body is not None else None, headers)
                answer = kept.getresponse()
                text = answer.read()
                break
            except OSError:  # (closed while it was idle)
                kept.close()
                if not left:
                    raise
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:500]!r}")


def make_repositories(folder: Path, count: int) -> "list[Repository]":
    from tests.git_servers import make_many

    return make_many(folder, count)


def register(client: Client, port: int, repositories: "list[Repository]", **spec: Any) -> None:
    """GitRepos r0, r1, … of the main branches, for the cluster `c`."""
    in_threads(
        [
            partial(
                client.call, "POST", "gitrepos/",
                {"name": f"r{n}", "url": f"http://127.0.0.1:{port}/{repository.folder.name}", "branch": "main",
                 "targets": [{"cluster": "c"}], **spec},
            )
            for n, repository in enumerate(repositories)
        ],
        CLIENTS,
    )  # fmt: skip


def wait_delivered(running: Installation, count: int, patience_seconds: float) -> None:
    """Until so many deliveries have what they want."""
    until = time.monotonic() + patience_seconds
    while running.stack.sql(DELIVERED) != [(count,)]:
        if time.monotonic() > until:
            shown = running.stack.sql(f"{DELIVERED} UNION ALL SELECT count(*) FROM repos_gitrepo")
            raise TimeoutError(f"not delivered within {patience_seconds:g} s: {shown} of {count}")
        time.sleep(0.25)


def main() -> int:
    options = frame.options(__doc__)
    report = Report(
        "registration", "GitRepos registered until all are delivered", "python -m bench.registration", options
    )
    table = report.table(
        "From the first POST", "GitRepos", "all registered s", "all delivered s", "GitRepos a second", "git server cores",
        *(f"{part} cores" for part in PARTS),
    )  # fmt: skip
    delivered: dict[int, float] = {}
    for count in COUNTS[options.size]:
        print(f"  {count:,} GitRepos …", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="fs-repositories-") as folder, installation(web=True) as running:
            repositories = make_repositories(Path(folder), count)
            with repository_server(Path(folder)) as server:
                running.stack.start_beat()
                running.start_worker()
                running.stack.add_cluster("c")
                before, git = running.usage(), server.cpu_seconds()
                began = time.monotonic()
                register(Client(running), server.port, repositories)
                registered = time.monotonic() - began
                wait_delivered(running, count, 120 + count)
                delivered[count] = time.monotonic() - began
                cpu, git = difference(before, running.usage()), server.cpu_seconds() - git
        seconds = delivered[count]
        used = [cpu[part] / seconds for part in PARTS]
        table.row(f"{count:,}", registered, seconds, count / seconds, git / seconds, *used)
    report.require(
        "1,000 GitRepos delivered after the first POST", delivered.get(1_000), at_most=90, unit="s",
        not_measured="small sizes",
    )  # fmt: skip
    report.note(
        f"One run for each row. {CLIENTS} REST clients; default settings; one Host, since one server has them all."
    )
    report.note(
        "The git server answers polls itself and starts `git upload-pack` for each fetch, on the same cores as everything "
        "else; the fetches' own git processes count under sync."
    )
    report.bars("Seconds until all are delivered", {f"{count:,} GitRepos": value for count, value in delivered.items()})
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
