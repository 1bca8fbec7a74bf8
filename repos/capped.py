"""Claims of which no group gets more than its part: no host more polls, no cluster more deliveries, over all workers.

Asked several times a second by each process, so that their statements are few, and kept (repos/statements.py).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from django.db import connection, models, transaction
from django.db.models import Case, Count, F, Value, When, Window, prefetch_related_objects
from django.db.models.functions import RowNumber

from fleetsync.failpoints import hit
from repos.leases import (
    Leased,
    LeasedModel,
    claimable,
    database_now,
    leased,
    lock_free_rows,
    longest_lease_seconds,
    of_suspects,
    take,
)
from repos.statements import Written, among, lock_in_order, rounded_up, rows_of, written

# How many times as many due rows as are wanted are looked at before all of them are.
OLDEST_LOOKED_AT = 4


def claim_capped(
    model: type[LeasedModel],
    *,
    group: str,
    cap: int,
    limit: int,
    seconds: float,
    defer: Sequence[str] = (),
    related: Sequence[str] = (),
    single: Iterable[int] = (),
    suspects: bool | None = None,
) -> tuple[list[LeasedModel], datetime]:
    """Like claim() in repos/leases.py, with at most `cap` live leases for each row that the foreign key `group` names, one
    for those whose keys are in `single`; and the instant.

    Candidates are ranked within their group, so that a group that answers nothing never fills a batch. The groups' rows
    are locked while their live leases are counted, which is what makes the cap true over all workers; without their
    keys, so that rows which refer to a group can be made meanwhile. `related` rows are read after the claim: a join
    that had to wait for a lock would pair the row as it is now with its relations as they were.
    """
    groups = model._meta.get_field(group).related_model
    assert isinstance(groups, type)  # noqa: S101 (for mypy: `group` names a foreign key)
    with transaction.atomic():
        now = database_now()
        ones = frozenset(single)
        candidates = _candidates(model, group, now, live_leases(model, group, now), cap, ones, limit, suspects)
        if not candidates:
            return [], now
        hit(f"chosen.{model._meta.model_name}")
        lock_in_order(groups, {key for _, key in candidates})
        now = database_now()
        chosen = within_cap(candidates, live_leases(model, group, now), cap, ones)
        found = _take_if_due(model, chosen, suspects=suspects, seconds=seconds, now=now, defer=defer) if chosen else []
        # Django takes its time to find out that there is nothing to read.
        prefetch_related_objects(found, *(name for name in related if any(getattr(row, f"{name}_id") for row in found)))
    return found, now


def _due(now: datetime, model: type[Leased], suspects: bool | None, _: float) -> models.QuerySet[Any]:
    return model._default_manager.filter(claimable(model, now), of_suspects(suspects))


def _oldest(
    now: datetime,
    model: type[Leased],
    suspects: bool | None,
    longest: float,
    group: str,
    full: Collection[int],
    most: int,
) -> models.QuerySet[Any, Any]:
    due = _due(now, model, suspects, longest).exclude(**{f"{group}__in": full})
    return due.order_by(model.DUE, "pk").values_list("pk", f"{group}_id")[:most]


def _candidates(
    model: type[Leased],
    group: str,
    now: datetime,
    live: Mapping[int, int],
    cap: int,
    ones: Collection[int],
    limit: int,
    suspects: bool | None,
) -> list[tuple[int, int]]:
    """At most `limit` (key, group) of the due rows that leave each group within its cap, oldest first.

    The oldest few say it nearly always. Only where they are all of groups that have enough is every due row ranked,
    which takes as long as there are many.
    """
    full = tuple(sorted(key for key, count in live.items() if count >= (1 if key in ones else cap)))
    most = OLDEST_LOOKED_AT * rounded_up(limit)
    longest = longest_lease_seconds()
    oldest = rows_of(_oldest, now, model, suspects, longest, group, full, most)
    within = set(within_cap(oldest, live, cap, ones))
    candidates = [(key, owner) for key, owner in oldest if key in within][:limit]
    if len(candidates) == limit or len(oldest) < most:
        return candidates
    places = Case(When(**{f"{group}__in": ones}, then=1), default=cap) if ones else Value(cap)
    rank = Window(RowNumber(), partition_by=F(group), order_by=[F(model.DUE), F("pk")])
    due = _due(now, model, suspects, longest).exclude(**{f"{group}__in": full})
    ranked = due.annotate(rank=rank).filter(rank__lte=places).order_by(model.DUE, "pk")
    return list(ranked.values_list("pk", f"{group}_id")[:limit])


def _due_condition(now: datetime, model: type[Leased], suspects: bool | None, longest: float) -> Written:
    query = _due(now, model, suspects, longest).query
    sql, parameters = query.where.as_sql(query.get_compiler(connection=connection), connection)
    return sql, tuple(parameters)


def _take_if_due(
    model: type[LeasedModel],
    keys: Sequence[int],
    *,
    suspects: bool | None,
    seconds: float,
    now: datetime,
    defer: Sequence[str],
) -> list[LeasedModel]:
    """Lease those of the rows `keys` that are still due. Rows that somebody else has locked are passed over."""
    due, due_parameters = written(_due_condition, now, model, suspects, longest_lease_seconds())
    chosen, keys_parameters = among(keys)
    table = connection.ops.quote_name(model._meta.db_table)
    # The names are ours, and every value is a parameter.
    query = f"SELECT id FROM {table} WHERE id {chosen} AND {due} ORDER BY id{lock_free_rows(model)}"  # noqa: S608
    return take(model, query, (*keys_parameters, *due_parameters), seconds=seconds, now=now, defer=defer)


def _live(now: datetime, model: type[Leased], group: str, _: float) -> models.QuerySet[Any, Any]:
    return model._default_manager.filter(leased(now)).order_by().values_list(f"{group}_id").annotate(live=Count("pk"))


def live_leases(model: type[Leased], group: str, now: datetime) -> Counter[int]:
    """How many rows are held, for each key of the foreign key `group`."""
    rows = rows_of(_live, now, model, group, longest_lease_seconds())
    return Counter(dict(rows))


def within_cap(
    candidates: Sequence[tuple[int, int]], live: Mapping[int, int], cap: int, single: Collection[int] = ()
) -> list[int]:
    """The keys of those (key, group) candidates that leave every group within `cap`, or within 1 if it is `single`. Pure."""
    used = Counter(live)
    chosen = []
    for key, group in candidates:
        if used[group] < (1 if group in single else cap):
            used[group] += 1
            chosen.append(key)
    return chosen
