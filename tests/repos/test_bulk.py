"""Many rows in one statement, each under its own fence and with values of its own."""

import uuid
from datetime import UTC, datetime

import pytest

from repos.bulk import finish_many
from repos.leases import claim
from repos.models import Chore
from tests.core import expire, fresh, later


def claimed(count: int) -> list[Chore]:
    Chore.objects.bulk_create(Chore(name=str(number), due_at=later(-5)) for number in range(count))
    return claim(Chore, limit=count, seconds=30)


@pytest.mark.django_db
def test_each_row_gets_its_own_values_and_gives_its_lease_back() -> None:
    rows = claimed(3)
    at = datetime(2031, 5, 6, 7, 8, 9, 123456, UTC)

    mine = finish_many([(row, {"rounds": 10 + row.pk, "due_at": at}) for row in rows])

    assert mine == {row.pk: row.pk for row in rows}
    for row in rows:
        stored = fresh(row)
        assert (stored.rounds, stored.due_at, stored.lease_token) == (10 + row.pk, at, None)
        assert (stored.lease_until, stored.lease_owner, stored.crashes) == (None, "", 0)


@pytest.mark.django_db
def test_a_row_that_was_lost_is_left_alone_and_named_by_nobody() -> None:
    lost, kept = claimed(2)
    expire(lost)
    [other] = claim(Chore, limit=1, seconds=30)

    mine = finish_many([(row, {"rounds": 99}) for row in (lost, kept)])

    assert mine == {kept.pk: kept.pk}
    assert (fresh(other).rounds, fresh(other).lease_token) == (0, other.lease_token)
    assert fresh(kept).rounds == 99


@pytest.mark.django_db
def test_a_row_of_another_token_is_left_alone() -> None:
    [row] = claimed(1)
    row.lease_token = uuid.uuid4()

    assert finish_many([(row, {"rounds": 1})]) == {}


@pytest.mark.django_db
def test_null_is_a_value() -> None:
    [row] = claimed(1)

    finish_many([(row, {"due_at": None})])

    assert fresh(row).due_at is None


@pytest.mark.django_db
def test_expressions_see_the_row_as_it_is_and_the_extra_values() -> None:
    rows = claimed(2)
    Chore.objects.filter(pk=rows[0].pk).update(rounds=5)

    late = later(9)

    mine = finish_many(
        [(row, {"cursor": 1, "seen": 0, "late": late, "due_at": None}) for row in rows],
        expressions={"due_at": "CASE WHEN t.rounds <> v.seen THEN v.late ELSE v.due_at END"},
        extra={"seen": "rounds", "late": "due_at"},
        returning="due_at",
    )

    assert mine == {rows[0].pk: late, rows[1].pk: None}
    assert fresh(rows[0]).due_at == late
    assert fresh(rows[1]).due_at is None
    assert fresh(rows[1]).cursor == 1


@pytest.mark.django_db
def test_nothing_is_nothing() -> None:
    assert finish_many([]) == {}


@pytest.mark.django_db
@pytest.mark.parametrize("text", ["it's", '"\\"', "%s %%", "a\nb\tc", "ünï ☃ 🦆", "{}", ""])
def test_a_text_is_stored_as_it_is(text: str) -> None:
    [row] = claimed(1)

    finish_many([(row, {"name": text})])

    assert fresh(row).name == text
