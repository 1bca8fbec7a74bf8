"""What retention removes of the database: by number, by age, a bounded amount at a time, and nothing that is needed."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import IntegrityError, connection, connections, transaction
from django.db.models import Q
from pytest_django import Settings
from rest_framework.test import APIClient

from repos import deliveries, retention
from repos.models import (
    Bundle,
    Cluster,
    Credential,
    Delivery,
    DeliveryRecord,
    Event,
    GitRepo,
    Revision,
    SyncJob,
)
from repos.retention import Walk, prune_revisions, within
from repos.revisions import last_revision
from tests.core import A, B, bundle, cluster, delivery_of, fresh, is_postgresql, later, observed, register, synced
from workers.deliver import outcome
from workers.deliver.session import claim_deliveries
from workers.prune import prune as prune_all

pytestmark = pytest.mark.django_db
Outcome = Revision.Outcome
DAY = 86400.0


@pytest.fixture(autouse=True)
def few(settings: Settings) -> None:
    settings.RETENTION_REVISIONS = 3
    settings.RETENTION_EVENTS = 3


def numbers(gitrepo: GitRepo) -> list[int]:
    return list(gitrepo.revisions.order_by("number").values_list("number", flat=True))


def history(gitrepo: GitRepo, count: int, **columns: Any) -> list[Revision]:
    """`count` synced revisions, each with its job and one ended line of the ledger."""
    place = Cluster.objects.get_or_create(name="elsewhere", defaults={"settings": {"path": "/srv/elsewhere"}})[0]
    rows = [synced(gitrepo) for _ in range(count)]
    Revision.objects.filter(pk__in=[row.pk for row in rows]).update(**columns)
    for row in rows:
        DeliveryRecord.objects.create(revision=row, cluster=place, outcome="delivered", wanted_at=later(0))
    return rows


def prune(gitrepo: GitRepo, limit: int = 100) -> int:
    return prune_revisions([gitrepo.pk], limit)


# -- revisions, with their jobs and their lines of the ledger ------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "age_days", "kept", "left"),
    [
        (3, 0, 3, [1, 2, 3]),
        (4, 0, 3, [2, 3, 4]),
        (9, 0, 3, [7, 8, 9]),
        (9, 31, 3, [7, 8, 9]),
        (9, 0, 1, [9]),
        (12, 29, 20, list(range(1, 13))),
        (12, 31, 20, list(range(3, 13))),
        (5, 400, 20, [1, 2, 3, 4, 5]),
    ],
)
def test_by_number_and_by_age(settings: Settings, count: int, age_days: int, kept: int, left: list[int]) -> None:
    settings.RETENTION_REVISIONS = kept
    gitrepo = register()
    history(gitrepo, count, observed_at=later(-age_days * DAY))

    assert prune(gitrepo) == count - len(left)

    assert numbers(gitrepo) == left
    assert SyncJob.objects.count() == DeliveryRecord.objects.count() == len(left)


def beyond(row: Revision) -> None:
    """Nothing: what is only beyond the number goes."""


def job_open(row: Revision) -> None:
    SyncJob.objects.filter(revision=row).update(state="failed")


def job_running(row: Revision) -> None:
    SyncJob.objects.filter(revision=row).update(state="running")


def outcome_open(row: Revision) -> None:
    Revision.objects.filter(pk=row.pk).update(outcome=Outcome.OPEN)


def record_open(row: Revision) -> None:
    DeliveryRecord.objects.filter(revision=row).update(outcome="failed")


def record_held(row: Revision) -> None:
    DeliveryRecord.objects.filter(revision=row).update(outcome="held")


def wanted_by_gitrepo(row: Revision) -> None:
    GitRepo.objects.update(wanted_revision=row)


def wanted_somewhere(row: Revision) -> None:
    Delivery.objects.create(gitrepo_id=row.gitrepo_id, cluster=cluster(), wanted_revision=row)


def applied_somewhere(row: Revision) -> None:
    Delivery.objects.create(gitrepo_id=row.gitrepo_id, cluster=cluster(), applied_revision=row)


@pytest.mark.parametrize(
    ("need", "left"),
    [
        (beyond, [4, 5, 6]),
        *[
            (need, [2, 4, 5, 6])
            for need in (
                job_open,
                job_running,
                outcome_open,
                record_open,
                record_held,
                wanted_by_gitrepo,
                wanted_somewhere,
                applied_somewhere,
            )
        ],
    ],
)
def test_what_is_needed_stays(need: Callable[[Revision], None], left: list[int]) -> None:
    gitrepo = register()
    rows = history(gitrepo, 6, observed_at=later(-100 * DAY))
    need(rows[1])

    assert prune(gitrepo) == 6 - len(left)

    assert numbers(gitrepo) == left
    assert prune(gitrepo) == 0


@pytest.mark.parametrize(
    ("forced", "wanted", "open_jobs", "left"),
    [
        # A forced revision beyond the wanted one says that the next job is forced.
        ([3], 1, [], [1, 3, 8, 9, 10]),
        ([3], None, [], [3, 8, 9, 10]),
        ([3], 4, [], [4, 8, 9, 10]),
        # A newer one says so as well,
        ([3, 5], 1, [], [1, 5, 8, 9, 10]),
        ([3, 5, 9], 1, [], [1, 8, 9, 10]),
        # but not to a job that is older than it.
        ([3, 9], 1, [7], [1, 3, 7, 8, 9, 10]),
        ([3, 5, 9], 1, [7], [1, 5, 7, 8, 9, 10]),
        ([3, 9], 1, [10], [1, 8, 9, 10]),
    ],
)
def test_a_forced_sync_that_was_superseded_is_not_forgotten(
    forced: list[int], wanted: int | None, open_jobs: list[int], left: list[int]
) -> None:
    gitrepo = register()
    rows = {row.number: row for row in history(gitrepo, 10)}
    gitrepo.revisions.filter(number__in=forced).update(reason="force")
    GitRepo.objects.update(wanted_revision=rows[wanted] if wanted else None)
    for number in open_jobs:
        job_running(rows[number])

    prune(gitrepo)

    assert numbers(gitrepo) == left


def test_numbers_go_on_rising_when_older_ones_are_gone() -> None:
    gitrepo = register()
    history(gitrepo, 6)
    prune(gitrepo)
    assert last_revision(gitrepo).number == 6  # type: ignore[union-attr]

    observed(gitrepo, B)

    assert (numbers(gitrepo), fresh(gitrepo).latest_revision) == ([4, 5, 6, 7], 7)


def test_a_batch_is_bounded_and_begins_with_the_oldest() -> None:
    one, other = register(), register("other", url="https://git.example.com/o")
    history(one, 8)
    history(other, 8)

    assert prune_revisions([one.pk, other.pk], 2) == 2
    assert (numbers(one)[0], numbers(other)[0]) == (3, 1)
    assert prune_revisions([one.pk, other.pk], 4) == 4
    assert (numbers(one), numbers(other)[0]) == ([6, 7, 8], 2)


@pytest.mark.parametrize(
    ("sizes", "most", "keys"),
    [
        ([], 10, []),
        ([(1, 4), (2, 6)], 10, [1, 2]),
        ([(1, 4), (2, 7), (3, 1)], 10, [1]),
        ([(1, 99), (2, 0)], 10, [1]),
        ([(1, 0), (2, 0)], 0, [1, 2]),
    ],
)
def test_the_ledger_of_a_batch_is_bounded(sizes: list[tuple[int, int]], most: int, keys: list[int]) -> None:
    assert within(sizes, most) == keys


def test_the_lines_of_many_clusters_are_spread_over_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MOST_RECORDS", 1)
    gitrepo = register()
    history(gitrepo, 6)
    assert [prune(gitrepo) for _ in range(4)] == [1, 1, 1, 0]


def test_the_database_refuses_what_the_rules_forgot(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cascade clears what refers to a row: without the rules the whole batch is refused."""
    gitrepo = register()
    wanted_somewhere(history(gitrepo, 6)[0])
    monkeypatch.setattr(retention, "dispensable", lambda: Q(pk__gt=0))
    with pytest.raises(IntegrityError), transaction.atomic():
        prune(gitrepo)
        connection.check_constraints()
    assert numbers(gitrepo) == [1, 2, 3, 4, 5, 6]


@pytest.mark.django_db(transaction=True)
def test_a_gitrepo_that_somebody_has_locked_is_passed_over() -> None:
    if not is_postgresql():
        pytest.skip("SQLite's writers wait for each other")
    gitrepo = register()
    history(gitrepo, 6)
    pruned: list[int] = []

    def prunes() -> None:
        pruned.append(prune(gitrepo))
        connections.close_all()

    with transaction.atomic():
        GitRepo.objects.select_for_update().get(pk=gitrepo.pk)
        thread = threading.Thread(target=prunes)
        thread.start()
        thread.join(20)
        assert pruned == [0]
    assert prune(gitrepo) == 3


def test_a_delivery_that_ends_after_its_revision_was_pruned(settings: Settings) -> None:
    """It was superseded while a worker applied it, and then pruned: the end is written all the same."""
    settings.RETENTION_REVISIONS = 1
    prod = cluster()
    gitrepo = register(targets=[{"cluster": "prod-eu"}])
    deliveries.want(gitrepo, synced(gitrepo), [prod], later(0))
    [claimed] = claim_deliveries(1)
    deliveries.want(gitrepo, synced(gitrepo, B), [prod], later(0))
    assert prune(gitrepo) == 1

    assert outcome.applied(claimed)

    connection.check_constraints()
    row = delivery_of(gitrepo)
    assert (row.applied_sequence, row.applied_revision, row.wanted_revision) == (1, None, last_revision(gitrepo))
    assert row.due_at is not None


def old(row: Bundle, hours: float = 7) -> Bundle:
    Bundle.objects.filter(pk=row.pk).update(last_used_at=later(-hours * 3600))
    return row


# -- the walk ------------------------------------------------------------------------------------------------------


def test_the_walk_goes_over_all_gitrepos_and_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PAGE", 2)
    rows = [register(f"r{number}", url=f"https://git.example.com/{number}") for number in range(5)]
    for row in rows:
        history(row, 5)
    Event.objects.all().delete()
    walk = Walk()
    seen = []
    for _ in range(7):
        pruned, more = walk.step(3)
        seen.append((pruned["revisions"], more, walk.after))

    second, fourth = rows[1].pk, rows[3].pk
    assert seen == [
        (3, True, 0),
        (1, True, second),
        (3, True, second),
        (1, True, fourth),
        (2, True, 0),
        (0, False, second),
        (0, False, fourth),
    ]


def test_an_empty_house_has_nothing_to_walk_over() -> None:
    walk = Walk(after=17)
    assert walk.step(5) == ({"revisions": 0, "events": 0}, False)
    assert walk.after == 0


# -- nothing that is needed ----------------------------------------------------------------------------------------


def test_every_door_still_answers(api: APIClient, settings: Settings) -> None:
    settings.RETENTION_REVISIONS = 1
    settings.RETENTION_EVENTS = 1
    prod = cluster()
    gitrepo = register(targets=[{"cluster": "prod-eu"}], credential=None)
    for commit in (A, B, A):
        revision = synced(gitrepo, commit)
        deliveries.want(gitrepo, revision, [prod], later(0))
    Credential.objects.create(name="team", kind="token", secret="x")
    Event.objects.update(last_at=later(-30 * DAY))
    old(bundle())
    assert outcome.applied(claim_deliveries(1)[0])
    deliveries.want(gitrepo, synced(gitrepo, B), [prod], later(0))

    pruned = prune_all()

    assert (pruned["revisions"], pruned["bundles"]) == (2, 1)
    assert numbers(gitrepo) == [3, 4]
    for door in ("", "revisions/", "jobs/", "deliveries/", "events/", "wait/?timeout=0", "wait/?revision=1&timeout=0"):
        assert api.get(f"/api/v1/gitrepos/shop/{door}").status_code == 200, door
    assert api.get("/api/v1/gitrepos/shop/wait/?revision=1&timeout=0").json()["ended"] is True
    (shown,) = api.get("/api/v1/gitrepos/shop/deliveries/").json()["results"]
    assert (shown["applied_commit"], shown["wanted_commit"]) == (A, B)
    row = delivery_of(gitrepo)
    assert row.wanted_bundle is not None and row.due_at is not None
