"""What is wanted at each cluster, through every change of mind."""

from typing import Any

import pytest
from django.db import transaction
from django.db.models import F

from repos import deliveries, registration
from repos.leases import claim, database_now, finish
from repos.models import Cluster, ClusterGroup, Delivery, DeliveryRecord, GitRepo, Revision
from tests.core import B, cluster, fresh, later, register, synced

pytestmark = pytest.mark.django_db
State, Outcome = Delivery.State, DeliveryRecord.Outcome


@pytest.fixture
def gitrepo() -> GitRepo:
    cluster("prod-eu", env="prod")
    cluster("prod-us", env="prod")
    cluster("test", env="test")
    return register(targets=[{"cluster_selector": {"matchLabels": {"env": "prod"}}}])


def want(gitrepo: GitRepo, **spec: Any) -> Revision:
    """A new synced revision, wanted at all matched clusters."""
    revision = synced(gitrepo, **spec)
    row = fresh(gitrepo)
    deliveries.want(row, revision, deliveries.matched_clusters(row), database_now())
    return revision


def rematch(gitrepo: GitRepo) -> None:
    with transaction.atomic():
        deliveries.rematch(GitRepo.objects.select_for_update().get(pk=gitrepo.pk), database_now())


def at(gitrepo: GitRepo, name: str = "prod-eu") -> Delivery:
    return Delivery.objects.get(gitrepo=gitrepo, cluster__name=name)


def outcomes(name: str = "prod-eu") -> list[str]:
    records = DeliveryRecord.objects.filter(cluster__name=name).order_by("revision__number")
    return list(records.values_list("outcome", flat=True))


def test_each_matched_cluster_gets_a_delivery_that_is_due(gitrepo: GitRepo) -> None:
    revision = want(gitrepo)

    assert set(Delivery.objects.values_list("cluster__name", flat=True)) == {"prod-eu", "prod-us"}
    row = at(gitrepo)
    assert (row.sequence, row.state, row.removal) == (1, State.WAITING, False)
    assert (row.wanted_revision, row.wanted_bundle) == (revision, revision.bundle)
    assert row.due_at is not None and row.due_at <= database_now()
    assert outcomes() == [Outcome.PENDING]


def test_a_newer_revision_supersedes_what_was_not_applied(gitrepo: GitRepo) -> None:
    want(gitrepo)
    Delivery.objects.update(state=State.FAILED, failures=4, last_error="disk full", **Delivery.due_in(later(60), 60))

    want(gitrepo, commit=B)

    row = at(gitrepo)
    assert (row.sequence, row.state, row.failures, row.last_error) == (2, State.WAITING, 0, "")
    assert row.due_at is not None and row.due_at <= database_now()
    assert outcomes() == [Outcome.SUPERSEDED, Outcome.PENDING]


def test_what_no_longer_matches_is_removed_and_what_matches_again_comes_back(gitrepo: GitRepo) -> None:
    revision = want(gitrepo)
    Cluster.objects.filter(name="prod-eu").update(labels={"env": "test"})
    rematch(gitrepo)
    row = at(gitrepo)
    assert (row.sequence, row.removal, row.wanted_bundle, row.state) == (2, True, None, State.WAITING)
    assert outcomes() == [Outcome.WITHDRAWN]
    assert at(gitrepo, "prod-us").sequence == 1

    Cluster.objects.filter(name="prod-eu").update(labels={"env": "prod"})
    rematch(gitrepo)

    row = at(gitrepo)
    assert (row.sequence, row.removal, row.wanted_bundle) == (3, False, revision.bundle)
    assert outcomes() == [Outcome.PENDING]


def test_matching_twice_changes_nothing(gitrepo: GitRepo) -> None:
    want(gitrepo)
    Cluster.objects.filter(name="prod-eu").update(labels={})
    rematch(gitrepo)
    rematch(gitrepo)

    assert (at(gitrepo).sequence, at(gitrepo, "prod-us").sequence) == (2, 1)


def test_match_unmatch_match_while_a_worker_is_frozen_ends_with_the_content_there(gitrepo: GitRepo) -> None:
    """The frozen worker holds sequence 1; whatever it writes afterwards, sequence 3 stays to be done."""
    want(gitrepo)
    [frozen, _] = claim(Delivery, limit=2, seconds=60)
    for labels in ({}, {"env": "prod"}):
        Cluster.objects.filter(pk=frozen.cluster_id).update(labels=labels)
        rematch(gitrepo)

    finish(frozen, **deliveries.unless_changed(frozen, state=State.APPLIED, **Delivery.not_due()))

    row = fresh(frozen)
    assert (row.sequence, row.state, row.removal) == (3, State.WAITING, False)
    assert row.due_at <= database_now()


def test_a_kept_content_stays_kept_whatever_a_late_worker_writes(gitrepo: GitRepo) -> None:
    """Else the removal that keep_resources rules out would become due."""
    registration.edit(gitrepo.pk, {"keep_resources": True})
    want(gitrepo)
    [late, _] = claim(Delivery, limit=2, seconds=60)
    registration.edit(gitrepo.pk, {"targets": []})

    finish(late, **deliveries.unless_changed(late, state=State.APPLIED, **Delivery.not_due()))

    assert (fresh(late).state, fresh(late).due_at, fresh(late).removal) == (State.KEPT, None, True)


def test_what_was_read_is_what_is_written(gitrepo: GitRepo) -> None:
    want(gitrepo)
    [row, _] = claim(Delivery, limit=2, seconds=60)

    finish(row, **deliveries.unless_changed(row, state=State.FAILED, failures=3, **Delivery.due_in(later(0), 30)))

    assert (fresh(row).state, fresh(row).failures, fresh(row).wait_seconds) == (State.FAILED, 3, 30.0)


def test_kept_content_that_matches_again_is_delivered_again(gitrepo: GitRepo) -> None:
    registration.edit(gitrepo.pk, {"keep_resources": True})
    want(gitrepo)
    targets = fresh(gitrepo).targets
    registration.edit(gitrepo.pk, {"targets": []})
    assert at(gitrepo).state == State.KEPT

    registration.edit(gitrepo.pk, {"targets": targets})

    assert (at(gitrepo).state, at(gitrepo).removal, at(gitrepo).sequence) == (State.WAITING, False, 3)
    assert at(gitrepo).due_at is not None


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "removed"])
def test_unmatching_while_paused_waits_for_the_resume(gitrepo: GitRepo, keep: bool) -> None:
    registration.edit(gitrepo.pk, {"keep_resources": keep})
    want(gitrepo)
    registration.edit(gitrepo.pk, {"paused": True})
    registration.edit(gitrepo.pk, {"targets": []})
    assert not Delivery.objects.filter(due_at__isnull=False).exists()

    registration.edit(gitrepo.pk, {"paused": False})

    assert Delivery.objects.filter(due_at__isnull=False).count() == (0 if keep else 2)


def test_wanting_while_paused_is_not_due(gitrepo: GitRepo) -> None:
    registration.edit(gitrepo.pk, {"paused": True})

    want(gitrepo)

    assert at(gitrepo).due_at is None and at(gitrepo).state == State.WAITING


def test_pause_and_resume_leave_alone_what_is_done_or_held(gitrepo: GitRepo) -> None:
    want(gitrepo)
    Delivery.objects.filter(cluster__name="prod-eu").update(state=State.APPLIED, **Delivery.not_due())
    Delivery.objects.filter(cluster__name="prod-us").update(state=State.HELD, **Delivery.not_due())

    registration.edit(gitrepo.pk, {"paused": True})
    registration.edit(gitrepo.pk, {"paused": False})

    assert not Delivery.objects.filter(due_at__isnull=False).exists()


def test_an_approval_is_for_what_is_wanted_now(gitrepo: GitRepo) -> None:
    want(gitrepo)
    Delivery.objects.filter(cluster__name="prod-eu").update(state=State.HELD, **Delivery.not_due())

    assert registration.approve(gitrepo.pk) == 1

    row = at(gitrepo)
    assert (row.state, row.approved_sequence) == (State.WAITING, row.sequence)
    assert row.due_at is not None
    assert at(gitrepo, "prod-us").approved_sequence == 0
    want(gitrepo, commit=B)
    assert at(gitrepo).approved_sequence != at(gitrepo).sequence


def test_nothing_is_joined_before_the_first_sync(gitrepo: GitRepo) -> None:
    rematch(gitrepo)

    assert not Delivery.objects.exists()


def test_a_cluster_that_joins_gets_what_is_wanted(gitrepo: GitRepo) -> None:
    revision = want(gitrepo)
    cluster("prod-asia", env="prod")

    rematch(gitrepo)

    assert at(gitrepo, "prod-asia").wanted_revision == revision


def test_one_cluster_alone_is_matched(gitrepo: GitRepo) -> None:
    want(gitrepo)
    Cluster.objects.update(labels={})
    eu = Cluster.objects.get(name="prod-eu")

    deliveries.rematch(fresh(gitrepo), database_now(), only=eu)

    assert (at(gitrepo).removal, at(gitrepo, "prod-us").removal) == (True, False)


def test_a_revision_that_changes_nothing_says_so_for_each_cluster(gitrepo: GitRepo) -> None:
    want(gitrepo)
    revision = synced(gitrepo, commit=B)

    for _ in range(2):
        deliveries.record_unchanged(revision, deliveries.matched_clusters(fresh(gitrepo)), database_now())

    assert outcomes() == [Outcome.PENDING, Outcome.UNCHANGED]


def test_deleting_withdraws_everything(gitrepo: GitRepo) -> None:
    want(gitrepo)
    Delivery.objects.filter(cluster__name="prod-us").update(state=State.HELD, **Delivery.not_due())

    registration.delete(gitrepo.pk)

    assert Delivery.objects.filter(removal=True, state=State.WAITING, due_at__isnull=False).count() == 2
    assert not Delivery.objects.exclude(sequence=F("applied_sequence") + 2).exists()


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        ([], []),
        ([{"cluster": "eu"}], ["eu"]),
        ([{"cluster": "eu"}, {"cluster": "nowhere"}, {"cluster": "us"}], ["eu", "us"]),
        ([{"cluster": "eu", "cluster_selector": {"matchLabels": {"env": "test"}}}], []),
        ([{"cluster_group": "prod"}], ["eu", "us"]),
        ([{"cluster_group": "none"}], []),
        ([{"cluster": "us", "cluster_group": "prod"}], ["us"]),
        ([{"cluster": "test"}, {"cluster_group": "prod"}], ["eu", "test", "us"]),
        ([{"cluster_selector": {}}], ["eu", "test", "us"]),
    ],
)
def test_what_is_read_for_one_gitrepo_matches_what_is_read_for_all(targets: list[Any], names: list[str]) -> None:
    cluster("eu", env="prod"), cluster("us", env="prod"), cluster("test", env="test")
    ClusterGroup.objects.create(name="prod", selector={"matchLabels": {"env": "prod"}})
    gitrepo = register(targets=targets)

    matched = sorted(cluster.name for cluster in deliveries.matched_clusters(gitrepo))

    assert matched == names == sorted(cluster.name for cluster in deliveries.matcher()(gitrepo))
