"""Faults of processes: killed, frozen, restarted, at any place."""

import os
import signal
import time
from contextlib import suppress
from functools import partial
from itertools import pairwise

from tests.end_to_end.stack import wait_until
from tests.faults.judge import Report, counter
from tests.faults.load import INTERVAL, Followed
from tests.faults.table import Fault, add, fault
from tests.faults.world import DELIVERY_LEASE, JOB_LEASE, POLL_LEASE, TICK, World
from tests.git_servers import Behaviour, Request

# From an instant to its being seen: a message, a process that must get a turn, a write.
SLACK = 4.0


def http_load(world: World) -> Followed:
    """A GitRepo of the load that is served over http."""
    return next(one for one in world.followed if one.name == "load-1")


def owner(world: World, table: str, where: str, *parameters: object) -> int:
    """The process id of who holds the lease."""
    rows = world.sql(f"SELECT lease_owner FROM {table} WHERE lease_token IS NOT NULL AND {where}", *parameters)
    return int(rows[0][0].rpartition(":")[2]) if rows else 0


@fault()
def child_killed_in_the_middle_of_a_fetch(world: World, report: Report) -> None:
    one = http_load(world)
    name = f"{one.name}.git/git-upload-pack"
    world.server.log.clear()
    world.server.behaviour = Behaviour(hang_after_bytes=200, only=name, of="fetch")
    try:
        one.push()
        pid = wait_until("it is being fetched", lambda: _fetching(world, one), 30)
        os.kill(pid, signal.SIGKILL)
    finally:
        world.server.behaviour = Behaviour()


def _fetching(world: World, one: Followed) -> int:
    """Who runs the job of `one` while its server has begun to send a pack."""
    if not any(
        r.method == "POST" and r.of == "fetch" for r in world.server.requests(f"{one.name}.git/git-upload-pack")
    ):
        return 0
    mine = "state = 'running' AND gitrepo_id = (SELECT id FROM repos_gitrepo WHERE name = %s AND deleted_at IS NULL)"
    return owner(world, "repos_syncjob", mine, one.name)


def _polls(world: World, one: Followed) -> list[Request]:
    """All that polls asked for, also what the server speaks."""
    return [request for request in world.server.requests(f"{one.name}.git/") if request.of == "poll"]


@fault()
def p5_child_killed_in_the_middle_of_a_poll(world: World, report: Report) -> None:
    one = http_load(world)
    world.server.behaviour = Behaviour(hang_before=True, only=f"{one.name}.git/", of="poll")
    seen = len(_polls(world, one))
    try:
        wait_until("it is asked", lambda: len(_polls(world, one)) > seen, 20, 0.02)
        pid = owner(world, "repos_remote", "url LIKE %s", f"%/{one.name}.git")
        assert pid
        os.kill(pid, signal.SIGKILL)
    finally:
        world.server.behaviour = Behaviour()
    killed = time.monotonic()
    seen = len(_polls(world, one))
    bound = POLL_LEASE + TICK + SLACK
    wait_until("it is polled again", lambda: len(_polls(world, one)) > seen, bound)
    report.notes["polled again after"] = round(time.monotonic() - killed, 2)


@fault()
def a_whole_worker_killed(world: World, report: Report) -> None:
    world.stack.parts["worker1"].kill()
    time.sleep(3)
    world.start_again("worker1")


@fault()
def every_worker_killed_for_a_while(world: World, report: Report) -> None:
    for name in world.WORKERS:
        world.stack.parts[name].kill()
    time.sleep(4)
    world.start_workers()


def beat_killed(name: str, world: World, report: Report) -> None:
    world.stack.parts[name].kill()
    time.sleep(3)
    world.start_again(name)


for _name in ("beat", "beat2"):
    add(Fault(f"{_name}_killed", partial(beat_killed, _name)))


@fault(woken=True)
def web_killed_right_after_its_answer(world: World, report: Report) -> None:
    one = world.followed[0]
    handled = world.stack.gitrepo(one.name)["status"]["observed_force_sync_generation"]
    world.stack.api("POST", f"gitrepos/{one.name}/sync/")
    world.stack.parts["web"].kill()
    world.start_again("web")
    wait_until("the web process is back", world.stack.is_ready, 60)
    wait_until(
        "the forced sync was done",
        lambda: world.stack.gitrepo(one.name)["status"]["observed_force_sync_generation"] == handled + 1,
        30,
    )


def frozen(point: str, lease: float, about: str, world: World, report: Report) -> None:
    """Whoever comes by is frozen beyond its lease, another one does its work, and then it goes on."""
    one = http_load(world)
    late_writes = counter(world, "fenced_writes")
    with world.frozen_at(point, one.name if about and not world.anyone else "", push=one) as pid:
        if point == "deliver.apply" and not world.anyone:
            # What the frozen one brings is to be older than what is there when it goes on.
            one.push()
        time.sleep(lease + TICK + 2)
        report.notes["frozen"] = pid
    if point in ("poll.store", "sync.conclude", "deliver.applied"):
        # For the report alone: whether somebody has taken the row by now is a matter of who was free. What a write that
        # came too late would break is judged like everything else, and the mutant without the fence shows that it is.
        with suppress(AssertionError):
            wait_until("its late write is dropped", lambda: counter(world, "fenced_writes") > late_writes, 10)
    report.notes["late writes dropped"] = counter(world, "fenced_writes") - late_writes


for _point, _lease in {
    "poll.store": POLL_LEASE,
    "adopt.page": JOB_LEASE,
    "sync.make": JOB_LEASE,
    "sync.conclude": JOB_LEASE,
    "deliver.apply": DELIVERY_LEASE,
    "deliver.applied": DELIVERY_LEASE,
    "directory.switch": DELIVERY_LEASE,
}.items():
    add(Fault(f"frozen_at_{_point}", partial(frozen, _point, _lease, _point if _point != "poll.store" else "")))


@fault()
def frozen_in_the_middle_of_a_fetch(world: World, report: Report) -> None:
    one = http_load(world)
    world.server.behaviour = Behaviour(hang_after_bytes=200, only=f"{one.name}.git/git-upload-pack", of="fetch")
    world.server.log.clear()
    pid = 0
    try:
        one.push()
        pid = wait_until("it is being fetched", lambda: _fetching(world, one), 30)
        os.kill(pid, signal.SIGSTOP)
        world.server.behaviour = Behaviour()
        time.sleep(JOB_LEASE + TICK + 1)
    finally:
        world.server.behaviour = Behaviour()
        if pid:
            os.kill(pid, signal.SIGCONT)


def killed(point: str, world: World, report: Report) -> None:
    """Whoever comes by `point` first dies there."""
    world.arm(point, "kill")
    try:
        world.wait_hit(point)
    finally:
        world.disarm(point)


for _point in (
    # Between a commit and its doorbell, at each joint.
    "doorbell.control",
    "doorbell.sync",
    "doorbell.deliver",
    # Everywhere else.
    "tick",
    "claim.remote",
    "claim.adoption",
    "claim.syncjob",
    "claim.delivery",
    "poll.ask",
    "poll.store",
    "poll.commit",
    "adopt.page",
    "sync.make",
    "sync.conclude",
    "deliver.apply",
    "deliver.applied",
    "directory.switch",
):
    add(Fault(f"killed_at_{_point}", partial(killed, _point)))


@fault(woken=True)
def web_killed_between_commit_and_doorbell(world: World, report: Report) -> None:
    one = world.followed[2]
    world.arm("doorbell.poll", "kill")
    before = world.sql("SELECT requested FROM repos_gitrepo WHERE name = %s", one.name)[0][0]
    with suppress(OSError):
        world.stack.api("POST", f"gitrepos/{one.name}/sync/")
    world.wait_hit("doorbell.poll")
    wait_until("the web process is back", world.stack.is_ready, 60)
    # gunicorn replaces the child that was killed; what it had committed is done without its doorbell.
    wait_until(
        "the request was handled",
        lambda: (
            world.sql(
                "SELECT requested > %s AND handled = requested FROM repos_gitrepo WHERE name = %s", before, one.name
            )
            in ([(True,)], [(1,)])
        ),
        30,
    )


@fault(woken=True)
def a_rolling_restart_of_everything(world: World, report: Report) -> None:
    began = time.monotonic()
    for name in ("worker1", "worker2", "beat", "beat2", "web"):
        status = world.stack.parts[name].stop()
        assert status in (0, -signal.SIGTERM), f"{name} ended with {status}"
        world.start_again(name)
    wait_until("the web process is back", world.stack.is_ready, 60)
    report.notes["seconds"] = round(time.monotonic() - began, 1)


@fault()
def p6_everything_down_for_three_intervals(world: World, report: Report) -> None:
    """Each overdue repository is polled once on return, none is skipped, and none twice."""
    for name in ("web", "beat", "beat2", *world.WORKERS):
        world.stack.parts[name].kill()
    world.log.look()
    before = {one.name: len(world.log.polls_of(one.name)) for one in world.followed}
    time.sleep(3 * INTERVAL)
    for name in ("web", "beat", "beat2", *world.WORKERS):
        world.start_again(name)
    wait_until("the web process is back", world.stack.is_ready, 60)

    def polled() -> bool:
        world.log.look()
        return all(len(world.log.polls_of(one.name)) > before[one.name] for one in world.followed)

    # Leases of polls that were killed have to run out first.
    wait_until("each was polled", polled, POLL_LEASE + TICK + 30)
    for one in world.followed:
        first = world.log.polls_of(one.name)[before[one.name] :]
        gaps = [(b.claimed_at - a.claimed_at).total_seconds() for a, b in pairwise(first)]
        assert all(gap >= INTERVAL for gap in gaps), f"{one.name} was polled twice for what was missed: {gaps}"
