"""`manage.py up`: everything on one machine, without Docker and without root. What `make run` becomes."""

import errno
import fcntl
import os
import secrets
import signal
import socket
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import redis
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from fleetsync import processes
from fleetsync.redis import redis_client
from fleetsync.supervisor import Child, Supervisor, die_with_parent
from fleetsync.watchdog import Watchdog

ADMIN = "admin"
REDIS_TIMEOUT = 30.0


class Command(BaseCommand):
    help = "Starts Redis, migrates, starts web, beat and workers, and shows a demo; until Ctrl-C or SIGTERM."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--no-demo", action="store_true", help="do not make and follow the demo repository")
        parser.add_argument(
            "--with-parent", action="store_true", help="stop when the process that started this one ends"
        )

    def handle(self, *_: Any, no_demo: bool, with_parent: bool, **__: Any) -> None:
        began = time.monotonic()
        if with_parent:
            die_with_parent(signal.SIGTERM, os.getppid())
        make_folders()
        lock = lock_data_folder()
        check_port(settings.WEB_ADDRESS, settings.PORT)
        # The demo's repository is a folder below this one; unless the environment allows others, or none.
        os.environ.setdefault("GIT_FILE_ROOT", str(settings.DATA_DIR))
        supervisor = Supervisor()
        watchdog = Watchdog(supervisor)
        try:
            if self.start_redis(supervisor):
                supervisor.say("migrating the database")
                call_command("migrate", interactive=False, verbosity=0)
                make_admin()
                # The children open their own; this process needs none from here on.
                connections.close_all()
                for child in processes.services():
                    (watchdog if child.name in settings.WORKER_QUEUES else supervisor).add(child)
                arguments = ["--began", str(began), *(["--only-greet"] if no_demo else [])]
                supervisor.add(Child("demo", processes.manage("demo", *arguments), grace=1, restart=False))
                supervisor.run()
        finally:
            supervisor.stop()
            os.close(lock)

    def start_redis(self, supervisor: Supervisor) -> bool:
        """Starts Redis unless REDIS_URL is another's; True when it answers, False if asked to stop."""
        own_socket = settings.DATA_DIR / "redis.sock"
        own_url = f"redis+socket://{own_socket}"
        if own_url == settings.REDIS_URL:
            try:
                supervisor.add(processes.redis(own_socket, settings.DATA_DIR / "redis"))
            except FileNotFoundError as error:
                raise CommandError(f"{error}. Install one, or set REDIS_URL to a Redis that runs.") from error
        if supervisor.run_until(redis_answers, REDIS_TIMEOUT):
            return True
        if supervisor.asked_to_stop:
            return False
        raise CommandError(
            f"Redis does not answer within {REDIS_TIMEOUT:g} s. Its own lines above say why; "
            "if REDIS_URL is set, see that the address and the password are right."
        )


def make_folders() -> None:
    """The data folder and what is below it, closed to other users: the broker's socket lies there."""
    for folder in (settings.DATA_DIR, settings.DATA_DIR / "run", settings.DATA_DIR / "redis"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def lock_data_folder() -> int:
    """A descriptor that holds the data folder for this process. Raises CommandError if another one has it."""
    descriptor = os.open(settings.DATA_DIR / "run" / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise CommandError(
            f"fleetsync runs already on the data folder {settings.DATA_DIR}. "
            "Stop it, or set DATA_DIR to another folder."
        ) from error
    return descriptor


def check_port(address: str, port: int) -> None:
    """Raises CommandError if nobody could listen at `address`:`port` now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As gunicorn does, so that connections of the last run that are not forgotten yet do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.strip("[]"), port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise CommandError(
                    f"Port {port} is in use. Stop what listens there, or set PORT to another."
                ) from error
            raise CommandError(
                f"Cannot listen at {address}:{port}: {error.strerror}. Set PORT or WEB_ADDRESS."
            ) from error


def redis_answers() -> bool:
    try:
        return bool(redis_client().ping())
    except redis.RedisError:
        return False


def make_admin() -> None:
    """The user `admin` and an API token, once. The password is random, in a file that is ours alone."""
    from rest_framework.authtoken.models import Token

    path: Path = settings.DATA_DIR / "admin_password"
    users = get_user_model().objects
    user = users.filter(username=ADMIN).first()
    if user is None:
        # Whole before it is in the database: a password that nobody knows helps nobody.
        if not path.exists():
            draft = path.with_suffix(".new")
            draft.unlink(missing_ok=True)
            draft.touch(mode=0o600)
            draft.write_text(secrets.token_urlsafe(18))
            draft.replace(path)
        user = users.create_superuser(username=ADMIN, email="", password=path.read_text().strip())
    Token.objects.get_or_create(user=user)
