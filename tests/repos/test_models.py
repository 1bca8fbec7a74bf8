"""What the tables refuse, whatever the code above them believes."""

import pytest
from django.db import IntegrityError, transaction
from django.db.models import ProtectedError

from repos.leases import database_now
from repos.models import (
    Bundle,
    Cluster,
    Counter,
    Credential,
    Delivery,
    DeliveryRecord,
    GitRepo,
    Host,
    HostNotBefore,
    Remote,
    Revision,
    SyncJob,
)
from tests.core import A, B, bundle, cluster, fresh, observed, register, synced

pytestmark = pytest.mark.django_db
State = SyncJob.State


def job(gitrepo: GitRepo, state: str) -> SyncJob:
    revision = synced(gitrepo)
    SyncJob.objects.filter(revision=revision).update(state=state)
    return SyncJob.objects.get(revision=revision)


@pytest.mark.parametrize(
    ("first", "second", "is_refused"),
    [
        pytest.param(State.RUNNING, State.RUNNING, True, id="two running"),
        pytest.param(State.PENDING, State.PENDING, True, id="two pending"),
        pytest.param(State.PENDING, State.FAILED, True, id="one pending, one to be retried"),
        pytest.param(State.FAILED, State.FAILED, True, id="two to be retried"),
        pytest.param(State.RUNNING, State.PENDING, False, id="one running, one waiting"),
        pytest.param(State.SUCCEEDED, State.SUCCEEDED, False, id="ended ones"),
        pytest.param(State.SUPERSEDED, State.PENDING, False, id="superseded and pending"),
    ],
)
def test_a_gitrepo_has_one_running_and_one_waiting_job(first: str, second: str, is_refused: bool) -> None:
    gitrepo = register()
    job(gitrepo, first)
    if not is_refused:
        job(gitrepo, second)
        return
    with pytest.raises(IntegrityError), transaction.atomic():
        job(gitrepo, second)


def test_other_gitrepos_have_jobs_of_their_own() -> None:
    for name in ("one", "two"):
        job(register(name), State.RUNNING)


def test_a_revision_has_one_job() -> None:
    revision = synced(register())
    with pytest.raises(IntegrityError), transaction.atomic():
        SyncJob.objects.create(
            gitrepo=revision.gitrepo, revision=revision, state=State.SUCCEEDED, created_at=database_now()
        )


def test_one_delivery_for_each_gitrepo_and_cluster() -> None:
    gitrepo, there = register(), cluster()
    Delivery.objects.create(gitrepo=gitrepo, cluster=there)
    Delivery.objects.create(gitrepo=gitrepo, cluster=cluster("other"))
    with pytest.raises(IntegrityError), transaction.atomic():
        Delivery.objects.create(gitrepo=gitrepo, cluster=there)


def test_one_record_for_each_revision_and_cluster() -> None:
    line = {"revision": synced(register()), "cluster": cluster(), "wanted_at": database_now()}
    DeliveryRecord.objects.create(**line)
    with pytest.raises(IntegrityError), transaction.atomic():
        DeliveryRecord.objects.create(**line)


def test_a_name_is_unique_among_the_living() -> None:
    first = register()
    GitRepo.objects.filter(pk=first.pk).update(deleted_at=database_now())
    second = register()
    GitRepo.objects.filter(pk=second.pk).update(deleted_at=database_now())
    register()

    with pytest.raises(IntegrityError), transaction.atomic():
        GitRepo.objects.filter(pk=first.pk).update(deleted_at=None)


def test_an_interval_is_above_nothing() -> None:
    register()
    with pytest.raises(IntegrityError), transaction.atomic():
        GitRepo.objects.update(interval_seconds=0)


def test_a_remote_and_a_host_exist_once() -> None:
    remote = register().remote
    with pytest.raises(IntegrityError), transaction.atomic():
        Remote.objects.create(identity=remote.identity, url="x", host=remote.host)
    with pytest.raises(IntegrityError), transaction.atomic():
        Host.objects.create(name=remote.host.name, port=remote.host.port)
    HostNotBefore.objects.create(host=remote.host, until=database_now())
    with pytest.raises(IntegrityError), transaction.atomic():
        HostNotBefore.objects.create(host=remote.host, until=database_now())


def test_what_is_still_needed_is_not_deleted() -> None:
    token = Credential.objects.create(name="team", kind="token", secret="s3cret")
    gitrepo = register(credential=token)
    content = bundle()
    Delivery.objects.create(gitrepo=gitrepo, cluster=cluster(), wanted_bundle=content)

    for row in (token, gitrepo.remote, gitrepo.remote.host, content):
        with pytest.raises(ProtectedError):
            row.delete()


def test_deleting_a_gitrepo_takes_along_what_is_only_its_own() -> None:
    gitrepo = register()
    observed(gitrepo, A)
    observed(gitrepo, B)
    revision = synced(gitrepo)
    Delivery.objects.create(gitrepo=gitrepo, cluster=cluster(), wanted_revision=revision, wanted_bundle=revision.bundle)

    fresh(gitrepo).delete()

    assert not any(model._default_manager.exists() for model in (Revision, SyncJob, Delivery, DeliveryRecord))
    assert Bundle.objects.exists() and Cluster.objects.exists() and Remote.objects.exists()


def test_counters_add_up() -> None:
    for _ in range(2):
        Counter.add({("polls", "result=ok"): 2.0, ("polls", "result=timeout"): 0.5, ("idle", ""): 0.0})

    rows = dict(Counter.objects.values_list("label", "value"))
    assert rows == {"result=ok": 4.0, "result=timeout": 1.0}


def test_the_history_of_a_spec_has_no_secret_and_no_machinery() -> None:
    token = Credential.objects.create(name="team", kind="token", secret="s3cret")
    register(credential=token)

    columns = {f.name for f in Credential.history.model._meta.get_fields()}
    assert "secret" not in columns
    columns = {f.name for f in GitRepo.history.model._meta.get_fields()}
    assert not columns & {"requested", "handled", "follows_since", "observed_commit", "latest_revision"}
