"""What one poll costs the client: our engine alone, GitPython, pygit2, go-git as Rancher Fleet uses it, and the floor.

    python -m bench.poll_cost [--size small] [--rounds 5]

Every client is a process of its own, and what counts is its own CPU after it has warmed up. All ask the same servers for one
branch: a local server that answers from memory, with nginx in front of it for https, and a real sshd for ssh. Every answer
is looked at by every client, except by the floor. Needs a C compiler; go, wrk, nginx and sshd are skipped with a reason
where they are missing, pygit2 where it is not installed.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.frame import Options, Report, options, spread
from bench.measuring import Sample, interleaved, run_client, run_whole
from bench.peers import Task
from bench.servers import MAIN, MAIN_COMMIT, git_server, tls_server, why_no_git_server, why_no_tls_server
from tests.git_servers import Repository
from tests.ssh_servers import make_key, ssh_server
from tests.ssh_servers import why_not as why_no_sshd

PEERS = Path(__file__).resolve().parent / "peers"
OURS, GO_GIT, GO_GIT_DEFAULT, GIT_PYTHON, PYGIT2, FLOOR = (
    "ours", "go-git, connections kept", "go-git, as Fleet runs it", "GitPython ls-remote", "pygit2, threads", "floor: wrk",
)  # fmt: skip
MEGABYTE = 1e6
REMOTES = 200


@dataclass(frozen=True)
class Client:
    """How a client is started, or why it is not; `polls` for each full round by the name of a case."""

    command: tuple[str, ...]
    polls: Mapping[str, int]
    why_not: str = ""


@dataclass(frozen=True)
class Case:
    name: str
    title: str
    base: str
    servers: tuple[Callable[[], float], ...]
    in_flight: int = 50
    remotes: int = REMOTES
    env: Mapping[str, str] = field(default_factory=dict)
    commit: str = MAIN_COMMIT


@dataclass(frozen=True, slots=True)
class Run:
    sample: Sample
    server_us: float


def main() -> int:
    chosen = options(__doc__)
    report = Report("poll_cost", "What one poll costs the client", "python -m bench.poll_cost", chosen)
    if why_not := why_no_git_server():
        report.note(f"Nothing was measured: {why_not}.")
        return report.finish()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        known = clients(folder)
        for name, client in known.items():
            if client.why_not:
                report.note(f"{name}: skipped, {client.why_not}.")
        medians: dict[str, dict[str, float]] = {}
        peaks: dict[str, float] = {}
        for maker in (http, https, ssh, many_refs, slow_50, slow_1000, slow_1000_https):
            with maker(folder) as case:
                if isinstance(case, str):
                    report.note(case)
                    continue
                measure(report, case, known, chosen, medians, peaks)
    require(report, known, medians, peaks)
    charts(report, medians)
    return report.finish()


# -- clients ----------------------------------------------------------------------------------------------------------


def clients(folder: Path) -> dict[str, Client]:
    python = (sys.executable, "-m")
    program, no_go = build_go_git(folder)
    no_pygit2 = "" if importlib.util.find_spec("pygit2") else "pygit2 is not installed in this environment"
    no_wrk = "" if shutil.which("wrk") else "wrk is missing: apt install wrk"
    quick = {"http": 10_000, "https": 6_000, "many_refs": 300, "slow_50": 1_000, "slow_1000": 12_000}
    ours = quick | {"http": 20_000, "https": 20_000, "many_refs": 20_000, "ssh": 500, "slow_1000_https": 8_000}
    return {
        OURS: Client((*python, "bench.peers.ours"), ours),
        GO_GIT: Client((program, "-keep=2000"), quick, no_go),
        GO_GIT_DEFAULT: Client((program,), {"http": 6_000, "https": 2_000}, no_go),
        PYGIT2: Client((*python, "bench.peers.libgit2"), {"http": 3_000, "https": 1_000, "many_refs": 100}, no_pygit2),
        GIT_PYTHON: Client(
            (*python, "bench.peers.gitpython"), {"http": 200, "https": 100, "ssh": 50, "many_refs": 150}
        ),
        # Seconds, not polls: it goes by time.
        FLOOR: Client(("wrk",), {"http": 2, "https": 2, "many_refs": 2, "slow_50": 5, "slow_1000": 4}, no_wrk),
    }


def build_go_git(folder: Path) -> tuple[str, str]:
    """The program, or why there is none."""
    program = str(folder / "gogit")
    if not shutil.which("go"):
        return program, "Go is missing"
    done = subprocess.run(
        ["go", "build", "-o", program, "."], cwd=PEERS / "gogit", capture_output=True, text=True, check=False
    )
    lines = done.stderr.strip().splitlines()
    return program, f"`go build` failed: {lines[-1] if lines else done.returncode}" if done.returncode else ""


def run_one(name: str, client: Client, case: Case, small: bool) -> Run:
    count = client.polls[case.name]
    before = server_seconds(case)
    if name == FLOOR:
        sample = run_floor(case, max(1, count // 2) if small else count)
    else:
        # A quick look still fills every place a few times, but with git a process each would take too long.
        least = case.in_flight * (1 if name == GIT_PYTHON else 3)
        polls = max(least, count // 10) if small else count
        task = Task(case.base, polls, case.in_flight, case.remotes, MAIN, case.commit)
        sample = run_client([*client.command, *task.words()], env={**os.environ, **case.env})
    # The warming up is in it; it is for an impression.
    return Run(sample, (server_seconds(case) - before) / sample.operations * 1e6)


def server_seconds(case: Case) -> float:
    return sum(used() for used in case.servers)


def run_floor(case: Case, seconds: int) -> Sample:
    from workers.poll.protocol import ls_refs_request

    body = ls_refs_request((MAIN,), "sha1").decode()
    url = Task(case.base, 0, 0, 1, MAIN, "").url(0) + "/git-upload-pack"
    command = ["wrk", "-t1", f"-c{case.in_flight}", f"-d{seconds}", "-s", str(PEERS / "floor.lua"), url]
    sample, output = run_whole(command, env={**os.environ, "BENCH_BODY": body})
    said = next(line.split() for line in output.splitlines() if line.startswith("floor "))
    if int(said[2]):
        raise RuntimeError(f"wrk had {said[2]} bad answers: {output}")
    return replace(sample, operations=int(said[1]))


# -- cases ------------------------------------------------------------------------------------------------------------


@contextmanager
def http(_: Path) -> Iterator[Case | str]:
    with git_server() as server:
        yield Case("http", "http, 6 refs, 50 in flight", server.base, (lambda: server.cpu_seconds,))


@contextmanager
def https(_: Path, *, delay_ms: int = 0) -> Iterator[Case | str]:
    if why_not := why_no_tls_server():
        yield f"https: skipped, {why_not}."
        return
    with git_server(delay_ms=delay_ms) as server, tls_server(server) as tls:
        # The system's authorities for everybody: that is the common case, and the one in which go-git keeps connections.
        env = {"SSL_CERT_FILE": str(tls.ca_file), "SSL_CERT_DIR": "/nonexistent", "GIT_SSL_CAINFO": str(tls.ca_file)}
        used = (lambda: server.cpu_seconds, lambda: tls.cpu_seconds)
        yield Case("https", "https, 6 refs, 50 in flight", tls.base, used, env=env)


@contextmanager
def many_refs(_: Path) -> Iterator[Case | str]:
    with git_server(refs=5005) as server:
        yield Case("many_refs", "http, 5,005 refs, 50 in flight", server.base, (lambda: server.cpu_seconds,))


@contextmanager
def slow_50(_: Path) -> Iterator[Case | str]:
    with git_server(delay_ms=250) as server:
        title = "http, 6 refs, a server that takes 250 ms, 50 in flight"
        yield Case("slow_50", title, server.base, (lambda: server.cpu_seconds,))


@contextmanager
def slow_1000(_: Path) -> Iterator[Case | str]:
    with git_server(delay_ms=250) as server:
        title = "http, 6 refs, a server that takes 250 ms, 1 000 in flight"
        used = (lambda: server.cpu_seconds,)
        yield Case("slow_1000", title, server.base, used, in_flight=1_000, remotes=2_000)


@contextmanager
def slow_1000_https(folder: Path) -> Iterator[Case | str]:
    with https(folder, delay_ms=250) as case:
        if isinstance(case, str):
            yield case
            return
        title = "https, 6 refs, a server that takes 250 ms, 1 000 in flight"
        yield replace(case, name="slow_1000_https", title=title, in_flight=1_000, remotes=2_000)


@contextmanager
def ssh(folder: Path) -> Iterator[Case | str]:
    """One repository of a real sshd. Its processes come and go with connections, and are not counted."""
    if reason := why_no_sshd():
        yield f"ssh: skipped, {reason}."
        return
    repository = Repository.make(folder / "repository.git")
    commit = repository.commit({"app.yaml": "a: 1\n"})
    settings = {"MaxSessions": "100", "MaxStartups": "200", "LogLevel": "ERROR"}
    with ssh_server(folder / "sshd", settings) as server:
        key, known_hosts = folder / "key", folder / "known_hosts"
        make_key(key)
        server.allow(key)
        known_hosts.write_text(server.known_hosts())
        options = f"-F /dev/null -o BatchMode=yes -o IdentityAgent=none -o UserKnownHostsFile={known_hosts} -i {key}"
        env = {
            "BENCH_SSH_KEY": str(key),
            "BENCH_SSH_KNOWN_HOSTS": str(known_hosts),
            "GIT_SSH_COMMAND": f"ssh {options}",
        }
        yield Case("ssh", "ssh, one branch, 50 in flight", server.url(repository), (), env=env, commit=commit)


# -- what was found ---------------------------------------------------------------------------------------------------


def measure(
    report: Report,
    case: Case,
    known: Mapping[str, Client],
    chosen: Options,
    medians: dict[str, dict[str, float]],
    peaks: dict[str, float],
) -> None:
    print(case.title, file=sys.stderr, flush=True)
    here = {name: client for name, client in known.items() if case.name in client.polls and not client.why_not}

    def runner(name: str) -> Callable[[], Run]:
        return lambda: run_one(name, here[name], case, chosen.small)

    found = interleaved({name: runner(name) for name in here}, chosen.rounds)
    cpu = {name: spread([run.sample.cpu_us for run in runs]) for name, runs in found.items()}
    columns = ("client", "CPU µs a poll", "from", "to", "× ours", "polls/s", "peak MB", "server µs")
    table = report.table(case.title, *columns)
    for name, runs in found.items():
        peak = max(run.sample.peak_bytes for run in runs) / MEGABYTE
        table.row(
            name,
            cpu[name],
            min(cpu[name].values),
            max(cpu[name].values),
            cpu[name].median / cpu[OURS].median,
            spread([run.sample.rate for run in runs]),
            peak or None,
            spread([run.server_us for run in runs]) if case.servers else None,
        )
        if name == OURS:
            peaks[case.name] = peak
    medians[case.name] = {name: values.median for name, values in cpu.items()}


def require(
    report: Report,
    known: Mapping[str, Client],
    medians: Mapping[str, Mapping[str, float]],
    peaks: Mapping[str, float],
) -> None:
    def ratio(what: str, case: str, other: str, at_most: float) -> None:
        found = medians.get(case, {})
        value = found[OURS] / found[other] if other in found else None
        report.require(what, value, at_most=at_most, not_measured=known[other].why_not or "skipped")

    ratio("CPU a poll, http: ours/go-git", "http", GO_GIT, 0.6)
    ratio("CPU a poll, 5,005 refs: ours/go-git", "many_refs", GO_GIT, 0.01)
    ratio("CPU a poll, http: ours/floor", "http", FLOOR, 8)
    ratio("CPU a poll, http: ours/GitPython", "http", GIT_PYTHON, 1 / 150)
    for case, words in (("slow_1000", "http"), ("slow_1000_https", "https")):
        what = f"memory of a poll process, 1 000 in flight, {words}"
        report.require(what, peaks.get(case), at_most=150, unit="MB", not_measured="skipped")


def charts(report: Report, medians: Mapping[str, Mapping[str, float]]) -> None:
    titles = {
        "http": "http",
        "https": "https",
        "ssh": "ssh",
        "many_refs": "http, 5,005 refs",
        "slow_50": "a slow server",
    }
    for case, title in titles.items():
        if case in medians:
            report.bars(f"Microseconds of CPU a poll: {title}", medians[case])


if __name__ == "__main__":
    sys.exit(main())
