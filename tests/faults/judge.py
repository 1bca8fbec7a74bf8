"""The judgement after each fault: what must be true once the dust has settled, whatever happened."""

import itertools
import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tests.end_to_end.stack import wait_until
from tests.faults.load import INTERVAL
from tests.faults.watching import doubled, written_too_late
from tests.faults.world import POLL_LEASE, SETTLE, TICK, World


@dataclass
class Report:
    """What one fault cost. Seconds; `late` is from the fault's end until everything was delivered."""

    fault: str
    database: str
    late: float = 0.0
    longest_gap: float = 0.0
    polls: int = 0
    commits: int = 0
    fenced: int = 0
    superseded: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    def keep(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(asdict(self)) + "\n")


@dataclass(frozen=True)
class Before:
    """How things stood before the fault, to tell what it added."""

    at: datetime
    polls: int
    pushed: int
    fenced: int
    superseded: int


def look(world: World) -> Before:
    world.log.look()
    return Before(
        database_now(world), len(world.log.polls), world.pusher.pushed,
        counter(world, "fenced_writes"), counter(world, "sync_jobs", "result=superseded"),
    )  # fmt: skip


def database_now(world: World) -> datetime:
    if world.database == "postgresql":
        found = world.sql("SELECT clock_timestamp()")[0][0]
        assert isinstance(found, datetime)
        return found
    return datetime.now().astimezone()


def counter(world: World, name: str, label: str = "") -> int:
    where = "name = %s" + (" AND label = %s" if label else "")
    found = world.sql(f"SELECT sum(value) FROM repos_counter WHERE {where}", *([name, label] if label else [name]))
    return int(found[0][0] or 0)


def judge(
    world: World,
    report: Report,
    before: Before,
    *,
    clock: bool = False,
    woken: bool = False,
    settle_seconds: float = SETTLE,
) -> None:
    """Everything of the oracle; AssertionError with all that is wrong.

    `clock`: the log's instants cannot be compared, since clocks were set. `woken`: something asked for polls between
    the scheduled ones.
    """
    wrong: list[str] = []
    report.late = max(report.late, world.settle(settle_seconds))
    if not clock:
        wrong += judge_following(world, before)
    world.log.look()
    report.polls = len(world.log.polls) - before.polls
    report.commits = world.pusher.pushed - before.pushed
    report.fenced = counter(world, "fenced_writes") - before.fenced
    report.superseded = counter(world, "sync_jobs", "result=superseded") - before.superseded
    if not clock:
        wrong += judge_polls(world, report, before, woken=woken)
    wrong += world.watcher.wrong
    wrong += judge_ledger(world)
    # Instants that were written by a wrong clock are overdue until somebody comes by: a pruning, once a minute.
    wrong += judge_doctor(world, patience=90 if clock else 2)
    wrong += judge_processes(world)
    assert not wrong, "\n".join(wrong)


def judge_following(world: World, before: Before) -> list[str]:
    """Everybody is polled again: what died took a lease along at the most."""

    def missing() -> list[str]:
        world.log.look()
        return [one.name for one in world.followed if not world.log.polls_of(one.name, before.at)]

    with suppress(AssertionError):
        wait_until("all are polled", lambda: not missing(), POLL_LEASE + INTERVAL + TICK + 10, every=0.3)
    return [f"{name} was not polled since {before.at}" for name in missing()]


def judge_polls(world: World, report: Report, before: Before, *, woken: bool) -> list[str]:
    """No two polls of one remote at once, none early; the longest gap goes into the report."""
    wrong = []
    # A poll that was claimed before the fault and answered within it belongs to both.
    since = before.at - timedelta(seconds=2 * INTERVAL)
    # Lines from a fault that set a clock forward lie ahead of everything else, and are no part of this one.
    until = database_now(world)
    for one in list(world.followed):
        polls = [poll for poll in world.log.polls_of(one.name, since) if poll.claimed_at <= until]
        tries = [poll for poll in world.log.polls if poll.gitrepo == one.name and poll.claimed_at >= since]
        wrong += [f"{one.name} was polled twice at once: {a} and {b}" for a, b in doubled(tries, POLL_LEASE)]
        wrong += [f"{one.name}: a result came too late and was written: {a}, {b}" for a, b in written_too_late(polls)]
        gaps = [(b.claimed_at - a.claimed_at).total_seconds() for a, b in itertools.pairwise(polls)]
        if gaps:
            report.longest_gap = max(report.longest_gap, *gaps)
        # What came before may belong to a fault that asked for polls.
        mine = [gap for poll, gap in zip(polls, gaps, strict=False) if poll.claimed_at >= before.at]
        if mine and not woken and one.is_load and min(mine) < INTERVAL - 0.01:
            wrong.append(f"{one.name} was polled again after {min(mine):.2f} s of {INTERVAL:g} s")
    return wrong


def judge_ledger(world: World) -> list[str]:
    """Every revision has ended, at every cluster with one outcome; every head is its GitRepo's newest revision."""
    wrong = [
        f"{name} #{number} has no outcome"
        for name, number in world.sql(
            "SELECT g.name, r.number FROM repos_revision r JOIN repos_gitrepo g ON g.id = r.gitrepo_id "
            "WHERE r.outcome = '' AND g.deleted_at IS NULL AND NOT g.paused"
        )
    ]
    wrong += [
        f"{name} #{number} at {cluster} is still {outcome}"
        for name, number, cluster, outcome in world.sql(
            "SELECT g.name, r.number, c.name, x.outcome FROM repos_deliveryrecord x "
            "JOIN repos_revision r ON r.id = x.revision_id JOIN repos_gitrepo g ON g.id = r.gitrepo_id "
            "JOIN repos_cluster c ON c.id = x.cluster_id "
            "WHERE x.outcome IN ('pending', 'failed') AND g.deleted_at IS NULL AND NOT g.paused"
        )
    ]
    newest = dict(
        world.sql(
            'SELECT g.name, r."commit" FROM repos_gitrepo g JOIN repos_revision r ON r.gitrepo_id = g.id '
            "AND r.number = g.latest_revision WHERE g.deleted_at IS NULL"
        )
    )
    wrong += [
        f"{one.name} is at {newest.get(one.name, 'nothing')[:8]}, its head is {one.head[:8]}"
        for one in world.followed
        if newest.get(one.name) != one.head
    ]
    return wrong


def judge_doctor(world: World, patience: float) -> list[str]:
    """The doctor's own words, asked as an operator does; asked again for `patience` seconds if there is an error."""
    end = time.monotonic() + patience
    while True:
        late = time.monotonic() >= end
        found = world.doctor("--deep")
        broken = [f for f in found["findings"] if f["severity"] == "error"]
        if not broken or late:
            break
        time.sleep(2)
    return [f"doctor: {f['kind']}: {f['subject']}: {f['message']}" for f in broken]


def judge_processes(world: World) -> list[str]:
    """No process of ours whose parents have died, and no git that nobody waits for."""
    alive = {part.pid for part in world.stack.parts.values()}
    for part in world.stack.parts.values():
        alive.update(part.children())
    marks = (str(world.folder).encode(), f"127.0.0.1:{world.server.port}".encode())

    def orphans() -> list[str]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                command = (folder / "cmdline").read_bytes()
                if b"git" not in command.split(b"\0")[0] or int(folder.name) in alive:
                    continue
                if any(mark in (folder / "environ").read_bytes() for mark in marks) and is_orphan(int(folder.name)):
                    found.append(f"an orphan: {folder.name} {command.replace(bytes(1), b' ').decode()[:120]}")
        return found

    # What was killed a moment ago may still be on its way out.
    end = time.monotonic() + 5
    while (found := orphans()) and time.monotonic() < end:
        time.sleep(0.2)
    return found


def is_orphan(pid: int) -> bool:
    """Whether the next Python among its parents is neither a worker's child nor this process's."""
    while pid > 1:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pid = int(fields[1])
        command = Path(f"/proc/{pid}/cmdline").read_bytes() if pid > 1 else b""
        if b"python" in command.split(b"\0")[0]:
            return b"celery" not in command and b"pytest" not in command
    return True
