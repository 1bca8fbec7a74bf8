"""The one queue: rows that are due, claimed under a lease, and written only by the lease's holder.

A row is work when its due instant has come and nobody holds a live lease on it. An expired lease is no lease: the same
predicate finds the row again, so there is no reaper whose death would matter. Every later write is fenced by the
lease's token, and a write that hits no row means that somebody else owns the work now: the result is dropped.
"""

import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

import structlog
from django.conf import settings
from django.db import connection, connections, models, transaction
from django.db.models import Q

from fleetsync.failpoints import hit
from repos.statements import Written, written

log = structlog.get_logger(__name__)


class Leased(models.Model):
    """The lease columns, and `wait_seconds`: how far ahead the due instant was when it was set."""

    DUE: ClassVar[str] = "due_at"

    lease_token = models.UUIDField(null=True, editable=False)
    lease_until = models.DateTimeField(null=True, editable=False)
    lease_owner = models.CharField(max_length=120, blank=True, default="", editable=False)
    # Claims in a row, before the present one, that ended without a word from the claimer: a poison row shows here.
    crashes = models.PositiveIntegerField(default=0, editable=False)
    # Seconds from the setting of the due instant to that instant. A due instant further from now than this was set by
    # a clock that has jumped since, or by hand, and heals by being due at once.
    wait_seconds = models.FloatField(default=0, editable=False)

    class Meta:
        abstract = True

    @classmethod
    def due_in(cls, now: datetime, seconds: float) -> dict[str, Any]:
        """The column values that make a row due `seconds` after `now`."""
        return {cls.DUE: now + timedelta(seconds=seconds), "wait_seconds": seconds}

    @classmethod
    def not_due(cls) -> dict[str, Any]:
        """The column values of a row with nothing to do."""
        return {cls.DUE: None, "wait_seconds": 0.0}


LeasedModel = TypeVar("LeasedModel", bound=Leased)

# Between two looks at the database's clock, and what it may be corrected by.
LEASE_SLACK_SECONDS = 5.0
# How often a renewer looks whether its process is to stop.
LOOK_SECONDS = 0.5

# Claims in a row that ended without a word, from which on the row is tried alone, so that what dies with it is nobody else.
ON_PROBATION = 2

RELEASED: dict[str, Any] = {"lease_token": None, "lease_until": None, "lease_owner": "", "crashes": 0}


def database_now() -> datetime:
    """The instant by the clock that due and lease columns are compared with: the database's.

    SQLite has no clock but this machine's, which all of its processes share.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT clock_timestamp()")
            now: datetime = cursor.fetchone()[0]
            return now
    return datetime.now(UTC)


def this_process() -> str:
    """Who holds a lease, for people who read the table."""
    return f"{os.uname().nodename}:{os.getpid()}"


def longest_lease_seconds() -> float:
    """The longest that a lease is ever given for, with a little room."""
    return max(settings.POLL_LEASE, settings.JOB_LEASE, settings.DELIVERY_LEASE) + LEASE_SLACK_SECONDS


def leased(now: datetime) -> Q:
    """Rows that somebody holds. A lease further ahead than any is given for was written by a clock that has been set
    back since, or by hand, and is none.
    """
    return Q(lease_until__gt=now, lease_until__lte=now + timedelta(seconds=longest_lease_seconds()))


def unleased(now: datetime) -> Q:
    """Rows that nobody holds."""
    absurd = now + timedelta(seconds=longest_lease_seconds())
    return Q(lease_until__isnull=True) | Q(lease_until__lte=now) | Q(lease_until__gt=absurd)


def claimable(model: type[Leased], now: datetime) -> Q:
    """Rows that are due and that nobody holds: the whole definition of work."""
    return Q(**{f"{model.DUE}__lte": now}) & unleased(now)


def suspect() -> Q:
    """Rows that may be what ends their workers: their last two claims, or more, ended without a word."""
    return Q(crashes__gte=ON_PROBATION) | Q(crashes__gte=ON_PROBATION - 1, lease_until__isnull=False)


def of_suspects(suspects: bool | None) -> Q:
    """None: all rows; True: suspects alone; False: all but suspects."""
    return Q() if suspects is None else suspect() if suspects else ~suspect()


@dataclass(frozen=True, slots=True)
class Where:
    """A condition on due rows whose statement is kept: `build(now, *arguments)`, as for written() in repos/statements.py."""

    build: Callable[..., Q]
    arguments: tuple[Hashable, ...] = ()


def take(
    model: type[LeasedModel],
    chosen: str,
    parameters: Sequence[Any],
    *,
    seconds: float,
    now: datetime,
    extra: Mapping[str, Any] | None = None,
    defer: Collection[str] = (),
) -> list[LeasedModel]:
    """Lease the rows whose keys the query `chosen` answers, which locks them, for `seconds`, with one token for all, and set
    the columns `extra`, in one statement; the rows as they are then, oldest first, without the columns `defer`.

    A lease that is still there was never given back: its holder ended without a word.
    """
    if seconds > longest_lease_seconds():
        raise ValueError("a lease as long as this would count as expired")
    fields: dict[str, Any] = {field.name: field for field in model._meta.concrete_fields}
    quoted = connection.ops.quote_name
    values = {
        "lease_token": uuid.uuid4(),
        "lease_until": now + timedelta(seconds=seconds),
        "lease_owner": this_process(),
        **(extra or {}),
    }
    sets = "".join(f"{quoted(fields[name].column)} = %s, " for name in values)
    columns = ", ".join(quoted(field.column) for name, field in fields.items() if name not in defer)
    # The names are ours, and every value is a parameter. Materialised: locked once, whatever plan is made.
    sql = (
        f"WITH free (pk) AS MATERIALIZED ({chosen}) UPDATE {quoted(model._meta.db_table)} AS t "  # noqa: S608
        f"SET {sets}crashes = t.crashes + CASE WHEN t.lease_until IS NULL THEN 0 ELSE 1 END "
        f"FROM free WHERE t.id = free.pk RETURNING {columns}"
    )
    stored = [fields[name].get_db_prep_save(value, connection) for name, value in values.items()]
    rows = list(model._default_manager.raw(sql, (*parameters, *stored)))
    if rows:
        hit(f"claim.{model._meta.model_name}")
    return sorted(rows, key=lambda row: (getattr(row, model.DUE), row.pk))


def claim(
    model: type[LeasedModel],
    *,
    limit: int,
    seconds: float,
    where: Q | Where | None = None,
    extra: Callable[[datetime], Mapping[str, Any]] | None = None,
    suspects: bool | None = None,
) -> list[LeasedModel]:
    """At most `limit` due rows, oldest first, now leased to the caller for `seconds`.

    `where` narrows the choice and `extra`(now) gives further columns to be set. `suspects`: True claims suspects
    alone (see suspect()), False passes them over, None makes no difference. Rows that another claim has
    locked are passed over (PostgreSQL); on SQLite claims take turns, because every transaction starts with the write
    lock.
    """
    # Without a savepoint: in somebody's transaction, what fails here fails it whole.
    with transaction.atomic(savepoint=False):
        now = database_now()
        asked = (model, suspects, longest_lease_seconds(), limit)
        if isinstance(where, Q):
            chosen, parameters = _due_keys(now, *asked, where)
        else:
            chosen, parameters = written(_due_keys, now, *asked, where)
        return take(model, chosen, parameters, seconds=seconds, now=now, extra=extra(now) if extra else None)


def _due_keys(
    now: datetime, model: type[Leased], suspects: bool | None, _: float, limit: int, where: Q | Where | None
) -> Written:
    if isinstance(where, Where):
        where = where.build(now, *where.arguments)
    rows = model._default_manager.filter(claimable(model, now), of_suspects(suspects), where or Q())
    sql, parameters = rows.order_by(model.DUE, "pk").values_list("pk")[:limit].query.sql_with_params()
    return f"{sql}{lock_free_rows(model)}", tuple(parameters)


def lock_free_rows(model: type[models.Model]) -> str:
    """The end of a query that locks the rows of `model` that it finds, and passes over those that somebody else has locked.
    Of rows that are joined nothing is locked, and nothing passed over.
    """
    if not connection.features.has_select_for_update_skip_locked:
        return ""
    return f" FOR UPDATE OF {connection.ops.quote_name(model._meta.db_table)} SKIP LOCKED"


def held(row: Leased) -> models.QuerySet[Any]:
    """The row, as long as it is still the caller's: what every fenced write goes through."""
    return type(row)._default_manager.filter(pk=row.pk, lease_token=row.lease_token, lease_token__isnull=False)


def finish(row: Leased, **columns: Any) -> bool:
    """Write `columns` and give the lease back. False: the row is no longer the caller's, and nothing was written."""
    return held(row).update(**{**RELEASED, **columns}) == 1


def give_back(row: Leased, **columns: Any) -> bool:
    """Like finish(), for a row that was not tried: what its claims before came to is not forgotten."""
    return finish(row, crashes=row.crashes, **columns)


def give_back_many(rows: Sequence[Leased]) -> None:
    """Like give_back(), for rows of one model: locked in the order of their keys, as by everybody who locks several."""
    by_key = {row.pk: row.lease_token for row in rows}
    released = {name: value for name, value in RELEASED.items() if name != "crashes"}
    if by_key:
        manager = type(rows[0])._default_manager
        with transaction.atomic():
            locked = manager.select_for_update(no_key=True).filter(pk__in=by_key).order_by("pk")
            mine = [pk for pk, token in locked.values_list("pk", "lease_token") if token and token == by_key[pk]]
            manager.filter(pk__in=mine).update(**released)


def renew(row: Leased, seconds: float) -> bool:
    """Prolong the lease of `row` to `seconds` from now. False: the row is no longer the caller's."""
    return held(row).update(lease_until=database_now() + timedelta(seconds=seconds)) == 1


def heal(model: type[Leased], now: datetime, slack_seconds: float = 5.0) -> int:
    """Make rows due whose due instant lies beyond the wait that set it; how many there were.

    A clock that ran ahead and came back leaves such instants behind.
    """
    if connection.vendor == "postgresql":
        beyond = "{due} > %s + make_interval(secs => wait_seconds + %s)"
    else:
        beyond = "(julianday({due}) - julianday(%s)) * 86400 > wait_seconds + %s"
    # A due field's column has its name.
    due = connection.ops.quote_name(model.DUE)
    table = connection.ops.quote_name(model._meta.db_table)
    instant = connection.ops.adapt_datetimefield_value(now)
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE {table} SET {due} = %s, wait_seconds = 0 WHERE {beyond.format(due=due)}",  # noqa: S608 (our names)
            [instant, instant, slack_seconds],
        )
        return int(cursor.rowcount)


class Renewer:
    """Renews leases from a thread of its own while their work runs, each no longer than its own deadline.

    A frozen process renews nothing, which is the point: its leases run out, and its late writes hit no row.

    `drain_seconds` after `stopping` first said so, what still runs is given back, so that nobody waits for the leases of
    a process that is about to be killed to run out; what it still writes hits no row either.
    """

    def __init__(
        self, seconds: float, *, stopping: Callable[[], bool] = lambda: False, drain_seconds: float = 0.0
    ) -> None:
        self.seconds, self.drain_seconds = seconds, drain_seconds
        self._stopping = stopping
        # By row and token: a process that was frozen may hold a row a second time before it lets go of the first.
        self._rows: dict[tuple[type[Leased], int, uuid.UUID | None], tuple[Leased, float]] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-renewer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(timeout=10)

    @contextmanager
    def keeping(self, row: Leased, *, deadline_seconds: float) -> Iterator[None]:
        """Renew `row` for as long as the block runs, and never beyond `deadline_seconds`."""
        key = (type(row), row.pk, row.lease_token)
        with self._lock:
            self._rows[key] = (row, time.monotonic() + deadline_seconds)
        try:
            yield
        finally:
            with self._lock:
                self._rows.pop(key, None)

    def _run(self) -> None:
        renew_at = time.monotonic() + self.seconds / 3
        give_up_at: float | None = None
        try:
            while not self._over.wait(min(LOOK_SECONDS, self.seconds / 3)):
                now = time.monotonic()
                if give_up_at is None and self._stopping():
                    give_up_at = now + self.drain_seconds
                if give_up_at is not None and now >= give_up_at:
                    self._each(now, give_back, "given back")
                    return
                if now >= renew_at:
                    renew_at = now + self.seconds / 3
                    self._each(now, lambda row: renew(row, self.seconds), "renewed")
        finally:
            connections.close_all()

    def _each(self, now: float, act: Callable[[Leased], bool], done: str) -> None:
        """Do `act` with every row that is being worked on. With the database away their leases run out."""
        with self._lock:
            rows = [row for row, deadline in self._rows.values() if now < deadline]
        try:
            for row in rows:
                act(row)
        except Exception as error:  # noqa: BLE001  (whatever a database's driver raises)
            log.warning("leases could not be written", meant=done, rows=len(rows), error=str(error)[:200])
            connections.close_all()
