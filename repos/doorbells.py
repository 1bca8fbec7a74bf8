"""Ringing a stage's doorbell: a message that says "look" and carries nothing.

A doorbell that is lost changes nothing but the latency, so ringing never fails and never waits long.
"""

from dataclasses import dataclass

import structlog
from celery import current_app
from django.db import connection, transaction

from fleetsync.failpoints import hit
from fleetsync.redis import redis_client

log = structlog.get_logger(__name__)

# The task that each queue's doorbell starts.
TASKS = {
    "control": "workers.tasks.adopt",
    "poll": "workers.tasks.poll",
    "sync": "workers.tasks.sync",
    "deliver": "workers.tasks.deliver",
}
# The task with which each queue's workers answer the doctor.
PROBES = {
    "poll": "workers.tasks.probe_remotes",
    "sync": "workers.tasks.probe_machine",
    "deliver": "workers.tasks.probe_targets",
}
COLLECTOR = "workers.tasks.collect"
# More waiting doorbells than this would find nothing left to do: one session works until nothing is due.
ENOUGH_WAITING = 8
# Who takes the one that waits looks after the commit that found it waiting. Who is idle leaves none waiting, so that one
# more commit wakes one more process. Where what waits is another message (a tick, the collector), the next tick rings.
ENOUGH_FOR_A_COMMIT = 1


def ring(queue: str, times: int = 1, *, enough: int = ENOUGH_WAITING) -> int:
    """Put up to `times` doorbells into `queue`, but no more than make `enough` waiting ones; how many were sent."""
    return _send(queue, TASKS[queue], times, enough)


def ring_probe(queue: str) -> int:
    """Ask the workers of `queue` to look for the doctor's questions; a queue that is just full has room for that."""
    return _send(queue, PROBES[queue], 1, 2 * ENOUGH_WAITING)


def ring_collector() -> int:
    """Ask one of the machines that sync to collect its disk: the next one in turn, though jobs are waiting."""
    return _send("sync", COLLECTOR, 1, ENOUGH_WAITING + 2)


def _send(queue: str, task: str, times: int, enough: int) -> int:
    try:
        lacking = min(times, enough - int(redis_client().llen(queue)))
        for _ in range(lacking):
            current_app.send_task(task, queue=queue, ignore_result=True)
    except Exception as error:  # noqa: BLE001  (whatever the broker's fault: the row is the message, the tick rings again)
        log.warning("doorbell not sent", queue=queue, error=str(error)[:200])
        return 0
    return max(lacking, 0)


@dataclass(frozen=True, slots=True)
class _Bell:
    queue: str

    def __call__(self) -> None:
        hit(f"doorbell.{self.queue}")
        ring(self.queue, enough=ENOUGH_FOR_A_COMMIT)


def ring_on_commit(queue: str) -> None:
    """Ring once the running transaction is committed: once for all of its work, since each ring asks the broker."""
    bell = _Bell(queue)
    if bell not in (entry[1] for entry in connection.run_on_commit):
        transaction.on_commit(bell, robust=True)
