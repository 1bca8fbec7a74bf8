"""From a new commit to the wanted files in hand: fleetsync's kept mirrors beside clones.

    python bench/fetch.py [--rounds 5] [--commits 150] [--json FILE]

Makes a small repository, and a large one of 20 000 files and 200 MB of which one subfolder is wanted, and serves both over
http from a process of its own that allows filters and any id. In each round a commit changes one file of the subfolder, and
each way brings it in, in an order drawn anew: what workers/sync.py does from the polled commit to the stored bundle, with a
partial and with a whole mirror; GitPython's `clone --depth 1`; git's own `clone --depth 1`; and a kept clone with `fetch
--depth 1` and `reset --hard`. Then so many commits in a row, each brought in by the kept ones. Times are medians of wall
time, CPU is the client's with its children; the server's is left out. A row that falls short of its target is marked, and
the status is then 1.
"""

import argparse
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fleetsync.settings")
os.environ.setdefault("LOG_LEVEL", "ERROR")
FOLDER = Path(tempfile.mkdtemp(prefix="fs-fetch-", dir=os.environ.get("BENCH_DIR")))
os.environ["DATA_DIR"] = str(FOLDER / "data")

import django

django.setup()

from django.conf import settings
from git import Repo

from repos.models import GitRepo, Remote, Revision, SyncJob
from tests.git_servers import ENVIRONMENT, Repository
from workers import sync
from workers.bundle.store import BundleStore
from workers.fetch.layout import size_bytes
from workers.fetch.mirror import FetchLimits, Mirror, Source
from workers.git_environment import RemoteAccess

FOLDERS, FILES, HEX_BYTES = 200, 100, 5_000
WANTED = "f007"
# At most these parts of what GitPython's clone takes of the large repository.
TIME_PART, DISK_PART = 1 / 50, 1 / 20
CLONE = "GitPython clone --depth 1"


class Handler(BaseHTTPRequestHandler):
    """git http-backend, streamed."""

    root: Path

    def do_GET(self) -> None:
        self.serve(b"")

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.serve(body)

    def serve(self, body: bytes) -> None:
        parts = urlsplit(self.path)
        env = {
            **ENVIRONMENT,
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": unquote(parts.path),
            "QUERY_STRING": parts.query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "REMOTE_ADDR": "127.0.0.1",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        with subprocess.Popen(["git", "http-backend"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as git:
            assert git.stdin and git.stdout
            git.stdin.write(body)
            git.stdin.close()
            headers = []
            while (line := git.stdout.readline().rstrip(b"\r\n")) != b"":
                headers.append(line.decode("latin-1").split(": ", 1))
            status = next((int(value.split()[0]) for name, value in headers if name == "Status"), 200)
            self.send_response(status)
            for name, value in headers:
                if name != "Status":
                    self.send_header(name, value)
            self.end_headers()
            shutil.copyfileobj(git.stdout, self.wfile, 256 * 1024)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Quiet."""


@contextmanager
def served(root: Path) -> Iterator[str]:
    """The address of a server of its own process, ended with the block."""
    Handler.root = root
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    pid = os.fork()
    if not pid:
        try:
            server.serve_forever()
        finally:
            os._exit(0)
    server.socket.close()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        os.kill(pid, 15)
        os.waitpid(pid, 0)


@dataclass
class Row:
    """One way with one repository. Seconds of each round, CPU seconds of each, bytes on disk after the last."""

    scenario: str
    way: str
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    disk: int = 0
    time_target: float = 0.0
    disk_target: float = 0.0


Way = Callable[[str], None]


def ours(folder: Path, url: str, paths: list[str], setting: str) -> Way:
    """What a sync worker does with a claimed job, without the database."""
    mirror = Mirror(folder)
    source = Source(RemoteAccess(url), FetchLimits(settings.GIT_FETCH_MAX_BYTES), FOLDER / "run")
    gitrepo, remote = GitRepo(pk=1, name="bench", paths=paths), Remote(url=url)

    def bring(commit: str) -> None:
        settings.GIT_PARTIAL_CLONE = setting
        work = sync.Work(SyncJob(), gitrepo, Revision(pk=1, commit=commit), remote, forced=True)
        made = sync.content(work, mirror, source, time.monotonic() + 600)
        assert made.files

    return bring


def gitpython_clone(folder: Path, url: str) -> Way:
    def bring(commit: str) -> None:
        assert Repo.clone_from(url, folder, depth=1).head.commit.hexsha == commit

    return bring


def git(*words: str) -> None:
    subprocess.run(["git", *words], env=ENVIRONMENT, check=True, capture_output=True)


def plain_clone(folder: Path, url: str) -> Way:
    def bring(_: str) -> None:
        git("clone", "--quiet", "--depth=1", url, str(folder))

    return bring


def kept_clone(folder: Path, url: str) -> Way:
    def bring(commit: str) -> None:
        if not folder.exists():
            git("clone", "--quiet", "--depth=1", url, str(folder))
        git("-C", str(folder), "fetch", "--quiet", "--depth=1", "origin", commit)
        git("-C", str(folder), "reset", "--quiet", "--hard", commit)

    return bring


def used_cpu() -> float:
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in parts)


def measure(row: Row, bring: Way, commit: str) -> None:
    cpu, began = used_cpu(), time.monotonic()
    bring(commit)
    row.wall.append(time.monotonic() - began)
    row.cpu.append(used_cpu() - cpu)


def new_commit(repository: Repository, number: int, path: str) -> str:
    return repository.commit({path: random.Random(number).randbytes(HEX_BYTES).hex()}, message=f"change {number}")


def compare(scenario: str, repository: Repository, url: str, paths: list[str], path: str, rounds: int) -> list[Row]:
    """Each way for each round, the kept ones already having the commit before; then as many rows."""
    place = FOLDER / scenario.replace(" ", "-")
    place.mkdir()
    kept = {
        "fleetsync, partial mirror": (place / "partial", ours(place / "partial", url, paths, "auto")),
        "fleetsync, whole mirror": (place / "whole", ours(place / "whole", url, paths, "off")),
        "git, kept clone": (place / "kept", kept_clone(place / "kept", url)),
    }
    anew = {
        CLONE: (place / "gitpython", gitpython_clone(place / "gitpython", url)),
        "git clone --depth 1": (place / "plain", plain_clone(place / "plain", url)),
    }
    rows = {name: Row(scenario, name) for name in (*kept, *anew)}
    for _, bring in kept.values():
        bring(repository.head())
    for number in range(rounds):
        commit = new_commit(repository, number, path)
        for name in random.sample(list(rows), len(rows)):
            folder, bring = (kept | anew)[name]
            measure(rows[name], bring, commit)
            rows[name].disk = size_bytes(folder)
            if name in anew:
                shutil.rmtree(folder)
    return list(rows.values())


def in_a_row(repository: Repository, url: str, paths: list[str], path: str, commits: int) -> list[Row]:
    """So many commits, one after the other, in the kept copies of the large repository."""
    place = FOLDER / "large"
    ways = {
        "fleetsync, partial mirror": (place / "partial", ours(place / "partial", url, paths, "auto")),
        "fleetsync, whole mirror": (place / "whole", ours(place / "whole", url, paths, "off")),
        "git, kept clone": (place / "kept", kept_clone(place / "kept", url)),
    }
    rows = {name: Row(f"{commits} in a row", name) for name in ways}
    for number in range(1_000, 1_000 + commits):
        commit = new_commit(repository, number, path)
        for name in random.sample(list(ways), len(ways)):
            measure(rows[name], ways[name][1], commit)
    for name, (folder, _) in ways.items():
        rows[name].disk = size_bytes(folder)
    return list(rows.values())


def repositories(root: Path) -> tuple[Repository, Repository]:
    small, large = Repository.make(root / "small.git"), Repository.make(root / "large.git")
    source = random.Random(1)
    small.commit({f"deploy/{n}.yaml": source.randbytes(500).hex() for n in range(20)})
    large.commit(
        {
            f"f{f:03}/d{n % 5}/n{n:03}.yaml": source.randbytes(HEX_BYTES).hex()
            for f in range(FOLDERS)
            for n in range(FILES)
        }
    )
    for repository in (small, large):
        repository.git("config", "uploadpack.allowFilter", "true")
        repository.git("config", "uploadpack.allowAnySHA1InWant", "true")
        repository.git("repack", "-q", "-a", "-d", "-b")
    return small, large


def judge(rows: list[Row]) -> list[Row]:
    """The rows that fall short, after their targets are set from the clone of the same run."""
    large = next(row for row in rows if row.scenario == "large" and row.way == CLONE)
    for row in rows:
        if row.scenario != "small" and row.way.startswith("fleetsync"):
            row.time_target = statistics.median(large.wall) * TIME_PART
            row.disk_target = large.disk * DISK_PART if "partial" in row.way else 0.0
    return [row for row in rows if falls_short(row)]


def falls_short(row: Row) -> bool:
    slow = bool(row.time_target) and statistics.median(row.wall) > row.time_target
    return slow or (bool(row.disk_target) and row.disk > row.disk_target)


def table(rows: list[Row]) -> Iterator[str]:
    yield f"{'':18} {'':27} {'median':>9} {'max':>9} {'client CPU':>10} {'of clone':>9} {'disk':>9} {'of clone':>9}"
    for row in rows:
        scenario = "small" if row.scenario == "small" else "large"
        clone = next(r for r in rows if r.scenario == scenario and r.way == CLONE)
        median, base = statistics.median(row.wall), statistics.median(clone.wall)
        yield (
            f"{row.scenario:18} {row.way:27} {median * 1e3:6.0f} ms {max(row.wall) * 1e3:6.0f} ms "
            f"{statistics.median(row.cpu) * 1e3:7.0f} ms {'1/%.1f' % (base / median):>9} {row.disk / 1e6:6.1f} MB "
            f"{'1/%.1f' % (clone.disk / row.disk):>9}{'  FALLS SHORT' if falls_short(row) else ''}"
        )


def machine() -> dict[str, str]:
    version = subprocess.run(["git", "version"], capture_output=True, text=True, check=True).stdout.strip()
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}",
        "software": f"Python {platform.python_version()}, {version}",
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--commits", type=int, default=150)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        sync.store.cache_clear()
        settings.BUNDLE_DIR = FOLDER / "bundles"
        BundleStore(settings.BUNDLE_DIR)
        small, large = repositories(FOLDER / "served")
        with served(FOLDER / "served") as address:
            small_url, large_url = f"{address}/small.git", f"{address}/large.git"
            paths, path = [WANTED], f"{WANTED}/d0/n000.yaml"
            rows = compare("small", small, small_url, ["deploy"], "deploy/0.yaml", options.rounds)
            rows += compare("large", large, large_url, paths, path, options.rounds)
            if options.commits:
                rows += in_a_row(large, large_url, paths, path, options.commits)
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    short = judge(rows)
    here = machine()
    print("\n".join(f"{name}: {value}" for name, value in here.items()))
    print(f"{options.rounds} rounds; large: {FOLDERS * FILES} files, {FOLDERS * FILES * HEX_BYTES * 2 / 1e6:.0f} MB, ")
    print(
        f"one folder of {FILES} files wanted; at most {TIME_PART:.3f} of the clone's time, {DISK_PART:.3f} of its disk"
    )
    print("\n".join(table(rows)))
    if options.json:
        document = {**here, "rows": [{**asdict(row), "falls_short": falls_short(row)} for row in rows]}
        options.json.write_text(json.dumps(document, indent=1))
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
