"""Faults of the broker and of beat: what was in Redis is gone, late, doubled or from another version."""

import os
import shutil
import signal
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import redis
from celery import Celery

from fleetsync.celery import QUEUES
from tests.end_to_end.manifests import manifest, register_all
from tests.end_to_end.stack import wait_until
from tests.faults.judge import Report
from tests.faults.table import Fault, add, fault
from tests.faults.world import TICK, World
from tests.git_servers import Repository


def client(world: World) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(world.stack.redis_socket), socket_timeout=5)


@fault()
def p8_flushall_with_work_queued(world: World, report: Report) -> None:
    """Three times, a moment apart: whatever was queued is gone."""
    for _ in range(3):
        client(world).flushall()
        time.sleep(0.7)


@fault()
def redis_killed_and_started_empty_with_a_task_running(world: World, report: Report) -> None:
    world.arm("sync.make", "sleep", seconds=2)
    world.wait_hit("sync.make")
    world.stack.parts["redis"].kill()
    shutil.rmtree(world.stack.folder / "redis")
    (world.stack.folder / "redis").mkdir()
    world.stack.redis_socket.unlink(missing_ok=True)
    time.sleep(2)
    world.start_again("redis")


@fault()
def redis_frozen(world: World, report: Report) -> None:
    part = world.stack.parts["redis"]
    part.signal(signal.SIGSTOP)
    time.sleep(7)
    part.signal(signal.SIGCONT)


@fault()
def redis_out_of_memory(world: World, report: Report) -> None:
    """Under noeviction each write is refused."""
    broker = client(world)
    broker.config_set("maxmemory", "1")
    try:
        time.sleep(5)
    finally:
        broker.config_set("maxmemory", "0")


@fault()
def no_beat_for_a_while(world: World, report: Report) -> None:
    for name in ("beat", "beat2"):
        world.stack.parts[name].kill()
    time.sleep(5)
    for name in ("beat", "beat2"):
        world.start_again(name)


@fault()
def p9_five_beats(world: World, report: Report) -> None:
    """That nobody is polled twice in one interval is judged after every fault; here each entry is sent five times."""
    more = [f"beat{number}" for number in (3, 4, 5)]
    for name in more:
        world.stack.start_beat(name)
    time.sleep(8)
    for name in more:
        world.stack.parts.pop(name).stop()


@fault()
def p7_beat_frozen_for_two_seconds_with_two_hundred_due(world: World, report: Report) -> None:
    """reugn/go-quartz skipped 165 of 200."""
    names = [f"p7-{number}" for number in range(200)]
    one = Repository.make(world.stack.repositories / "p7.git")
    one.commit({"deploy/app.yaml": "1\n"})
    for name in names:
        shutil.copytree(one.folder, world.stack.repositories / f"{name}.git")
    register_all(
        world.stack,
        (
            manifest(name, f"file://{world.stack.repositories}/{name}.git", pollingInterval="10s", paused=True)
            for name in names
        ),
    )
    try:
        never = "SELECT count(*) FROM repos_remote WHERE last_poll_at IS NULL"
        wait_until("each was polled once", lambda: world.sql(never) == [(0,)], 60, every=0.5)
        for name in ("beat", "beat2"):
            world.stack.parts[name].signal(signal.SIGSTOP)
        # A session that is under way goes on without a beat: what it polls meanwhile is not skipped.
        world.log.look()
        seen = len(world.log.polls)
        # By hand, so that all of them are due while nobody ticks.
        world.sql(
            "UPDATE repos_remote SET next_poll_at = last_poll_at, wait_seconds = 0 "
            "WHERE lease_token IS NULL AND url LIKE '%%/p7-%%'"
        )
        waiting = {url for (url,) in world.sql("SELECT url FROM repos_remote WHERE url LIKE '%%/p7-%%'")}
        time.sleep(2)
        for name in ("beat", "beat2"):
            world.stack.parts[name].signal(signal.SIGCONT)
        going_on = time.monotonic()

        def skipped() -> set[str]:
            world.log.look()
            return waiting - {poll.repository for poll in world.log.polls[seen:]}

        wait_until("none is skipped", lambda: not skipped(), 10 + TICK + 20, every=0.3)
        report.notes["all 200 polled after"] = round(time.monotonic() - going_on, 2)
    finally:
        for name in names:
            world.stack.api("DELETE", f"gitrepos/{name}/")


def publish(world: World, task: str, queue: str, *arguments: object, **words: object) -> None:
    """A doorbell by Celery's own client, as any version of the code would send it."""
    with Celery(broker=f"redis+socket://{world.stack.redis_socket}") as app:
        app.conf.task_queues = None
        app.send_task(task, args=arguments, kwargs=words, queue=queue, ignore_result=True)


TASKS = {"control": "adopt", "poll": "poll", "sync": "sync", "deliver": "deliver"}


@fault()
def doorbells_tripled_late_and_out_of_order(world: World, report: Report) -> None:
    broker = client(world)
    stolen: list[tuple[str, bytes]] = []
    end = time.monotonic() + 5
    while time.monotonic() < end:
        for queue in QUEUES:
            if message := broker.rpop(queue):
                assert isinstance(message, bytes)
                stolen += [(queue, message)] * 3
        time.sleep(0.05)
    # Late, the last ones first, three times each.
    for queue, message in reversed(stolen):
        broker.lpush(queue, message)
    report.notes["doorbells held back"] = len(stolen)


@fault()
def doorbells_of_an_older_and_a_newer_version(world: World, report: Report) -> None:
    for queue, task in TASKS.items():
        publish(world, f"workers.tasks.{task}", queue, 17, gitrepo="shop")
        publish(world, f"workers.tasks.{task}_all", queue)
        publish(world, "repos.tasks.from_long_ago", queue, [1, 2, 3])
        client(world).lpush(queue, b"not even JSON")
    time.sleep(3)


@fault()
def nonsense_in_the_queues(world: World, report: Report) -> None:
    """Keys of another kind stand where the queues should be, until somebody deletes them."""
    broker = client(world)
    with suppress(redis.RedisError):
        for queue in QUEUES:
            broker.delete(queue)
            broker.set(queue, "x")
    time.sleep(3)
    for queue in QUEUES:
        broker.delete(queue)


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def deaf(queue: str, world: World, report: Report) -> None:
    """Connected, and consuming nothing: its supervisor's watchdog ends it."""
    world.arm("worker.deaf", "raise", about=queue)
    pid = world.wait_hit("worker.deaf", 30)

    began = time.monotonic()
    # The other worker empties the queue meanwhile: only its own letter shows that this one takes nothing.
    wait_until("the deaf worker is replaced", partial(is_gone, pid), 60)
    report.notes["replaced after"] = round(time.monotonic() - began, 2)


def worker_frozen(queue: str, world: World, report: Report) -> None:
    """The main process of a worker is frozen: its supervisor ends it."""
    pid = world.celery_parents(queue)[0]
    os.kill(pid, signal.SIGSTOP)

    wait_until("the frozen worker is replaced", partial(is_gone, pid), 60)


for _queue in ("poll",):
    add(Fault(f"deaf_worker_for_{_queue}", partial(deaf, _queue)))
    add(Fault(f"frozen_worker_for_{_queue}", partial(worker_frozen, _queue)))
