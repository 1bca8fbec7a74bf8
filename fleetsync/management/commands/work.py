"""`manage.py work`: a Celery worker for each of WORKER_QUEUES, supervised. What a worker container runs."""

import time
from typing import Any

from django.core.management.base import BaseCommand

from fleetsync import processes
from fleetsync.alive import show_alive
from fleetsync.supervisor import Supervisor
from fleetsync.watchdog import Watchdog


class Command(BaseCommand):
    help = "Runs a worker for each queue in WORKER_QUEUES until SIGTERM or Ctrl-C."

    def handle(self, *_: Any, **__: Any) -> None:
        due = 0.0

        def heartbeat() -> None:
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + 5.0
                show_alive("work")

        supervisor = Supervisor(heartbeat)
        watchdog = Watchdog(supervisor)
        try:
            for child in processes.workers():
                watchdog.add(child)
        finally:
            supervisor.run()
