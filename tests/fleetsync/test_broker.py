"""Tasks of one process share its database connection, as long as that is good."""

import time
from typing import Any

import pytest
from celery.fixups import django as celery_fixups
from celery.signals import task_prerun
from django.db import connection

from fleetsync.celery import app


def test_celery_itself_closes_nothing_between_tasks() -> None:
    fixup: Any = celery_fixups
    assert fixup.DjangoWorkerFixup(app).db_reuse_max > 10**9


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("is_too_old", [False, True])
def test_a_task_goes_on_with_a_connection_that_is_not_too_old(is_too_old: bool) -> None:
    connection.ensure_connection()
    before = connection.connection
    connection.close_at = time.monotonic() + (-1 if is_too_old else 60)

    task_prerun.send(sender=None)

    assert (connection.connection is not before) == is_too_old
