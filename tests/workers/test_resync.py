"""The resync repairs what no rule allows, counts it, and finds nothing where nothing is wrong."""

import uuid
from collections import Counter as TallyOf
from collections.abc import Callable

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from repos import registration
from repos.leases import claim, database_now
from repos.models import Adoption, Chore, Cluster, Counter, Delivery, Event, GitRepo, Remote, SyncJob
from tests.core import MAIN, A, B, adopt_all, answered, bundle, cluster, fresh, later, observed, register, synced
from workers.poll.claim import claim_remotes
from workers.prune import prune
from workers.resync import LARGEST_PAGE, page_size, resync

pytestmark = pytest.mark.django_db


def look() -> dict[str, int]:
    """One whole round."""
    Chore.objects.update(cursor=0, round_started_at=None, rounds=0, **Chore.due_in(database_now(), 0))
    found: TallyOf[str] = TallyOf()
    while not Chore.objects.filter(rounds=1).exists():
        found.update(resync().counts)
    return dict(found)


@pytest.fixture
def gitrepo() -> GitRepo:
    """Followed, synced to one cluster, and everything as it should be."""
    cluster()
    gitrepo = register(targets=[{"cluster": "prod-eu"}])
    observed(gitrepo, A)
    SyncJob.objects.update(state="succeeded", **SyncJob.not_due())
    synced(gitrepo, commit=B)
    registration.edit(gitrepo.pk, {"keep_resources": True})
    Remote.objects.update(**Remote.due_in(database_now(), 15))
    return fresh(gitrepo)  # type: ignore[no-any-return]


def pinned() -> None:
    register("pinned", commit=A)


def disabled() -> None:
    observed(register("disabled", disable_polling=True, url="https://git.example.com/d"), A)


def missing() -> None:
    gitrepo = register("missing", branch="gone", url="https://git.example.com/m")
    answered(gitrepo.remote, {})
    adopt_all()


def paused() -> None:
    gitrepo = register("paused", url="https://git.example.com/p", targets=[{"cluster": "prod-eu"}])
    observed(gitrepo, A)
    registration.edit(gitrepo.pk, {"paused": True})


def asked() -> None:
    registration.force(register("asked", url="https://git.example.com/a").pk)


def deleted() -> None:
    gitrepo = register("deleted", url="https://git.example.com/x", targets=[{"cluster": "prod-eu"}])
    synced(gitrepo)
    registration.edit(gitrepo.pk, {"keep_resources": True})
    registration.edit(gitrepo.pk, {"keep_resources": False})
    registration.delete(gitrepo.pk)


def relabelled() -> None:
    """A cluster that waits for its own matching."""
    Cluster.objects.update(name="renamed", **Cluster.due_in(database_now(), 0))


@pytest.mark.parametrize(
    "more", [pinned, disabled, missing, paused, asked, deleted, relabelled], ids=lambda f: f.__name__
)
def test_where_nothing_is_wrong_nothing_is_repaired(gitrepo: GitRepo, more: Callable[[], None]) -> None:
    more()
    before = list(Remote.objects.order_by("pk").values_list("pk", "next_poll_at", "wakes"))

    assert look() == {}

    assert list(Remote.objects.order_by("pk").values_list("pk", "next_poll_at", "wakes")) == before
    assert not Counter.objects.filter(name="repairs").exists()


def lose_schedule() -> None:
    Remote.objects.update(next_poll_at=None)


def lose_interval() -> None:
    Remote.objects.update(interval_seconds=7200)


def lose_adoption() -> None:
    Adoption.objects.all().delete()


def lose_adoption_instant() -> None:
    answered(Remote.objects.get(), {MAIN: B})
    Adoption.objects.update(due_at=None)


def lose_delivery_instant() -> None:
    Delivery.objects.update(due_at=None)


def lose_delivery() -> None:
    Delivery.objects.all().delete()


def gain_delivery() -> None:
    Delivery.objects.create(gitrepo=GitRepo.objects.get(), cluster=cluster("stranger"), wanted_bundle=bundle())


def change_bundle() -> None:
    Delivery.objects.update(wanted_bundle=bundle(), state="applied", due_at=None)


def lose_bundle() -> None:
    Delivery.objects.update(wanted_bundle=None, state="applied", due_at=None)


def lose_job_instant() -> None:
    observed(GitRepo.objects.get(), B)
    registration.force(GitRepo.objects.get().pk)
    observed(GitRepo.objects.get(), B)
    SyncJob.objects.update(due_at=None)


@pytest.mark.parametrize(
    ("lose", "kind"),
    [
        pytest.param(lose_schedule, "schedule", id="schedule"),
        pytest.param(lose_interval, "interval", id="interval"),
        pytest.param(lose_adoption, "adoption", id="adoption"),
        pytest.param(lose_adoption_instant, "adoption", id="adoption without an instant"),
        pytest.param(lose_job_instant, "job", id="job without an instant"),
        pytest.param(lose_delivery_instant, "delivery", id="delivery without an instant"),
        pytest.param(lose_delivery, "match", id="a delivery too few"),
        pytest.param(gain_delivery, "match", id="a delivery too many"),
        pytest.param(change_bundle, "wanted", id="a delivery of something else"),
        pytest.param(lose_bundle, "wanted", id="a delivery of nothing"),
    ],
)
def test_what_was_lost_is_found_counted_and_told(gitrepo: GitRepo, lose: Callable[[], None], kind: str) -> None:
    lose()

    assert look().get(kind) == 1

    assert Counter.objects.get(name="repairs", label=f"kind={kind}").value == 1
    assert Event.objects.filter(gitrepo=gitrepo, reason="Repaired").exists()
    assert look() == {}
    remote = fresh(gitrepo.remote)
    assert remote.next_poll_at is not None and remote.interval_seconds == 15
    assert not SyncJob.objects.filter(state="pending", due_at=None).exists()
    row = Delivery.objects.get(cluster__name="prod-eu")
    assert row.due_at is not None and row.wanted_bundle == fresh(gitrepo).wanted_revision.bundle


def test_a_remote_without_a_schedule_is_polled_at_once(gitrepo: GitRepo) -> None:
    lose_schedule()
    look()

    assert [claimed.remote.pk for claimed in claim_remotes(5)] == [gitrepo.remote_id]


def test_a_far_future_and_a_dead_lease_heal_without_being_asked(gitrepo: GitRepo) -> None:
    Remote.objects.update(next_poll_at=later(86400), lease_until=later(86400), lease_token=uuid.uuid4())

    resync()

    assert [claimed.remote.pk for claimed in claim_remotes(5)] == [gitrepo.remote_id]
    assert Counter.objects.get(name="healed_schedules").value == 1


def test_what_is_repaired_for_a_paused_one_waits_for_its_resume(gitrepo: GitRepo) -> None:
    registration.edit(gitrepo.pk, {"paused": True})
    Delivery.objects.update(due_at=None)

    assert look() == {}
    assert not Delivery.objects.filter(due_at__isnull=False).exists()


def test_a_new_default_interval_is_taken_over_and_is_no_fault(gitrepo: GitRepo, settings: Settings) -> None:
    settings.GITREPO_POLLING_INTERVAL = 120.0

    assert look() == {}

    assert fresh(gitrepo).interval_seconds == fresh(gitrepo.remote).interval_seconds == 120


def test_it_never_adopts_for_one_that_does_not_poll() -> None:
    sleeps, polls = register("sleeps", disable_polling=True), register("polls")
    observed(polls, A)
    observed(polls, B)

    assert look() == {}

    assert fresh(sleeps).observed_commit == A


def test_one_that_cannot_be_looked_at_does_not_stop_the_round(gitrepo: GitRepo) -> None:
    GitRepo.objects.update(targets=[{"cluster_selector": {"matchExpressions": [{"key": "a", "operator": "?"}]}}])
    second = register("second", url="https://git.example.com/other.git")
    Remote.objects.update(next_poll_at=None)

    look()

    assert fresh(second.remote).next_poll_at is not None
    assert Chore.objects.get().cursor == 0


@pytest.mark.parametrize(
    ("gitrepos", "period", "size"),
    [
        pytest.param(0, 7200, 1, id="none"),
        pytest.param(10, 7200, 1, id="few"),
        pytest.param(10_000, 7200, 7, id="many, spread over two hours"),
        pytest.param(10_000, 60, LARGEST_PAGE, id="more than fit"),
        pytest.param(5, 1, 5, id="a period shorter than a look"),
    ],
)
def test_pages_are_spread_over_the_period(gitrepos: int, period: float, size: int) -> None:
    assert page_size(gitrepos, period) == size


def test_a_round_goes_over_all_a_page_at_a_time_and_waits_out_its_period(settings: Settings) -> None:
    settings.GITREPO_SYNC_PERIOD = 15.0  # two looks
    for number in range(5):
        register(f"r{number}", url=f"https://git.example.com/{number}")
    Remote.objects.update(next_poll_at=None)

    assert resync().counts == {"schedule": 3}
    assert resync().counts == {"schedule": 2}

    chore = Chore.objects.get()
    assert (chore.cursor, chore.rounds) == (0, 1)
    assert chore.due_at is not None
    assert 13 < (chore.due_at - database_now()).total_seconds() <= 15
    Remote.objects.update(next_poll_at=None)
    assert resync().counts == {}


def test_two_at_once_walk_once(gitrepo: GitRepo) -> None:
    Chore.objects.create(name=Chore.RESYNC, due_at=later(-1))
    claim(Chore, limit=1, seconds=30)
    lose_schedule()

    assert resync().counts == {}


# -- pruning -------------------------------------------------------------------------------------------------------


def test_remotes_go_when_nobody_follows_them(gitrepo: GitRepo) -> None:
    registration.edit(gitrepo.pk, {"insecure_skip_tls_verify": True})
    assert Remote.objects.count() == 2

    assert prune()["remotes"] == 1

    assert list(Remote.objects.values_list("pk", flat=True)) == [fresh(gitrepo).remote_id]


def test_a_remote_that_is_being_polled_stays(gitrepo: GitRepo) -> None:
    Remote.objects.update(**Remote.due_in(later(-1), 0))
    claim_remotes(5)
    registration.edit(gitrepo.pk, {"insecure_skip_tls_verify": True})

    assert prune()["remotes"] == 0


def test_tombstones_go_when_their_removals_have_ended(gitrepo: GitRepo) -> None:
    """And those whose removals fail again and again do not fill the batch."""
    registration.edit(gitrepo.pk, {"keep_resources": False})
    registration.delete(gitrepo.pk)
    other = register("other", url="https://git.example.com/o")
    GitRepo.objects.filter(pk=other.pk).update(deleted_at=database_now())

    assert prune(limit=1)["gitrepos"] == 1

    assert list(GitRepo.objects.values_list("pk", flat=True)) == [gitrepo.pk]
    Cluster.objects.all().delete()
    assert prune()["gitrepos"] == 1


def test_a_page_of_healthy_ones_takes_as_many_queries_as_one(settings: Settings) -> None:
    settings.GITREPO_SYNC_PERIOD = 5.0
    counts = []
    for number in range(1, 9):
        observed(register(f"r{number}", url=f"https://git.example.com/r{number}.git"), A)
        Chore.objects.update(due_at=database_now(), cursor=0)
        with CaptureQueriesContext(connection) as queries:
            assert resync().counts == {}
        counts.append(len(queries))

    assert counts[-1] == counts[1]


def test_one_that_the_first_look_stumbles_over_hides_nobody(gitrepo: GitRepo, settings: Settings) -> None:
    settings.GITREPO_SYNC_PERIOD = 5.0
    bad = register("bad", url="https://git.example.com/bad.git")
    GitRepo.objects.filter(pk=bad.pk).update(polling_interval="nonsense")
    Remote.objects.filter(pk=gitrepo.remote_id).update(next_poll_at=None)

    resync()

    assert fresh(gitrepo.remote).next_poll_at is not None
