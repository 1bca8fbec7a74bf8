"""One view of the database for many questions, so that rows which change meanwhile never look like a contradiction."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection, transaction

# A question that takes longer than this is given up, on PostgreSQL.
STATEMENT_TIMEOUT_MS = 30_000


@contextmanager
def snapshot() -> Iterator[None]:
    """Inside, everything read is of one instant, and nothing waits for a lock or keeps others waiting.

    In a transaction that runs already, it is that transaction's view.
    """
    if connection.in_atomic_block:
        yield
    elif connection.vendor == "postgresql":
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            cursor.execute(f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MS}")
            yield
    else:
        # Not atomic(), which takes SQLite's write lock at once: a reader needs none.
        with connection.cursor() as cursor:
            cursor.execute("BEGIN DEFERRED")
            try:
                yield
            finally:
                cursor.execute("ROLLBACK")
