"""The Celery application: how doorbells travel. No state that matters is ever in the broker."""

import os
import signal
from typing import Any

from celery import Celery
from celery.signals import beat_init, setup_logging, task_prerun, worker_init, worker_process_init
from kombu import Exchange, Queue

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fleetsync.settings")
# Celery runs the system checks and ignores what they say; _refuse_to_work_with_errors runs them instead.
os.environ.setdefault("CELERY_SKIP_CHECKS", "1")

QUEUES = ("control", "poll", "sync", "deliver")


def private_queue(name: str) -> Queue:
    """A queue without an exchange of its own: it leaves nothing in the broker but the messages that wait in it."""
    return Queue(name, Exchange("", type="direct"), routing_key=name)


app = Celery("fleetsync")
app.config_from_object("fleetsync.broker")
# By name: Celery imports it in workers alone, after Django's settings.
app.steps["consumer"].add("fleetsync.signs:SignsOfLife")


@setup_logging.connect
def _use_our_logging(**_: Any) -> None:
    """Connected, so that Celery leaves the logging that Django's settings made."""


@worker_process_init.connect
def _begin_child(**_: Any) -> None:
    """A forked child shares no database socket with its parent, and does not outlive it."""
    from django.db import connections

    from fleetsync.supervisor import die_with_parent

    connections.close_all()
    die_with_parent(signal.SIGKILL, os.getppid())


@task_prerun.connect
def _drop_old_connections(**_: Any) -> None:
    """A task goes on with the last one's database connection, unless that is broken, or older than CONN_MAX_AGE."""
    from django.db import close_old_connections

    close_old_connections()


@worker_init.connect
def _refuse_to_work_with_errors(**_: Any) -> None:
    """A worker with a failing system check ends with status 1."""
    from fleetsync.checks import refuse_to_start_with_errors

    refuse_to_start_with_errors(uses_broker=True, uses_git=True)


@beat_init.connect
def _refuse_to_beat_with_errors(**_: Any) -> None:
    """A beat does as well."""
    from fleetsync.checks import refuse_to_start_with_errors

    refuse_to_start_with_errors(uses_broker=True)
