"""Statements that are asked several times a second: written by the ORM once, and kept.

Django takes longer to write a statement than PostgreSQL takes to run one of ours. What differs from time to time are the
instants in it, all of them so many seconds from now.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ParamSpec, TypeVar

from django.db import connection, models

P = ParamSpec("P")
T = TypeVar("T")
Written = tuple[str, tuple[Any, ...]]
# The instant for which statements are written.
THEN = datetime(2000, 1, 1, tzinfo=UTC)
# The longest list that a statement is given as one parameter for each member: PostgreSQL takes 65,535 in a statement.
PAGE = 500


@lru_cache(maxsize=256)
def _kept(write: Callable[..., Written], arguments: tuple[Any, ...]) -> Written:
    return write(THEN, *arguments)


def written(write: Callable[..., Written], now: datetime, *arguments: Any) -> Written:
    """The SQL and the parameters that `write(now, *arguments)` gives: arguments that can be compared, and all that it
    depends on but `now`.
    """
    if connection.vendor != "postgresql":
        return write(now, *arguments)
    sql, parameters = _kept(write, arguments)
    since = now - THEN
    return sql, tuple(p + since if isinstance(p, datetime) else p for p in parameters)


def _select(now: datetime, build: Callable[..., "models.QuerySet[Any, Any]"], *arguments: Any) -> Written:
    sql, parameters = build(now, *arguments).query.sql_with_params()
    return sql, tuple(parameters)


def rows_of(build: Callable[..., "models.QuerySet[Any, Any]"], now: datetime, *arguments: Any) -> list[Any]:
    """What the query `build(now, *arguments)` finds: a values_list() of numbers and texts. See written()."""
    sql, parameters = written(_select, now, build, *arguments)
    return fetched(sql, parameters)


def fetched(sql: str, parameters: Sequence[Any]) -> list[Any]:
    """The rows of one statement."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall())


def rounded_up(count: int) -> int:
    """The next power of two: a limit that is never twice the same would have its statement written each time."""
    return 1 << max(0, count - 1).bit_length()


def in_pages(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """`rows` in their order, so many at a time as a statement may be given."""
    return (rows[first : first + PAGE] for first in range(0, len(rows), PAGE))


def among(keys: Collection[int]) -> Written:
    """The end of a condition that a column is one of `keys`."""
    if connection.vendor == "postgresql":
        return "= ANY(%s)", (list(keys),)
    return f"IN ({', '.join(['%s'] * len(keys))})", tuple(keys)


def lock_in_order(model: type[models.Model], keys: Collection[int]) -> None:
    """Lock these rows, without their keys, in the order of their primary keys, as everybody who locks several of them."""
    if connection.vendor != "postgresql" or not keys:
        return  # SQLite's transactions begin with the lock of everything.
    table = connection.ops.quote_name(model._meta.db_table)
    condition, parameters = among(keys)
    fetched(f"SELECT 1 FROM {table} WHERE id {condition} ORDER BY id FOR NO KEY UPDATE", parameters)  # noqa: S608 (our names)
