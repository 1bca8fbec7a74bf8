"""What goes by age or when nothing needs it: events, the trail of edits, sessions, mirrors, hosts and bundles."""

import threading

import pytest
from django.apps import apps
from django.contrib.sessions.models import Session
from django.db import connections, transaction
from pytest_django import Settings

from repos import registration, retention
from repos.events import record_event
from repos.leases import database_now
from repos.models import (
    Bundle,
    Cluster,
    Delivery,
    Event,
    GitRepo,
    Host,
    HostNotBefore,
    Mirror,
    Remote,
    Revision,
)
from tests.core import bundle, cluster, fresh, later, register, synced
from tests.repos.test_retention import DAY, old

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def few(settings: Settings) -> None:
    settings.RETENTION_REVISIONS = 3
    settings.RETENTION_EVENTS = 3


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
