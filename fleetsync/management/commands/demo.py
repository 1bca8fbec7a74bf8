"""`manage.py demo`: greets, then shows one repository being followed. `manage.py up` runs it."""

import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from fleetsync import demo


class Command(BaseCommand):
    help = "Waits until the web process is ready, prints how to reach it, and follows two commits to a cluster."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--began", type=float, default=time.monotonic(), help="when the start began, monotonic clock"
        )
        parser.add_argument("--only-greet", action="store_true", help="do not make the repository")

    def handle(self, *_: Any, began: float, only_greet: bool, **__: Any) -> None:
        try:
            api = demo.greet(self.stdout.write)
            if not only_greet:
                demo.show(api, began, self.stdout.write)
        except demo.DemoError as error:
            raise CommandError(f"The demo failed, the service stays up: {error}") from error
