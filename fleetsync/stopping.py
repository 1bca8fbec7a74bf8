"""Tells the children of a worker that it is about to stop, so that a session claims no more.

Celery tells its prefork children nothing on SIGTERM: they work on until they are done or killed. One byte of
memory that parent and children share is enough to say it, and costs nothing to ask.
"""

import mmap
from typing import Any

from celery.signals import worker_shutting_down
from django.conf import settings

# Anonymous and shared: made before the fork, seen on both sides of it.
_flag = mmap.mmap(-1, 1)


def stopping() -> bool:
    """True once the worker that this process belongs to was asked to stop."""
    return _flag[0] != 0


def drain_seconds() -> float:
    """How long what is running may go on after that before its leases are given back, well before it is killed."""
    return float(settings.STOP_GRACE) / 2


@worker_shutting_down.connect
def _announce(**_: Any) -> None:
    _flag[0] = 1
