"""Faults of the database and of clocks."""

import shutil
import sqlite3
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import psycopg

from tests.end_to_end.stack import wait_until
from tests.faults.judge import Report, counter
from tests.faults.table import Fault, add, fault
from tests.faults.world import SYNC_PERIOD, TICK, World

POSTGRESQL = ("postgresql",)
SQLITE = ("sqlite",)


def restarted(point: str, world: World, report: Report) -> None:
    """PostgreSQL crashes and comes back while somebody is inside the transaction at `point`."""
    assert world.postgresql is not None
    world.arm(point, "sleep", seconds=3)
    world.wait_hit(point)
    world.postgresql.restart()


for _point in ("tick", "claim.remote", "claim.syncjob", "claim.delivery", "poll.commit"):
    add(Fault(f"postgresql_restarted_at_{_point}", partial(restarted, _point), POSTGRESQL))


@fault(databases=POSTGRESQL)
def claims_that_choose_at_the_same_moment(world: World, report: Report) -> None:
    """Between choosing candidates and locking their hosts another claim may take them. SQLite's claims take turns."""
    world.arm("chosen.remote", "sleep", seconds=0.4, times=0)
    time.sleep(8)
    report.notes["claims"] = len(world.hits("chosen.remote"))


@fault(databases=POSTGRESQL)
def database_away(world: World, report: Report) -> None:
    assert world.postgresql is not None
    world.postgresql.stop()
    time.sleep(6)
    world.postgresql.start()


def table_locked(table: str, world: World, report: Report) -> None:
    with psycopg.connect(world.stack.database_url) as other, other.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        time.sleep(6)


for _table in ("repos_remote", "repos_syncjob", "repos_delivery"):
    add(Fault(f"table_locked_{_table}", partial(table_locked, _table), POSTGRESQL))


@fault(databases=SQLITE)
def sqlite_locked_by_another_process(world: World, report: Report) -> None:
    path = world.stack.data / "fleetsync.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(7)
        other.execute("ROLLBACK")


@fault(clock=True, woken=True)
def t5_restored_from_an_older_backup(world: World, report: Report) -> None:
    """Everything is stopped and the database is set back to before the last deliveries: the targets are ahead of it."""
    world.pusher.stop()
    world.settle()
    copy_database(world, to="backup")
    # Twice: the restored database will want the newest commit as what it numbers next, and the target has gone further.
    for _ in range(2):
        for one in world.followed:
            one.push()
        world.settle()
    names = ["web", "beat", "beat2", *world.WORKERS]
    for name in names:
        world.stack.parts[name].stop()
    copy_database(world, to="restored")
    for name in names:
        world.start_again(name)
    wait_until("the web process is back", world.stack.is_ready, 60)
    world.pusher.start()
    ahead = "deliveries", "result=target-ahead"
    wait_until("somebody found a target that is ahead", lambda: counter(world, *ahead) > 0, 60)
    one = world.followed[0]
    wait_until(
        "its status says what happened",
        lambda: any(
            e["reason"] == "TargetAhead" for e in world.stack.api("GET", f"gitrepos/{one.name}/events/")["results"]
        ),
        60,
    )


def copy_database(world: World, to: str) -> None:
    """Make a backup while everything runs, or put it back while nothing does."""
    if world.postgresql is None:
        path, backup = world.stack.data / "fleetsync.sqlite3", world.folder / "backup.sqlite3"
        if to == "backup":
            with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(backup)) as target:
                source.backup(target)
        else:
            world.disconnect()
            for leftover in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
                leftover.unlink(missing_ok=True)
            with closing(sqlite3.connect(backup)) as source, closing(sqlite3.connect(path)) as target:
                source.backup(target)
        return
    backup_file = world.folder / "backup.dump"
    url = world.stack.database_url.replace("postgres://", "postgresql://")
    if to == "backup":
        world.run([str(world.postgresql.programs / "pg_dump"), "--format=custom", f"--file={backup_file}", url])
    else:
        world.disconnect()
        world.stack.drop_database()
        world.stack.create_database()
        world.run(
            [str(world.postgresql.programs / "pg_restore"), "--exit-on-error", f"--dbname={url}", str(backup_file)]
        )


# What is destroyed by hand, and whether the resync counts its repair (an instant beyond its horizon is healed instead).
DESTROYED = {
    "null": "UPDATE repos_remote SET next_poll_at = NULL",
    "far_future": "UPDATE repos_remote SET next_poll_at = '2099-01-01 00:00:00+00:00'",
    "dead_lease": "UPDATE repos_remote SET lease_until = '2099-01-01 00:00:00+00:00', lease_token = "
    "'00000000000000000000000000000001', next_poll_at = '2020-01-01 00:00:00+00:00'",
}


def destroyed(how: str, world: World, report: Report) -> None:
    """P12: polled within GITREPO_SYNC_PERIOD."""
    repairs = counter(world, "repairs")
    world.log.look()
    seen = {one.name: len(world.log.polls_of(one.name)) for one in world.followed}
    world.sql(DESTROYED[how])
    began = time.monotonic()

    def polled() -> bool:
        world.log.look()
        # One poll may have been under way, and have written its schedule over what was destroyed.
        return all(len(world.log.polls_of(one.name)) > seen[one.name] + 1 for one in world.followed)

    wait_until("all are polled again", polled, 2 * SYNC_PERIOD + TICK + 10, every=0.3)
    report.notes["polled again within"] = round(time.monotonic() - began, 2)
    report.notes["repairs"] = counter(world, "repairs") - repairs
    if how == "null":
        assert counter(world, "repairs") > repairs, "the repair was not counted"
    # What the test destroyed is not the program's fault: the oracle wants 0.
    world.stack.manage("doctor", "--seen-repairs")


for _how in DESTROYED:
    add(Fault(f"p12_schedule_destroyed_{_how}", partial(destroyed, _how), woken=True))


def clock_stepped(hours: int, world: World, report: Report) -> None:
    """The wall clock of beats and workers (on SQLite, whose clock is theirs, of everybody) is set and set back."""
    names = ["beat", "worker1"] if world.database == "postgresql" else ["web", "beat", "beat2", *world.WORKERS]
    with world.faked_clock(names):
        time.sleep(2)
        world.set_clock(hours)
        time.sleep(6)
        world.set_clock(0)
        time.sleep(8)
    report.notes["healed"] = counter(world, "healed_schedules")


def no_compiler() -> str:
    return "" if shutil.which("cc") else "there is no C compiler for tests/faults/clock.c: apt install gcc libc6-dev"


for _hours in (1, -1):
    add(
        Fault(
            f"clock_stepped_{_hours:+d}h",
            partial(clock_stepped, _hours),
            clock=True,
            woken=True,
            needs=no_compiler,
        )
    )
