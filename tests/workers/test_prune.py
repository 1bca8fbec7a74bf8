"""The periodic pruning: batches, a budget, one at a time, counted and said."""

from collections.abc import Callable

import pytest
from pytest_django import Settings

from repos.models import Chore, Counter, Event, GitRepo
from repos.retention import Walk
from tests.core import fresh, later, register, synced
from workers import prune as pruning
from workers.prune import prune, prune_when_due

pytestmark = pytest.mark.django_db
DAY = 86400.0


@pytest.fixture
def gitrepo(settings: Settings) -> GitRepo:
    """With seven revisions and seven old events too many."""
    settings.RETENTION_REVISIONS = 1
    gitrepo = register()
    for _ in range(8):
        synced(gitrepo)
    Event.objects.all().delete()
    for number in range(7):
        at = later(-30 * DAY)
        Event.objects.create(gitrepo=gitrepo, reason="Said", message=f"{number}", first_at=at, last_at=at)
    return gitrepo


def test_one_call_without_a_budget_is_one_batch(gitrepo: GitRepo) -> None:
    pruned = prune(limit=2)
    assert (pruned["revisions"], pruned["events"]) == (2, 2)
    assert (gitrepo.revisions.count(), Event.objects.count()) == (6, 5)


def test_within_its_budget_it_goes_on_until_nothing_is_left(gitrepo: GitRepo) -> None:
    pruned = prune(limit=2, budget_seconds=30)
    assert (pruned["revisions"], pruned["events"]) == (7, 7)
    assert not any(prune().values())


def test_what_was_pruned_is_counted_and_said(gitrepo: GitRepo, caplog: pytest.LogCaptureFixture) -> None:
    prune()
    counted = dict(Counter.objects.filter(name="pruned").values_list("label", "value"))
    assert counted == {"kind=revisions": 7, "kind=events": 7}
    assert len([record for record in caplog.records if "'event': 'pruned'" in record.getMessage()]) == 1
    caplog.clear()
    prune()
    assert not caplog.records


def test_prunings_that_piled_up_are_one(gitrepo: GitRepo) -> None:
    assert prune_when_due(30)["revisions"] == 7
    synced(gitrepo)
    assert prune_when_due(30) == {}
    Chore.objects.filter(name=Chore.PRUNE).update(**Chore.due_in(later(-1), 0))
    assert prune_when_due(30)["revisions"] == 1


def test_the_place_of_the_walk_is_kept(gitrepo: GitRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repos.retention.PAGE", 1)
    register("other", url="https://git.example.com/o")
    prune_when_due(0)
    chore = Chore.objects.get(name=Chore.PRUNE)
    assert (chore.cursor, chore.lease_token) == (gitrepo.pk, None)


def test_the_walk_is_moved_on(gitrepo: GitRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repos.retention.PAGE", 1)
    walk = Walk(after=gitrepo.pk)
    assert prune(walk=walk)["revisions"] == 0
    assert prune(walk=walk)["revisions"] == 7


@pytest.mark.parametrize("kind", sorted(pruning.KINDS))
def test_no_kind_goes_beyond_the_limit(kind: str) -> None:
    """Nothing is there to remove, and nothing is removed: each is called with a limit and answers with a number."""
    function: Callable[[int], int] = pruning.KINDS[kind]
    register()
    assert function(0) == 0
    assert function(5) == 0
    assert fresh(GitRepo.objects.get()).name == "shop"
