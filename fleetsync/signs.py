"""A worker's signs of life for its watchdog (fleetsync/watchdog.py), given from the event loop that takes messages."""

import itertools
import os
from typing import Any

import structlog
from celery import bootsteps
from celery.worker import state
from django.conf import settings

from fleetsync.failpoints import FailpointError, hit
from fleetsync.watchdog import VARIABLE, Sign, look_every, write_sign

log = structlog.get_logger(__name__)

_beats = itertools.count(1)


class SignsOfLife(bootsteps.StartStopStep):
    """Begins with each connection to the broker, and pauses while there is none. Absent without a watchdog."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **_: Any) -> None:  # noqa: ARG002 - as in the base
        self.descriptor = int(os.environ.get(VARIABLE, "-1"))
        self.enabled = self.descriptor >= 0
        self.timer: Any = None

    def start(self, consumer: Any) -> None:
        self._give(consumer)
        self.timer = consumer.timer.call_repeatedly(look_every(settings.WATCHDOG), self._give, (consumer,))

    def stop(self, consumer: Any) -> None:  # noqa: ARG002 - as in the base
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _give(self, consumer: Any) -> None:
        try:
            hit("worker.deaf", " ".join(queue.name for queue in consumer.task_consumer.queues))
        except FailpointError:
            consumer.task_consumer.cancel()
            log.warning("this worker takes no messages from now on: a failpoint was hit")
        write_sign(
            self.descriptor,
            Sign(os.getpid(), next(_beats), state.all_total_count[0], len(state.active_requests)),
        )
