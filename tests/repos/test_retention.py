"""What retention removes of the database: by number, by age, a bounded amount at a time, and nothing that is needed."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.apps import apps
from django.contrib.sessions.models import Session
from django.db import IntegrityError, connection, connections, transaction
from django.db.models import Q
from pytest_django import Settings
from rest_framework.test import APIClient

from repos import deliveries, registration, retention
from repos.events import record_event
from repos.leases import database_now
from repos.models import (
    Bundle,
    Cluster,
    Credential,
    Delivery,
    DeliveryRecord,
    Event,
    GitRepo,
    Host,
    HostNotBefore,
    Mirror,
    Remote,
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


# -- events --------------------------------------------------------------------------------------------------------


def events(about: GitRepo | Remote, count: int, *, age_days: float = 0) -> None:
    for number in range(count):
        record_event(about, "Said", f"{number}", later(-age_days * DAY + number))


def test_events_go_by_number_for_each_gitrepo_and_each_remote() -> None:
    gitrepo = register()
    quiet = register("quiet", url="https://git.example.com/q")
    Event.objects.all().delete()
    events(gitrepo, 7)
    events(gitrepo.remote, 5)
    events(quiet, 2)

    assert [retention.prune_surplus_events([gitrepo.pk, quiet.pk], 3) for _ in range(3)] == [3, 3, 0]

    assert [e.message for e in Event.objects.filter(gitrepo=gitrepo)] == ["6", "5", "4"]
    assert [e.message for e in Event.objects.filter(remote=gitrepo.remote)] == ["4", "3", "2"]
    assert Event.objects.filter(gitrepo=quiet).count() == 2


def test_events_go_by_age_a_batch_at_a_time() -> None:
    gitrepo = register()
    Event.objects.all().delete()
    events(gitrepo, 5, age_days=8)
    events(gitrepo, 2, age_days=6)

    assert [retention.prune_events(2) for _ in range(4)] == [2, 2, 1, 0]
    assert Event.objects.count() == 2


# -- by age --------------------------------------------------------------------------------------------------------


def test_the_trail_of_edits_goes_by_age_alone() -> None:
    gitrepo = register()
    for number in range(5):
        registration.edit(gitrepo.pk, {"polling_interval": f"{number + 10}s"})
    cluster()
    assert retention.prune_history(10) == 0
    for model in (GitRepo, Cluster):
        model.history.update(history_date=later(-400 * DAY))
    GitRepo.history.filter(polling_interval="14s").update(history_date=later(-364 * DAY))

    assert [retention.prune_history(4) for _ in range(3)] == [4, 2, 0]
    assert GitRepo.history.get().polling_interval == "14s"
    assert fresh(gitrepo).polling_interval == "14s"


def test_every_audited_model_is_pruned() -> None:
    audited = {m.__name__ for m in apps.get_app_config("repos").get_models() if hasattr(m, "history")}
    assert audited == {model.__name__ for model in retention.AUDITED}


def test_what_hosts_asked_for_and_login_sessions_end() -> None:
    host = register().remote.host
    for key, seconds in enumerate((-5, -1, 60)):
        HostNotBefore.objects.create(host=host, credential_key=key, until=later(seconds))
        Session.objects.create(session_key=f"s{key}", session_data="", expire_date=later(seconds))

    for prune_some in (retention.prune_patience, retention.prune_login_sessions):
        assert [prune_some(1) for _ in range(3)] == [1, 1, 0]
    assert HostNotBefore.objects.get().credential_key == 2
    assert Session.objects.get().session_key == "s2"


def test_mirrors_of_machines_that_are_no_more() -> None:
    remote = register().remote
    for name, used, due in (("gone", -15, -1), ("alive", -13, -20), ("never", None, -15), ("new", None, -1)):
        used_at = None if used is None else later(used * DAY)
        Mirror.objects.create(remote=remote, worker_host=name, last_used_at=used_at, due_at=later(due * DAY))
    Mirror.objects.create(
        remote=remote, worker_host="busy", last_used_at=later(-99 * DAY), due_at=later(0), lease_until=later(30)
    )
    assert [retention.prune_mirror_rows(1) for _ in range(3)] == [1, 1, 0]
    assert set(Mirror.objects.values_list("worker_host", flat=True)) == {"alive", "new", "busy"}


def test_hosts_go_when_their_last_remote_has_gone() -> None:
    gitrepo = register()
    alone = [Host.objects.create(name=f"h{number}", port=0) for number in range(3)]
    HostNotBefore.objects.create(host=alone[0], until=later(60))

    assert [retention.prune_hosts(2) for _ in range(3)] == [2, 1, 0]
    assert Host.objects.get() == gitrepo.remote.host


@pytest.mark.django_db(transaction=True)
def test_a_registration_does_not_meet_a_host_that_is_being_pruned() -> None:
    failed: list[BaseException] = []
    over = threading.Event()

    def prunes() -> None:
        try:
            while not over.is_set():
                retention.prune_remotes(10)
                retention.prune_hosts(10)
        except BaseException as error:  # noqa: BLE001
            failed.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=prunes)
    thread.start()
    try:
        for number in range(15):
            registration.delete(register(f"r{number}", url=f"https://git{number % 2}.example.com/x").pk)
    finally:
        over.set()
        thread.join(30)
    assert not failed
    registration.delete(register("last").pk)


# -- bundles -------------------------------------------------------------------------------------------------------


def old(row: Bundle, hours: float = 7) -> Bundle:
    Bundle.objects.filter(pk=row.pk).update(last_used_at=later(-hours * 3600))
    return row


def test_bundles_go_when_nothing_refers_to_them_and_their_grace_is_over() -> None:
    gitrepo = register()
    of_revision = old(synced(gitrepo).bundle)  # type: ignore[arg-type]
    wanted, applied, unneeded, young = (old(bundle()) for _ in range(4))
    old(young, hours=5.9)
    Delivery.objects.create(gitrepo=gitrepo, cluster=cluster("a"), wanted_bundle=wanted)
    Delivery.objects.create(gitrepo=gitrepo, cluster=cluster("b"), applied_bundle=applied)

    assert retention.prune_bundles(10) == (1, False)

    assert set(Bundle.objects.all()) == {of_revision, wanted, applied, young}
    assert retention.prune_bundles(10) == (0, False)
    assert not Bundle.objects.filter(pk=unneeded.pk).exists()


def test_needed_bundles_do_not_fill_the_batch() -> None:
    gitrepo = register()
    for _ in range(3):
        old(synced(gitrepo).bundle, hours=9)  # type: ignore[arg-type]
    unneeded = old(bundle())

    assert [retention.prune_bundles(2) for _ in range(3)] == [(0, True), (1, True), (0, False)]
    assert not Bundle.objects.filter(pk=unneeded.pk).exists()


def test_a_bundle_that_is_delivered_is_in_use() -> None:
    row = old(bundle(), hours=5.9)
    retention.touch_bundle(row.sha256)
    assert fresh(row).last_used_at > later(-10)
    just = fresh(row).last_used_at
    retention.touch_bundle(row.sha256)
    assert fresh(row).last_used_at == just, "written no more often than needed"


@pytest.mark.django_db(transaction=True)
def test_a_bundle_that_is_made_again_at_the_same_moment() -> None:
    """Whoever comes first, the job's revision ends with a bundle that has a row."""
    gitrepo = register()
    revision = synced(gitrepo)
    Revision.objects.update(bundle=None)
    row = old(revision.bundle)  # type: ignore[arg-type]
    errors: list[BaseException] = []
    for _ in range(20):
        gate = threading.Barrier(2)

        def makes(gate: threading.Barrier = gate) -> None:
            try:
                gate.wait(10)
                with transaction.atomic():
                    # As workers.sync.conclude does.
                    made, _ = Bundle.objects.update_or_create(
                        sha256=row.sha256,
                        defaults={"last_used_at": database_now()},
                        create_defaults={"last_used_at": database_now(), "size_bytes": 1, "files": 1},
                    )
                    Revision.objects.filter(pk=revision.pk).update(bundle=made)
            except BaseException as error:  # noqa: BLE001
                errors.append(error)
            finally:
                connections.close_all()

        thread = threading.Thread(target=makes)
        thread.start()
        gate.wait(10)
        retention.prune_bundles(10)
        thread.join(30)
        assert not errors
        assert fresh(revision).bundle.sha256 == row.sha256
        Revision.objects.update(bundle=None)
        Bundle.objects.update(last_used_at=later(-7 * 3600))


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
