"""The stages between an answer and its revisions, and between a label and its deliveries."""

import threading
import time
from collections.abc import Callable

import pytest
from django.db import connections, transaction

from repos.leases import claim, database_now, finish
from repos.models import Adoption, Cluster, Delivery, GitRepo
from tests.core import (
    MAIN,
    A,
    answered,
    cluster,
    expire,
    fresh,
    is_due,
    observed,
    register,
    synced,
)  # fmt: skip
from workers import adopt
from workers.adopt import match_cluster, run_adoptions, run_matching

pytestmark = pytest.mark.django_db
never: Callable[[], bool] = lambda: False  # noqa: E731
PROD = {"cluster_selector": {"matchLabels": {"env": "prod"}}}


def adopts() -> int:
    return run_adoptions(budget_seconds=5, stopping=never)


def matches() -> int:
    Cluster.objects.update(**Cluster.due_in(database_now(), 0))
    return run_matching(budget_seconds=5, stopping=never)


def test_every_answer_is_adopted() -> None:
    followers = [register(f"r{number}", url=f"https://git.example.com/{number}") for number in range(adopt.BATCH + 3)]
    for gitrepo in followers:
        answered(gitrepo.remote, {MAIN: A})

    assert adopts() == len(followers)

    assert not GitRepo.objects.exclude(observed_commit=A).exists()
    assert not Adoption.objects.filter(due_at__isnull=False).exists()
    assert adopts() == 0


def test_what_died_with_its_workers_twice_is_adopted_alone() -> None:
    """One of them may be what ends the workers: with it dies nothing but itself."""
    suspects = [register(f"s{number}", url=f"https://git.example.com/s{number}") for number in range(3)]
    for gitrepo in suspects:
        answered(gitrepo.remote, {MAIN: A})
    for _ in range(2):
        for row in claim(Adoption, limit=adopt.BATCH, seconds=30, suspects=False):
            expire(row)
    well = register("well", url="https://git.example.com/well")
    answered(well.remote, {MAIN: A})

    # A session tries one suspect, then whoever is none.
    assert [adopts() for _ in range(4)] == [2, 1, 1, 0]

    assert not GitRepo.objects.exclude(observed_commit=A).exists()
    assert not Adoption.objects.filter(crashes__gt=0).exists()


def test_an_answer_that_came_meanwhile_leaves_it_due() -> None:
    gitrepo = register()
    answered(gitrepo.remote, {MAIN: A})
    [row] = claim(Adoption, limit=1, seconds=30)
    answered(gitrepo.remote, {MAIN: A})

    finish(row, due_at=adopt._unless("wanted", row.wanted), wait_seconds=0)

    assert is_due(fresh(row))


def test_a_stop_gives_back_what_was_claimed() -> None:
    for number in range(3):
        answered(register(f"r{number}", url=f"https://git.example.com/{number}").remote, {MAIN: A})
    looks = iter([False, False])

    assert run_adoptions(budget_seconds=5, stopping=lambda: next(looks, True)) == 1

    assert Adoption.objects.filter(lease_token__isnull=False).count() == 0
    assert Adoption.objects.filter(due_at__lte=database_now()).count() == 2


def test_a_follower_that_failed_is_tried_again() -> None:
    good, bad = register("good"), register("bad", branch="", semver=">=1.0.0")
    GitRepo.objects.filter(pk=bad.pk).update(semver="no range")
    answered(good.remote, {MAIN: A, "refs/tags/v1.0.0": A})

    adopts()

    assert fresh(good).observed_commit == A
    row = Adoption.objects.get()
    assert row.due_at is not None and row.due_at > database_now() and row.lease_token is None
    GitRepo.objects.filter(pk=bad.pk).update(semver=">=1.0.0")
    Adoption.objects.update(**Adoption.due_in(database_now(), 0))
    adopts()
    assert fresh(bad).observed_commit == A
    assert Adoption.objects.get().due_at is None


def test_labels_move_content() -> None:
    cluster("eu", env="prod")
    gitrepos = [register(f"r{number}", targets=[PROD]) for number in range(3)]
    for gitrepo in gitrepos:
        synced(gitrepo)

    assert matches() == 1
    assert Delivery.objects.filter(removal=False).count() == 3

    Cluster.objects.update(labels={})
    matches()
    assert Delivery.objects.filter(removal=True).count() == 3
    assert not Cluster.objects.filter(match_due_at__isnull=False).exists()


def test_a_label_that_changed_during_the_matching_is_matched_again() -> None:
    cluster("eu")
    Cluster.objects.update(**Cluster.due_in(database_now(), 0))
    [row] = claim(Cluster, limit=1, seconds=30)
    Cluster.objects.update(match_wanted=5, **Cluster.due_in(database_now(), 0))

    finish(row, match_due_at=adopt._unless("match_wanted", row.match_wanted), wait_seconds=0)

    assert is_due(fresh(row))


def test_targets_that_cannot_be_read_hold_up_nobody_elses_match() -> None:
    cluster("eu", env="prod")
    bad, good = register("bad", targets=[PROD]), register("good", targets=[PROD])
    for gitrepo in (bad, good):
        synced(gitrepo)
    nonsense = [{"cluster_selector": {"matchExpressions": [{"key": "env", "operator": "?"}]}}]
    GitRepo.objects.filter(pk=bad.pk).update(targets=nonsense)

    matches()

    assert list(Delivery.objects.values_list("gitrepo__name", flat=True)) == ["good"]
    row = Cluster.objects.get()
    assert row.match_due_at is not None and row.match_due_at > database_now()


def test_pages_go_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adopt, "PAGE", 2)
    there = cluster("eu", env="prod")
    for number in range(5):
        synced(register(f"r{number}", targets=[PROD]))

    match_cluster(there)

    assert Delivery.objects.count() == 5


def test_a_cluster_that_is_gone_is_matched_by_nobody() -> None:
    there = cluster("eu")
    synced(register(targets=[PROD]))
    Cluster.objects.all().delete()

    assert match_cluster(there) == 0


@pytest.mark.skipif("not __import__('tests.core').core.is_postgresql()", reason="PostgreSQL's locks")
@pytest.mark.django_db(transaction=True)
def test_a_match_that_waited_for_a_job_sees_what_the_job_wants() -> None:
    """A join that is read before the wait pairs the GitRepo as it is with the revision as it was: none."""
    there = cluster("eu", env="prod")
    gitrepo = register(targets=[PROD])
    observed(gitrepo, A)
    over = threading.Event()

    def concludes() -> None:
        with transaction.atomic():
            row = GitRepo.objects.select_for_update().get(pk=gitrepo.pk)
            synced(row)
            over.set()
            time.sleep(0.7)
        connections.close_all()

    thread = threading.Thread(target=concludes)
    thread.start()
    assert over.wait(10)
    match_cluster(there)
    thread.join()

    row = Delivery.objects.get()
    assert row.wanted_revision == fresh(gitrepo).wanted_revision is not None
