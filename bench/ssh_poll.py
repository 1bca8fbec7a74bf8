"""What one poll over ssh costs this machine: CPU of the client by way of asking, with many in flight.

    python bench/ssh_poll.py [--rounds 5] [--in-flight 50]

Starts an sshd of its own on loopback (its CPU is not counted) and asks it for one branch of one repository, with git
alone, with git over a kept master connection, and with the ssh asker of workers/poll. Rounds are interleaved. The sshd
allows as many sessions on one connection as are in flight, so that one master connection can carry them; the asker opens
further connections by itself.
"""

import argparse
import asyncio
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fleetsync.settings")

import django

django.setup()

from tests.git_servers import ENVIRONMENT, Repository
from tests.ssh_servers import SshServer, make_key, ssh_server, why_not
from workers.git_environment import RemoteAccess
from workers.poll.engine import PollRequest
from workers.poll.ssh import SshAsker

MAIN = "refs/heads/main"
Poll = Callable[[], Awaitable[str]]


def ticks(pid: int) -> float:
    """Seconds of CPU that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def used(master: int) -> float:
    """Seconds of CPU of this process, of its children that have ended, and of the master connection."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages) + ticks(master)


def with_git(url: str, ssh: str) -> Poll:
    environment = {**ENVIRONMENT, "GIT_SSH_COMMAND": ssh, "GIT_SSH_VARIANT": "ssh", "GIT_PROTOCOL": "version=2"}

    async def poll() -> str:
        process = await asyncio.create_subprocess_exec(
            "git", "-c", "protocol.version=2", "ls-remote", url, MAIN, env=environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, errors = await process.communicate()
        assert output, errors.decode()
        return output.split()[0].decode()

    return poll


async def one_round(poll: Poll, count: int, in_flight: int, expected: str, master: int) -> tuple[float, float]:
    """CPU and wall milliseconds for each poll."""
    left = iter(range(count))

    async def ask() -> None:
        for _ in left:
            commit = await poll()
            assert commit == expected, commit

    cpu, wall = used(master), time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(in_flight)))
    return (used(master) - cpu) / count * 1000, (time.perf_counter() - wall) / count * 1000


def processor() -> str:
    lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return lines[0].partition(":")[2].strip() if lines else platform.processor()


async def measure(server: SshServer, repository: Repository, folder: Path, options: argparse.Namespace) -> None:
    key = make_key(folder / "key")
    server.allow(folder / "key")
    (folder / "known_hosts").write_text(server.known_hosts())
    asking, access = SshAsker(), RemoteAccess(server.url(repository), "ssh", "", key, server.known_hosts())
    url, control = server.url(repository), folder / "control"
    base = f"ssh -F /dev/null -o BatchMode=yes -o UserKnownHostsFile={folder}/known_hosts -i {folder}/key"
    words = f"{base} -o IdentityAgent=none -N -M -S {control} -p {server.port} {server.user}@127.0.0.1".split()
    master = await asyncio.create_subprocess_exec(*words, env=ENVIRONMENT)
    while not control.exists():  # noqa: ASYNC110 (ssh tells nobody)
        await asyncio.sleep(0.01)
    polls: dict[str, tuple[Poll, int]] = {
        "git ls-remote": (with_git(url, base), 2),
        "git ls-remote, master connection": (with_git(url, f"{base} -o ControlPath={control}"), 4),
        "asyncssh, kept connections": (asker(asking, access), 20),
    }
    expected = repository.head()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in polls}
    for number in range(options.rounds + 1):
        for name, (poll, factor) in polls.items():
            row = await one_round(poll, factor * options.in_flight, options.in_flight, expected, master.pid)
            if number:  # the first one opens what is kept
                found[name].append(row)
    await asking.close()
    master.terminate()
    await master.wait()
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    best = medians["asyncssh, kept connections"][0]
    print(f"{time.strftime('%Y-%m-%d')}, {processor()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{options.rounds} rounds, {options.in_flight} in flight, medians\n")
    print("| way of asking | client CPU, ms a poll | range | ratio | wall, ms a poll |")
    print("|---|---|---|---|---|")
    for name, (cpu, wall) in medians.items():
        costs = [cost for cost, _ in found[name]]
        print(f"| {name} | {cpu:.2f} | {min(costs):.2f}-{max(costs):.2f} | {cpu / best:.1f} | {wall:.2f} |")


def asker(asking: SshAsker, access: RemoteAccess) -> Poll:
    async def poll() -> str:
        result = await asking.ask(PollRequest(1, access, (MAIN,), 60.0, 1000))
        assert result.error is None, result.error
        return result.refs[MAIN]

    return poll


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--in-flight", type=int, default=50)
    options = parser.parse_args()
    if reason := why_not():
        raise SystemExit(f"skipped: {reason}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repository = Repository.make(folder / "shop.git")
        repository.commit({"a": "a"})
        many = str(2 * options.in_flight)
        settings = {"MaxSessions": many, "MaxStartups": many, "LogLevel": "ERROR"}
        with ssh_server(folder / "sshd", settings) as server:
            asyncio.run(measure(server, repository, folder, options))


if __name__ == "__main__":
    main()
