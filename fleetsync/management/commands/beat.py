"""`manage.py beat`: becomes the beat process that fleetsync/processes.py describes, after the system
checks.
"""

import os
from typing import Any

from django.core.management.base import BaseCommand

from fleetsync import processes


class Command(BaseCommand):
    help = "Runs the scheduler (celery beat)."

    def handle(self, *_: Any, **__: Any) -> None:
        command = processes.beat()
        os.execv(command[0], command)  # noqa: S606 - a fixed list; no shell
