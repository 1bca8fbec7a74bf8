"""From a new commit to the wanted files in hand: fleetsync's kept mirrors beside clones.

A small repository, and a large one of 20 000 files and 200 MB of which one folder is wanted, are served over http by a
process of its own that allows filters and any id. In each round a commit changes one file of that folder, and each way brings
it in: what workers/make.py does from the polled commit to the stored bundle, with a partial and with a whole mirror;
GitPython's and git's own `clone --depth 1`; and git's `fetch --depth 1` and `reset --hard` in a kept clone. Then many commits
in a row, each brought in by the kept ones. The server's CPU is left out.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

FOLDER = Path(tempfile.mkdtemp(prefix="fs-fetch-", dir=os.environ.get("BENCH_DIR")))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fleetsync.settings")
os.environ.setdefault("LOG_LEVEL", "ERROR")
os.environ["DATA_DIR"] = str(FOLDER / "data")

import django

django.setup()

from django.conf import settings
from git import Repo

from bench import frame
from bench.frame import Report, spread
from bench.measuring import Sample, Stopwatch, interleaved
from repos.models import GitRepo, Remote, Revision, SyncJob
from tests.git_servers import ENVIRONMENT, Repository
from workers import make
from workers.fetch.layout import size_bytes
from workers.fetch.limits import FetchLimits
from workers.fetch.mirror import Mirror, Source
from workers.git_environment import RemoteAccess

FILES, HEX_BYTES = 100, 5_000  # of a folder, of a file
FOLDERS, COMMITS = {"full": 200, "small": 20}, {"full": 150, "small": 15}
WANTED = "f007"
# At most these parts of what GitPython's clone takes of the large repository.
TIME_PART, DISK_PART = 1 / 50, 1 / 20
PARTIAL, WHOLE, KEPT = "fleetsync, partial mirror", "fleetsync, whole mirror", "git, kept clone"
CLONE, PLAIN = "GitPython clone --depth 1", "git clone --depth 1"


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


@dataclass(frozen=True, slots=True)
class Way:
    """How a commit is brought into `folder`; a clone begins anew each time."""

    folder: Path
    bring: Callable[[str], None]
    anew: bool = False


def ours(folder: Path, url: str, paths: list[str], setting: str) -> Way:
    """What a sync worker does with a claimed job, without the database."""
    mirror = Mirror(folder)
    source = Source(RemoteAccess(url), FetchLimits(settings.GIT_FETCH_MAX_BYTES), FOLDER / "run")
    gitrepo, remote = GitRepo(pk=1, name="bench", paths=paths), Remote(url=url)

    def bring(commit: str) -> None:
        settings.GIT_PARTIAL_CLONE = setting
        work = make.Work(SyncJob(), gitrepo, Revision(pk=1, commit=commit), remote, forced=True)
        made = make.content(work, mirror, source, time.monotonic() + 600)
        assert made.files

    return Way(folder, bring)


def git(*words: str) -> None:
    done = subprocess.run(["git", *words], env=ENVIRONMENT, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"git {' '.join(words)}: {done.stderr.decode(errors='replace')[-2000:]}")


def gitpython_clone(folder: Path, url: str) -> Way:
    def bring(commit: str) -> None:
        assert Repo.clone_from(url, folder, depth=1).head.commit.hexsha == commit

    return Way(folder, bring, anew=True)


def plain_clone(folder: Path, url: str) -> Way:
    return Way(folder, lambda _: git("clone", "--quiet", "--depth=1", url, str(folder)), anew=True)


def kept_clone(folder: Path, url: str) -> Way:
    git("clone", "--quiet", "--depth=1", url, str(folder))

    def bring(commit: str) -> None:
        git("-C", str(folder), "fetch", "--quiet", "--depth=1", "origin", commit)
        git("-C", str(folder), "reset", "--quiet", "--hard", commit)

    return Way(folder, bring)


@dataclass
class Remotes:
    """One repository as it is served, and everything that follows it; the kept ones have its first commit already."""

    repository: Repository
    url: str
    paths: list[str]
    changing: str
    place: Path
    number: int = 0

    def ways(self) -> dict[str, Way]:
        self.place.mkdir()
        ways = {
            PARTIAL: ours(self.place / "partial", self.url, self.paths, "auto"),
            WHOLE: ours(self.place / "whole", self.url, self.paths, "off"),
            KEPT: kept_clone(self.place / "kept", self.url),
            CLONE: gitpython_clone(self.place / "gitpython", self.url),
            PLAIN: plain_clone(self.place / "plain", self.url),
        }
        for way in ways.values():
            if not way.anew:
                way.bring(self.repository.head())
        return ways

    def commit(self) -> str:
        """A new one, which changes one of the wanted files."""
        self.number += 1
        content = random.Random(self.number).randbytes(HEX_BYTES).hex()
        return self.repository.commit({self.changing: content}, message=f"change {self.number}")


Samples = Mapping[str, list[tuple[Sample, int]]]


def measured(remotes: Remotes, ways: Mapping[str, Way], rounds: int) -> Samples:
    """For each way and round, time and CPU, and the bytes on disk. All bring the same commit in a round."""
    brought: dict[str, int] = dict.fromkeys(ways, 0)
    commits: list[str] = []

    def one(name: str) -> tuple[Sample, int]:
        if brought[name] == len(commits):
            commits.append(remotes.commit())
        commit, way = commits[brought[name]], ways[name]
        brought[name] += 1
        # What a clone has written before must not go to disk in another one's time.
        os.sync()
        watch = Stopwatch()
        way.bring(commit)
        sample, disk = watch.stop(1), size_bytes(way.folder)
        if way.anew:
            shutil.rmtree(way.folder)
        return sample, disk

    return interleaved({name: lambda name=name: one(name) for name in ways}, rounds)  # type: ignore[misc]


def in_a_row(remotes: Remotes, ways: Mapping[str, Way], rounds: int, commits: int) -> Samples:
    """So many commits brought in by the kept ones, with a clone now and then to compare with."""
    kept = {name: way for name, way in ways.items() if not way.anew}
    found: dict[str, list[tuple[Sample, int]]] = {name: [] for name in (*kept, CLONE)}
    for number in range(rounds):
        some = commits * (number + 1) // rounds - commits * number // rounds
        for part in (measured(remotes, kept, some), measured(remotes, {CLONE: ways[CLONE]}, 1)):
            for name, samples in part.items():
                found[name] += samples
    return found


def repositories(root: Path, folders: int) -> tuple[Repository, Repository]:
    small, large = Repository.make(root / "small.git"), Repository.make(root / "large.git")
    source = random.Random(1)
    small.commit({f"deploy/{n}.yaml": source.randbytes(500).hex() for n in range(20)})
    names = [f"f{f:03}/d{n % 5}/n{n:03}.yaml" for f in range(folders) for n in range(FILES)]
    large.commit({name: source.randbytes(HEX_BYTES).hex() for name in names})
    for repository in (small, large):
        repository.git("config", "uploadpack.allowFilter", "true")
        repository.git("config", "uploadpack.allowAnySHA1InWant", "true")
        repository.git("repack", "-q", "-a", "-d", "-b")
    return small, large


def milliseconds(samples: list[tuple[Sample, int]]) -> float:
    return spread([sample.seconds * 1e3 for sample, _ in samples]).median


def megabytes(samples: list[tuple[Sample, int]]) -> float:
    """After the last round."""
    return samples[-1][1] / 1e6


def tell(report: Report, title: str, found: Samples, clone: list[tuple[Sample, int]]) -> None:
    table = report.table(
        title, "way", "ms", "slowest", "client CPU ms", "time, clone = 1", "disk MB", "disk, clone = 1"
    )
    for name, samples in found.items():
        table.row(
            name,
            milliseconds(samples),
            max(sample.seconds for sample, _ in samples) * 1e3,
            spread([sample.cpu_seconds * 1e3 for sample, _ in samples]),
            f"1/{milliseconds(clone) / milliseconds(samples):.1f}",
            megabytes(samples),
            f"1/{megabytes(clone) / megabytes(samples):.1f}",
        )


def main() -> int:
    options = frame.options(__doc__)
    folders, commits = FOLDERS[options.size], COMMITS[options.size]
    report = Report("fetch", "From a new commit to the wanted files", "python -m bench.fetch", options)
    settings.BUNDLE_DIR = FOLDER / "bundles"
    try:
        small, large = repositories(FOLDER / "served", folders)
        with served(FOLDER / "served") as address:
            little = Remotes(small, f"{address}/small.git", ["deploy"], "deploy/0.yaml", FOLDER / "small")
            found = measured(little, little.ways(), options.rounds)
            tell(report, "Small repository, 20 files", found, found[CLONE])
            big = Remotes(large, f"{address}/large.git", [WANTED], f"{WANTED}/d0/n000.yaml", FOLDER / "large")
            ways = big.ways()
            once = measured(big, ways, options.rounds)
            clone, title = once[CLONE], f"{folders * FILES:,} files, {folders * FILES * HEX_BYTES * 2 / 1e6:.0f} MB"
            tell(report, f"{title}, one folder of {FILES} files wanted", once, clone)
            row = in_a_row(big, ways, options.rounds, commits)
            tell(report, f"The same, {commits} commits in a row", row, row[CLONE])
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    for what, found in (("a new commit", once), (f"{commits} commits in a row", row)):
        took, size = milliseconds(found[CLONE]), megabytes(found[CLONE])
        for name in (PARTIAL, WHOLE):
            require(report, f"{what}, {name}, time against {CLONE}", milliseconds(found[name]) / took, TIME_PART)
        require(report, f"{what}, {PARTIAL}, disk against {CLONE}", megabytes(found[PARTIAL]) / size, DISK_PART)
    report.note("A clone begins anew each time; all others are kept. Disk is what lies there after the last round.")
    report.bars("Milliseconds for a new commit, large repository", {name: milliseconds(s) for name, s in once.items()})
    report.bars("MB on disk, large repository", {name: megabytes(s) for name, s in once.items()})
    return report.finish()


def require(report: Report, what: str, value: float, bound: float) -> None:
    measurable = not report.options.small
    report.require(
        what, value if measurable else None, at_most=bound, not_measured="the repository is too small for it"
    )


if __name__ == "__main__":
    sys.exit(main())
