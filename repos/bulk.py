"""Writing many leased rows in one statement, each with values of its own and each under its own fence."""

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import reduce
from typing import Any

from django.db import connection

from repos.leases import RELEASED, Leased


def finish_many(
    rows: Sequence[tuple[Leased, Mapping[str, Any]]],
    *,
    expressions: Mapping[str, str] | None = None,
    extra: Mapping[str, str] | None = None,
    returning: str = "id",
) -> dict[int, Any]:
    """Write each row's columns and give its lease back; of the rows that were still the caller's, by primary key, what the
    column `returning` is now.

    All rows are of one model and give the same columns, of plain types: no JSON. `extra` names values that are no columns,
    each with the column whose type it has; `expressions` gives, for a column, SQL over `t` (the row) and `v` (the values)
    instead of `v`'s value. One statement, `UPDATE … FROM` a list of records.
    """
    if not rows:
        return {}
    model = type(rows[0][0])
    expressions, extra = expressions or {}, extra or {}
    names = list(rows[0][1])
    fields: dict[str, Any] = {"pk": model._meta.pk, "token": model._meta.get_field("lease_token")}
    fields |= {name: model._meta.get_field(extra.get(name, name)) for name in names}
    source, parameters = _records(fields, [(row.pk, row.lease_token, *map(values.get, names)) for row, values in rows])
    sets = {fields[name].column: expressions.get(name, f"v.{name}") for name in names if name not in extra}
    sets |= {
        column: "''" if value == "" else "NULL" if value is None else str(value) for column, value in RELEASED.items()
    }
    wanted: Any = model._meta.get_field(returning)
    # SQLite returns columns of the table alone, and knows no alias there.
    t = "t." if connection.vendor == "postgresql" else ""
    # A planner that knows nothing of a list's length may walk the whole table for it.
    few = ""
    if connection.vendor == "postgresql":
        few, parameters = " AND t.id = ANY(%s)", [*parameters, [row.pk for row, _ in rows]]
    # The names are ours, and every value is a parameter.
    sql = (
        f"WITH v ({', '.join(fields)}) AS ({source}) UPDATE {connection.ops.quote_name(model._meta.db_table)} AS t "
        f"SET {', '.join(f'{column} = {value}' for column, value in sets.items())} "
        f"FROM v WHERE t.id = v.pk AND t.lease_token = v.token{few} RETURNING {t}id, {t}{wanted.column}"
    )
    column = wanted.get_col(model._meta.db_table)
    converters = [*connection.ops.get_db_converters(column), *wanted.get_db_converters(connection)]
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        found = cursor.fetchall()
    return {
        pk: reduce(lambda value, convert: convert(value, column, connection), converters, value) for pk, value in found
    }


def _records(fields: Mapping[str, Any], records: Sequence[tuple[Any, ...]]) -> tuple[str, list[Any]]:
    """A query for `records`, whose values have the types of `fields`, and its parameters."""
    if connection.vendor == "postgresql":
        # One parameter: a statement of thousands takes the client longer than the server.
        types = ", ".join(f"{name} {field.cast_db_type(connection)}" for name, field in fields.items())
        text = json.dumps([dict(zip(fields, record, strict=True)) for record in records], default=_as_text)
        return f"SELECT * FROM json_to_recordset(%s) AS r ({types})", [text]
    line = "(" + ", ".join(["%s"] * len(fields)) + ")"
    prepare = [field.get_db_prep_save for field in fields.values()]
    parameters = [do(value, connection) for record in records for do, value in zip(prepare, record, strict=True)]
    return "VALUES " + ", ".join([line] * len(records)), parameters


def _as_text(value: object) -> str:
    """What JSON has no word for, as PostgreSQL reads it."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no plain type")
