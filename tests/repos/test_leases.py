"""The one queue: each row is claimed by one, written by its holder alone, and never lost."""

import os
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repos.capped import OLDEST_LOOKED_AT, claim_capped, live_leases, within_cap
from repos.leases import claim, claimable, database_now, finish, give_back, heal, longest_lease_seconds, renew, suspect
from repos.models import Chore, Delivery, Host, Remote
from tests.core import cluster, expire, fresh, later, register, synced


def chore(name: str = "one", **columns: object) -> Chore:
    return Chore.objects.create(name=name, **{"due_at": later(-1), **columns})


def take_one() -> Chore:
    [row] = claim(Chore, limit=1, seconds=30)
    return row


def remotes(count: int, *, hosts: int = 1) -> None:
    """`count` due Remotes, dealt to `hosts` hosts in turn."""
    made = [Host.objects.create(name=f"git{number}.example.com", port=443) for number in range(hosts)]
    Remote.objects.bulk_create(
        Remote(
            identity=f"{number}", url=f"https://x/{number}", host=made[number % hosts], **Remote.due_in(later(-5), 0)
        )
        for number in range(count)
    )


# -- claiming ------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_due_row_is_claimed_once() -> None:
    chore()

    row = take_one()

    assert claim(Chore, limit=1, seconds=30) == []
    stored = fresh(row)
    assert stored.lease_token == row.lease_token is not None
    assert 25 < (stored.lease_until - database_now()).total_seconds() <= 30
    assert stored.lease_owner == f"{os.uname().nodename}:{os.getpid()}"
    assert (stored.crashes, row.crashes) == (0, 0)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("due_seconds", "lease_seconds", "is_claimed"),
    [
        pytest.param(-1, None, True, id="due"),
        pytest.param(60, None, False, id="not yet due"),
        pytest.param(None, None, False, id="nothing to do"),
        pytest.param(-1, 20, False, id="held"),
        pytest.param(-1, -1, True, id="a lease that ran out"),
        pytest.param(-1, 3600, True, id="a lease that no clock of ours could have given"),
        pytest.param(60, -1, False, id="ran out but not due"),
    ],
)
def test_what_is_claimable(due_seconds: float | None, lease_seconds: float | None, is_claimed: bool) -> None:
    row = chore(
        due_at=None if due_seconds is None else later(due_seconds),
        lease_until=None if lease_seconds is None else later(lease_seconds),
        lease_token=None if lease_seconds is None else uuid.uuid4(),
    )

    assert Chore.objects.filter(claimable(Chore, database_now())).exists() == is_claimed
    assert claim(Chore, limit=5, seconds=30) == ([row] if is_claimed else [])


@pytest.mark.django_db
def test_the_oldest_go_first_and_no_more_than_asked_for() -> None:
    for name, seconds in (("young", -1), ("old", -30), ("middle", -10)):
        chore(name, due_at=later(seconds))

    assert [row.name for row in claim(Chore, limit=2, seconds=30)] == ["old", "middle"]


@pytest.mark.django_db
def test_extra_columns_are_set_with_the_claim() -> None:
    chore()

    [row] = claim(Chore, limit=1, seconds=30, extra=lambda _: {"rounds": 7})

    assert (row.rounds, fresh(row).rounds) == (7, 7)


@pytest.mark.django_db
def test_a_lease_that_would_count_as_expired_at_once_is_not_given() -> None:
    chore()

    with pytest.raises(ValueError, match="lease"):
        claim(Chore, limit=1, seconds=longest_lease_seconds() + 1)


# -- the fence -----------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_the_holder_writes_and_gives_back() -> None:
    chore()
    row = take_one()

    assert finish(row, rounds=3, **Chore.not_due())

    stored = fresh(row)
    assert (stored.rounds, stored.due_at, stored.lease_token, stored.lease_until) == (3, None, None, None)
    assert (stored.lease_owner, stored.crashes) == ("", 0)


@pytest.mark.django_db
def test_nobody_writes_what_somebody_else_holds() -> None:
    chore()
    frozen = take_one()
    expire(frozen)
    other = take_one()

    assert not finish(frozen, rounds=99)
    assert not renew(frozen, 30)

    stored = fresh(other)
    assert (stored.rounds, stored.lease_token) == (0, other.lease_token)


@pytest.mark.django_db
def test_a_result_is_written_once() -> None:
    chore()
    row = take_one()
    assert finish(row, rounds=1)

    assert not finish(row, rounds=2)

    assert fresh(row).rounds == 1


@pytest.mark.django_db
def test_a_row_that_was_never_claimed_is_written_by_nobody() -> None:
    row = chore()

    assert not finish(row, rounds=1)


@pytest.mark.django_db
def test_a_late_holder_still_writes_while_nobody_took_over() -> None:
    chore()
    row = take_one()
    expire(row)

    assert finish(row, rounds=1)


@pytest.mark.django_db
def test_renewing_prolongs() -> None:
    chore()
    row = take_one()
    expire(row)

    assert renew(row, 30)

    assert claim(Chore, limit=1, seconds=30) == []


@pytest.mark.django_db
def test_claims_that_end_without_a_word_are_counted() -> None:
    chore()
    for crashes in range(3):
        row = take_one()
        assert row.crashes == fresh(row).crashes == crashes
        expire(row)

    assert finish(take_one())

    assert take_one().crashes == 0


# -- probation -----------------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("crashes", "lease_seconds", "is_suspect"),
    [
        pytest.param(0, None, False, id="never claimed"),
        pytest.param(0, -1, False, id="died once"),
        pytest.param(1, -1, True, id="died twice"),
        pytest.param(1, None, False, id="died once, then given back untried"),
        pytest.param(2, None, True, id="died twice, then given back untried"),
        pytest.param(5, -1, True, id="died often"),
        pytest.param(1, 3600, True, id="a lease that no clock of ours could have given"),
    ],
)
def test_who_is_tried_alone(crashes: int, lease_seconds: float | None, is_suspect: bool) -> None:
    until = None if lease_seconds is None else later(lease_seconds)
    row = chore(crashes=crashes, lease_until=until, lease_token=None if until is None else uuid.uuid4())

    assert Chore.objects.filter(suspect()).exists() == is_suspect
    assert claim(Chore, limit=5, seconds=30, suspects=not is_suspect) == []
    assert claim(Chore, limit=5, seconds=30, suspects=is_suspect) == [row]


@pytest.mark.django_db
def test_one_that_is_held_is_nobodys_suspect() -> None:
    chore(crashes=4, lease_until=later(20), lease_token=uuid.uuid4())

    assert claim(Chore, limit=5, seconds=30, suspects=True) == []


@pytest.mark.django_db
def test_capped_claims_pass_suspects_over_too() -> None:
    remotes(5)
    Remote.objects.filter(identity__in="13").update(crashes=1, lease_until=later(-1), lease_token=uuid.uuid4())

    ordinary, _ = claim_capped(Remote, group="host", cap=9, limit=9, seconds=30, suspects=False)
    suspects, _ = claim_capped(Remote, group="host", cap=9, limit=9, seconds=30, suspects=True)

    assert sorted(row.identity for row in ordinary) == ["0", "2", "4"]
    assert sorted((row.identity, row.crashes) for row in suspects) == [("1", 2), ("3", 2)]


@pytest.mark.django_db
def test_what_is_given_back_untried_keeps_its_past() -> None:
    chore()
    for _ in range(2):
        expire(take_one())
    row = take_one()

    assert give_back(row)
    assert (fresh(row).crashes, fresh(row).lease_until) == (2, None)
    [again] = claim(Chore, limit=1, seconds=30, suspects=True)
    assert again.crashes == 2
    assert finish(again)
    assert claim(Chore, limit=1, seconds=30, suspects=True) == []


# -- clocks --------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("due_seconds", "wait_seconds", "is_healed"),
    [
        pytest.param(15, 15, False, id="just set"),
        pytest.param(18, 15, False, id="within the slack"),
        pytest.param(30, 15, True, id="further away than it was set"),
        pytest.param(86400 * 365, 15, True, id="set by a clock a year ahead"),
        pytest.param(3600, 3600, False, id="a long wait that was meant"),
        pytest.param(-100, 15, False, id="overdue"),
    ],
)
def test_an_instant_beyond_its_own_horizon_is_due(due_seconds: float, wait_seconds: float, is_healed: bool) -> None:
    row = chore(due_at=later(due_seconds), wait_seconds=wait_seconds)
    nothing = chore("nothing", due_at=None)

    assert heal(Chore, database_now()) == int(is_healed)

    stored = fresh(row)
    assert (stored.due_at <= database_now()) == (is_healed or due_seconds < 0)
    assert fresh(nothing).due_at is None


@pytest.mark.django_db
def test_the_clock_is_the_databases() -> None:
    assert abs(database_now() - datetime.now(UTC)) < timedelta(seconds=5)
    first = database_now()
    assert database_now() > first  # not frozen at the start of the transaction


# -- the cap -------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_no_host_gets_more_than_its_cap() -> None:
    remotes(20, hosts=2)

    rows, _ = claim_capped(Remote, group="host", cap=3, limit=50, seconds=30)

    assert Counter(row.host_id for row in rows) == dict.fromkeys(Host.objects.values_list("pk", flat=True), 3)
    assert claim_capped(Remote, group="host", cap=3, limit=50, seconds=30)[0] == []
    assert claim_capped(Remote, group="host", cap=4, limit=50, seconds=30)[0] != []


@pytest.mark.django_db
def test_a_full_host_takes_no_place_in_the_batch() -> None:
    remotes(30, hosts=1)
    claim_capped(Remote, group="host", cap=5, limit=5, seconds=30)
    other = Host.objects.create(name="other.example.com", port=443)
    Remote.objects.create(identity="y", url="https://y", host=other, **Remote.due_in(later(-1), 0))

    rows, _ = claim_capped(Remote, group="host", cap=5, limit=5, seconds=30)

    assert [row.host_id for row in rows] == [other.pk]


@pytest.mark.django_db
def test_a_silent_host_never_fills_a_batch() -> None:
    """Its rows are the oldest by far, and there are more of them than the batch takes."""
    remotes(60, hosts=1)
    Remote.objects.update(**Remote.due_in(later(-1000), 0))
    other = Host.objects.create(name="other.example.com", port=443)
    Remote.objects.create(identity="y", url="https://y", host=other, **Remote.due_in(later(-1), 0))

    rows, _ = claim_capped(Remote, group="host", cap=20, limit=50, seconds=30)

    assert other.pk in {row.host_id for row in rows}


@pytest.mark.django_db
def test_more_silent_rows_than_are_looked_at_first_fill_no_batch_either() -> None:
    remotes(OLDEST_LOOKED_AT * 4 + 1, hosts=1)
    Remote.objects.update(**Remote.due_in(later(-1000), 0))
    other = Host.objects.create(name="other.example.com", port=443)
    Remote.objects.create(identity="y", url="https://y", host=other, **Remote.due_in(later(-1), 0))

    rows, _ = claim_capped(Remote, group="host", cap=2, limit=4, seconds=30)

    assert Counter(row.host_id == other.pk for row in rows) == {False: 2, True: 1}


@pytest.mark.django_db
def test_rows_are_claimed_as_they_are_and_oldest_first() -> None:
    remotes(3)
    for seconds, identity in ((-1, "0"), (-3, "1"), (-2, "2")):
        Remote.objects.filter(identity=identity).update(**Remote.due_in(later(seconds - 7), 7))

    rows, now = claim_capped(Remote, group="host", cap=9, limit=9, seconds=30, defer=("refs",))

    assert [row.identity for row in rows] == ["1", "2", "0"]
    for row in rows:
        stored = fresh(row)
        assert (row.lease_token, row.lease_until, row.wait_seconds) == (
            stored.lease_token,
            now + timedelta(seconds=30),
            7,
        )
        assert row.next_poll_at == stored.next_poll_at and row.get_deferred_fields() == {"refs"}


@pytest.mark.django_db
def test_leases_that_count_as_expired_fill_no_cap() -> None:
    """A clock that ran ahead leaves leases behind that nobody has: they must not shut the host."""
    remotes(4)
    Remote.objects.filter(identity__in="12").update(lease_until=later(86400), lease_token=uuid.uuid4())

    assert live_leases(Remote, "host", database_now()) == {}
    assert len(claim_capped(Remote, group="host", cap=2, limit=9, seconds=30)[0]) == 2


@pytest.mark.django_db
def test_a_claim_reads_what_was_asked_for_with_the_rows() -> None:
    gitrepo = register()
    revision = synced(gitrepo)
    Delivery.objects.create(
        gitrepo=gitrepo, cluster=cluster(), wanted_revision=revision, wanted_bundle=revision.bundle, due_at=later(-1)
    )

    [row], _ = claim_capped(Delivery, group="cluster", cap=1, limit=1, seconds=30, related=("gitrepo", "wanted_bundle"))

    assert row.lease_token == fresh(row).lease_token is not None
    assert "wanted_bundle" in row._state.fields_cache and row.wanted_bundle == revision.bundle


@given(
    candidates=st.lists(st.tuples(st.integers(), st.integers(0, 3)), unique_by=lambda pair: pair[0]),
    live=st.dictionaries(st.integers(0, 3), st.integers(0, 5)),
    most=st.integers(1, 4),
    single=st.sets(st.integers(0, 3)),
)
def test_within_cap(candidates: list[tuple[int, int]], live: dict[int, int], most: int, single: set[int]) -> None:
    chosen = within_cap(candidates, live, most, single)
    groups = dict(candidates)

    def cap(group: int) -> int:
        return 1 if group in single else most

    used = Counter(groups[key] for key in chosen)
    assert all(live.get(group, 0) + count <= cap(group) for group, count in used.items())
    # Nobody is left out while there is room, and the order is kept.
    assert chosen == [key for key, _ in candidates if key in set(chosen)]
    for key, group in candidates:
        assert key in chosen or live.get(group, 0) + used[group] >= cap(group)
