"""Threads of a session and their connections."""

import threading
import time
from concurrent.futures import wait

import pytest
from django.db import connection, connections

from workers.deliver.crew import Crew

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_thread_keeps_its_connection_until_the_block_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    # As on PostgreSQL; those of SQLite cost nothing and live for one work.
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 60)
    seen: list[object] = []

    def work() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        seen.append(connections["default"].connection)

    with Crew(2, "crew") as crew:
        for _ in range(3):
            wait([crew.submit(work)])
        kept = seen[0]
        assert kept is not None and all(one is kept for one in seen)
    with pytest.raises(Exception, match="closed"):
        kept.execute("SELECT 1")  # type: ignore[attr-defined]


def test_no_more_threads_than_there_is_work() -> None:
    names: list[str] = []
    gate = threading.Barrier(3)

    def together() -> None:
        names.append(threading.current_thread().name)
        gate.wait(10)

    with Crew(5, "crew") as crew:
        for _ in range(2):
            wait([crew.submit(together) for _ in range(3)])
            time.sleep(0.05)
    assert len(set(names)) == 3


def test_an_error_is_the_futures_and_ends_nothing() -> None:
    def fails() -> None:
        raise ValueError("no")

    with Crew(1, "crew") as crew:
        failed, fine = crew.submit(fails), crew.submit(lambda: None)
        assert isinstance(failed.exception(10), ValueError)
        assert fine.exception(10) is None


def test_work_that_was_handed_over_is_done_before_the_block_ends() -> None:
    done: list[int] = []

    def slow() -> None:
        time.sleep(0.1)
        done.append(1)

    with Crew(1, "crew") as crew:
        for _ in range(3):
            crew.submit(slow)
    assert len(done) == 3
