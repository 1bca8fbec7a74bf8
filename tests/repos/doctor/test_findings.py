"""Each kind of broken row is found, under its name, with what to do."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from pytest_django import DjangoAssertNumQueries, Settings

from repos import registration
from repos.doctor.examination import asked
from repos.doctor.facts import see_repairs
from repos.doctor.finding import ERROR, EXAMPLES, WARNING, Finding, report_of
from repos.leases import claim, database_now
from repos.models import (
    Adoption,
    Chore,
    Cluster,
    Counter,
    Delivery,
    DeliveryRecord,
    GitRepo,
    Host,
    HostNotBefore,
    Remote,
    Revision,
    SyncJob,
)
from tests.core import MAIN, A, B, adopt_all, answered, bundle, cluster, later
from tests.repos.doctor.house import aged, delivered, errors, followed, held_delivery, polled, resynced, sync, url

pytestmark = pytest.mark.django_db

GONE = {"lease_token": uuid.UUID(int=1), "lease_owner": "worker:1"}
Break = Callable[[], object]


@pytest.fixture(autouse=True)
def well(db: None) -> None:
    """A GitRepo whose newest commit is delivered, and a house that runs."""
    resynced()
    delivered()
    aged()


def ago(seconds: float) -> Callable[[], Any]:
    """An instant that is known when something breaks, and not when the tests are collected."""
    return lambda: later(-seconds)


def now_as(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: value() if callable(value) else value for name, value in columns.items()}


def update(model: Any, **columns: Any) -> Break:
    return lambda: model.objects.update(**now_as(columns))


def with_job(**columns: Any) -> Break:
    def do() -> None:
        answered(Remote.objects.get(), {MAIN: B})
        adopt_all()
        polled(GitRepo.objects.get())
        SyncJob.objects.filter(state="pending").update(**now_as(columns))

    return do


def with_delivery(**columns: Any) -> Break:
    def do() -> None:
        with_job()()
        sync(GitRepo.objects.get())
        Delivery.objects.update(**now_as(columns))

    return do


def with_request(**columns: Any) -> Break:
    def do() -> None:
        registration.ask(GitRepo.objects.get().pk)
        Remote.objects.update(**now_as(columns))

    return do


def stored_head(**columns: Any) -> Break:
    """The remote has B, nobody adopted it, and the books say that all is done."""

    def do() -> None:
        Remote.objects.update(refs={MAIN: B})
        Adoption.objects.update(**now_as(columns))

    return do


def lost_cause() -> None:
    with_delivery(state="failed", last_error="refused")()
    DeliveryRecord.objects.filter(outcome="pending").update(outcome="failed")


def line_left_open() -> None:
    """Of a revision that nothing wants any more."""
    with_delivery()()
    DeliveryRecord.objects.filter(outcome="delivered").update(outcome="pending")


def lost_edit() -> None:
    GitRepo.objects.update(generation=2)


DELIVERY = "delivery of shop at prod-eu"
REMOTE = f"remote {url('shop')}"

CASES = [
    ("overdue", REMOTE, update(Remote, next_poll_at=ago(900))),
    ("overdue", REMOTE, update(Adoption, due_at=ago(900))),
    ("overdue", "gitrepo shop", with_job(due_at=ago(900))),
    ("overdue", DELIVERY, with_delivery(due_at=ago(900))),
    ("overdue", "cluster prod-eu", update(Cluster, match_due_at=ago(900))),
    ("overdue", "chore resync", update(Chore, due_at=ago(900))),
    ("overdue", "chore resync", lambda: Chore.objects.all().delete()),
    (
        "expired-lease",
        REMOTE,
        update(Remote, next_poll_at=ago(2000), lease_until=ago(900), **GONE),
    ),
    (
        "expired-lease",
        "gitrepo shop",
        with_job(state="running", due_at=ago(2000), lease_until=ago(900), **GONE),
    ),
    ("unscheduled", REMOTE, update(Remote, next_poll_at=None)),
    ("unscheduled", "gitrepo shop", with_job(due_at=None)),
    ("unscheduled", "gitrepo shop", with_job(due_at=None, state="failed", last_error="502")),
    ("unscheduled", DELIVERY, with_delivery(due_at=None)),
    ("unscheduled", REMOTE, lambda: Adoption.objects.all().delete()),
    ("unscheduled", "gitrepo shop", update(GitRepo, adopted_change=0)),
    ("beyond-horizon", REMOTE, update(Remote, next_poll_at=ago(-90), wait_seconds=15)),
    ("beyond-horizon", REMOTE, update(Remote, next_poll_at=ago(-9000), wait_seconds=9000)),
    ("beyond-horizon", DELIVERY, with_delivery(due_at=ago(-900))),
    ("beyond-horizon", REMOTE, update(Remote, lease_until=ago(-9000), **GONE)),
    ("not-newest", "gitrepo shop", stored_head(due_at=None)),
    ("not-newest", "gitrepo shop", stored_head(failures=3, wait_seconds=10, due_at=ago(-9))),
    ("not-newest", "gitrepo shop", lost_edit),
    ("not-newest", "gitrepo shop", update(GitRepo, force_sync_generation=1)),
    ("not-newest", "gitrepo shop", with_request(next_poll_at=ago(-14), wait_seconds=14)),
    ("ledger", "revision 1 of gitrepo shop", update(Revision, outcome="")),
    ("ledger", "revision 2 of gitrepo shop", lambda: [with_job()(), SyncJob.objects.filter(state="pending").delete()]),
    ("ledger", DELIVERY, update(DeliveryRecord, outcome="pending")),
    ("ledger", DELIVERY, line_left_open),
    ("ledger", DELIVERY, lambda: DeliveryRecord.objects.all().delete()),
    ("ledger", DELIVERY, update(DeliveryRecord, outcome="superseded")),
    ("ledger", DELIVERY, lambda: [with_delivery()(), DeliveryRecord.objects.update(outcome="withdrawn")]),
    ("ledger", DELIVERY, lambda: Delivery.objects.all().delete()),
    ("ledger", "delivery of shop at other", lambda: [cluster("other"), GitRepo.objects.update(targets=[{"cluster": "other"}])]),
    ("failed-without-cause", REMOTE, update(Remote, consecutive_failures=2)),
    ("failed-without-cause", "sync job 2 of gitrepo shop", with_job(state="failed")),
    ("failed-without-cause", DELIVERY, with_delivery(state="failed")),
    ("failed-without-cause", DELIVERY, lost_cause),
    ("failed-without-cause", "gitrepo shop", update(GitRepo, ref_failures=1)),
    ("wrong-content", DELIVERY, lambda: Delivery.objects.update(wanted_bundle=bundle())),
    ("wrong-content", DELIVERY, update(Delivery, wanted_bundle=None)),
    ("wrong-content", DELIVERY, lambda: Delivery.objects.update(applied_bundle=bundle())),
    ("wrong-content", DELIVERY, update(Delivery, applied_bundle=None)),
    ("wrong-content", DELIVERY, update(Delivery, applied_revision=None)),
    ("wrong-content", DELIVERY, update(Delivery, sequence=2)),
    ("wrong-content", DELIVERY, update(Delivery, applied_epoch=7)),
    ("wrong-content", DELIVERY, update(Delivery, removal=True)),
    ("wrong-content", DELIVERY, update(Delivery, state="removed")),
    ("repairs", "resync, kind=schedule", lambda: Counter.add({("repairs", "kind=schedule"): 2})),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "subject", "breaks"),
    CASES,
    ids=[f"{n}-{kind}-{subject.split()[0]}" for n, (kind, subject, _) in enumerate(CASES)],
)
def test_what_is_broken_is_found(kind: str, subject: str, breaks: Break) -> None:
    assert errors() == []

    breaks()

    found = [finding for finding in errors() if finding.kind == kind]
    assert subject in {finding.subject for finding in found}
    assert all(finding.message and finding.advice for finding in found)


WARNINGS = [
    ("failing", REMOTE, "502", update(Remote, consecutive_failures=2, last_error="502")),
    ("failing", "host git.example.com:443", "17 polls", update(Host, failures=17)),
    ("failing", "gitrepo shop", "no such branch", update(GitRepo, ref_failures=1, ref_error="no such branch")),
    ("failing", "gitrepo shop", "disk full", with_job(state="failed", last_error="disk full")),
    ("failing", DELIVERY, "refused", with_delivery(state="failed", last_error="refused")),
    ("failing", REMOTE, "1 times", lambda: Adoption.objects.update(failures=1, **Adoption.due_in(database_now(), 9))),
    ("held", DELIVERY, "too much", lambda: Delivery.objects.update(state="held", last_error="too much")),
    ("crashed", DELIVERY, "3 times", update(Delivery, crashes=3)),
    ("crashed", REMOTE, "2 times", update(Remote, crashes=2)),
]


@pytest.mark.parametrize(("kind", "subject", "word", "breaks"), WARNINGS)
def test_what_fails_outside_is_told_as_a_warning(kind: str, subject: str, word: str, breaks: Break) -> None:
    breaks()

    found = [f for f in asked(database_now()) if f.kind == kind and f.subject == subject]

    assert len(found) == 1
    assert found[0].severity == WARNING and word in found[0].message and found[0].advice


# -- bounds: who asks too early cries wolf -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lease", "budget", "waited", "late"),
    [
        pytest.param(60, 20, 80, False, id="within lease, tick and session"),
        pytest.param(60, 20, 90, True, id="beyond"),
        pytest.param(3, 2, 10, False, id="short leases"),
        pytest.param(3, 2, 13, True, id="short leases, beyond"),
    ],
)
def test_the_bound_follows_the_settings(
    settings: Settings, lease: float, budget: float, waited: float, late: bool
) -> None:
    settings.POLL_LEASE, settings.SESSION_BUDGET = lease, budget
    Remote.objects.update(next_poll_at=later(-waited))

    assert bool(errors()) is late


def test_what_a_killed_worker_held_has_its_bound_from_the_end_of_the_lease() -> None:
    Remote.objects.update(next_poll_at=later(-900), lease_until=later(-10), **GONE)

    assert errors() == []


def test_what_somebody_holds_is_not_late() -> None:
    Remote.objects.update(next_poll_at=later(-900))
    claim(Remote, limit=1, seconds=30)

    assert errors() == []


def test_a_host_that_asked_for_patience_excuses_its_remotes() -> None:
    Remote.objects.update(next_poll_at=later(-900))
    host = Host.objects.get()
    HostNotBefore.objects.create(host=host, until=later(60))
    assert errors() == []

    HostNotBefore.objects.update(credential_key=5)
    assert [finding.kind for finding in errors()] == ["overdue"], "it asked another user"


def test_a_host_that_is_busy_or_down_excuses_as_far_as_its_queue_is_long(settings: Settings) -> None:
    settings.GIT_HOST_CONCURRENCY = 2
    for number in range(7):
        followed(f"other-{number}")
    aged()
    Remote.objects.update(next_poll_at=later(-150))
    assert len(errors()) == 8

    claim(Remote, limit=1, seconds=30)  # 7 wait, two at a time, 30 s each: 120 s more
    assert errors() == []

    Remote.objects.update(lease_until=None, lease_token=None, next_poll_at=later(-300))
    Host.objects.update(failures=10)  # 8 wait, one at a time: 240 s more
    assert errors() == []
    Remote.objects.update(next_poll_at=later(-340))
    assert len(errors()) == 8


def test_jobs_wait_for_fetches_of_others_and_not_for_ever() -> None:
    with_job(due_at=later(-300))()
    SyncJob.objects.update(started_at=later(-900))
    assert [finding.kind for finding in errors()] == ["overdue"]

    other = followed("other")
    SyncJob.objects.filter(gitrepo=other).update(state="running", lease_until=later(30), started_at=later(-1), **GONE)
    assert errors() == [], "both processes may be busy"

    SyncJob.objects.filter(state="pending").update(due_at=later(-1500))
    assert [finding.kind for finding in errors()] == ["overdue"]


def test_a_cluster_that_is_slow_excuses_its_own() -> None:
    with_delivery(due_at=later(-120))()
    assert [finding.kind for finding in errors()] == ["overdue"]
    gitrepo = delivered("other")
    Delivery.objects.filter(gitrepo=gitrepo).update(due_at=later(-500), lease_until=later(30), **GONE)

    assert [finding for finding in errors() if finding.kind == "overdue"] == []


def test_a_young_house_without_a_resync_is_well() -> None:
    Chore.objects.all().delete()
    aged(10)

    assert errors() == []


@pytest.mark.parametrize(("name", "late"), [(Chore.RESYNC, True), (Chore.PRUNE, False)])
def test_a_chore_waits_for_beat_as_often_as_that_comes(settings: Settings, name: str, late: bool) -> None:
    settings.JOB_LEASE, settings.SESSION_BUDGET = 3.0, 2.0
    Chore.objects.update_or_create(name=name, defaults={"due_at": later(-45)})

    assert bool(errors()) is late


def test_a_patient_host_may_put_a_poll_off_for_an_hour() -> None:
    HostNotBefore.objects.create(host=Host.objects.get(), until=later(3000))
    Remote.objects.update(next_poll_at=later(3000), wait_seconds=3000)

    assert errors() == []


def test_a_request_waits_with_a_remote_that_fails_or_is_due() -> None:
    with_request(**Remote.due_in(database_now(), 200), consecutive_failures=4, last_error="502")()
    assert errors() == []
    with_request(next_poll_at=later(-1), consecutive_failures=0)()
    assert errors() == []


def test_repairs_that_somebody_has_seen_are_told_no_more() -> None:
    Counter.add({("repairs", "kind=schedule"): 2})
    see_repairs()
    assert errors() == []

    Counter.add({("repairs", "kind=schedule"): 1})
    assert [finding.count for finding in errors()] == [1]


def test_a_rolled_back_one_stays_where_it_is() -> None:
    stored_head(due_at=None)()
    Revision.objects.update(reason=Revision.Reason.ROLLBACK)

    assert errors() == []


def test_what_is_held_is_not_late(settings: Settings) -> None:
    held_delivery("other")

    assert errors() == []


# -- the report --------------------------------------------------------------------------------------------------


def test_examples_are_bounded_and_counted() -> None:
    many = [Finding("failing", f"remote {n}", "502", "wait", WARNING) for n in range(EXAMPLES + 50)]
    report = report_of([*many, Finding("overdue", "remote x", "late", "look", ERROR)], database_now())

    assert len(report.findings) == EXAMPLES + 1
    assert report.findings[0].kind == "overdue", "errors first"
    assert (report.totals["failing"], report.totals["overdue"], report.totals["ledger"]) == (EXAMPLES + 50, 1, 0)
    assert (report.errors, report.warnings, report.healthy) == (1, EXAMPLES + 50, False)


def test_the_number_of_questions_does_not_grow(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    def queries() -> int:
        from django.db import connection
        from django.test.utils import CaptureQueriesContext

        with CaptureQueriesContext(connection) as context:
            list(asked(database_now()))
        return len(context)

    def late() -> None:
        Remote.objects.update(next_poll_at=later(-900))
        SyncJob.objects.filter(state="pending").update(due_at=later(-900))

    followed("late")
    late()
    few = queries()
    for number in range(20):
        followed(f"late-{number}", commit=A)
        delivered(f"done-{number}")
    late()
    assert queries() == few
