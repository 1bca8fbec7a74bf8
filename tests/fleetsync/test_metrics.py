"""/metrics: what the database knows, in a number of queries that does not grow."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families
from pytest_django import DjangoAssertNumQueries, Settings

from repos import registration
from repos.doctor.finding import KINDS
from repos.leases import database_now
from repos.metrics import push_to_applied
from repos.models import Counter, GitRepo, Host, Remote
from tests.repos.history import a_cluster, a_delivery, a_gitrepo, a_revision, failing

pytestmark = pytest.mark.django_db
Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(client: Client) -> Series:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response["Content-Type"].startswith("text/plain")
    families = list(text_string_to_metric_families(response.content.decode()))
    assert len({family.name + family.type for family in families}) == len(families)
    samples = [sample for family in families for sample in family.samples]
    assert all(sample.name.startswith("fleetsync_") for sample in samples)
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}


def value(series: Series, name: str, **labels: str) -> float | None:
    return series.get((f"fleetsync_{name}", tuple(sorted(labels.items()))))


def test_an_empty_house(client: Client) -> None:
    series = scrape(client)
    assert value(series, "overdue_remotes") == 0
    assert value(series, "overdue_seconds_max") == 0
    assert value(series, "push_to_applied_seconds_count") == 0
    assert value(series, "sync_jobs", state="failed") == 0


def test_one_series_for_each_gitrepo_that_goes_with_it(client: Client) -> None:
    """S4."""
    shop, pay = a_gitrepo("shop"), a_gitrepo("pay")
    Remote.objects.update(next_poll_at=None, last_lag_seconds=0.25)
    a_delivery(a_revision(shop), a_cluster())
    failing(pay)
    series = scrape(client)
    for name in ("gitrepo_lag_seconds", "gitrepo_consecutive_failures", "gitrepo_ready"):
        assert len([key for key in series if key[0] == f"fleetsync_{name}"]) == 2
    assert value(series, "gitrepo_lag_seconds", gitrepo="shop") == 0.25
    assert (value(series, "gitrepo_ready", gitrepo="shop"), value(series, "gitrepo_ready", gitrepo="pay")) == (1, 0)
    assert value(series, "gitrepo_consecutive_failures", gitrepo="pay") == 3
    registration.delete(shop.pk)
    assert GitRepo.objects.filter(deleted_at__isnull=False).exists(), "a tombstone"
    series = scrape(client)
    assert not [key for key in series if ("gitrepo", "shop") in key[1]]


def test_hosts_that_do_not_answer(client: Client, settings: Settings) -> None:
    for failures in (0, settings.GIT_HOST_BREAKER - 1, settings.GIT_HOST_BREAKER):
        Host.objects.create(name=f"git{failures}.example.com", port=443, failures=failures)
    assert value(scrape(client), "hosts_open") == 1


def test_what_is_overdue(client: Client) -> None:
    a_gitrepo("late")
    a_gitrepo("polled")
    a_gitrepo("early")
    now = database_now()
    rows = Remote.objects.filter
    rows(gitrepos__name="late").update(next_poll_at=now - timedelta(seconds=90), last_lag_seconds=0.1)
    rows(gitrepos__name="polled").update(
        next_poll_at=now - timedelta(seconds=300), lease_until=now + timedelta(seconds=60), lease_token=uuid4()
    )
    rows(gitrepos__name="early").update(next_poll_at=now + timedelta(seconds=300))
    series = scrape(client)
    assert value(series, "overdue_remotes") == 1
    assert 90 <= (value(series, "overdue_seconds_max") or 0) < 120
    assert 90 <= (value(series, "gitrepo_lag_seconds", gitrepo="late") or 0) < 120, "seen while it is late"
    assert value(series, "gitrepo_lag_seconds", gitrepo="polled") == 0
    assert value(series, "gitrepo_lag_seconds", gitrepo="early") == 0


def test_states_and_counters(client: Client) -> None:
    a_delivery(a_revision(a_gitrepo(), job="failed"), a_cluster(), state="held")
    Counter.add(
        {
            ("polls", "result=ok"): 7,
            ("polls", "result=timeout"): 2,
            ("sync_jobs", "result=failed"): 3,
            ("deliveries", "result=applied"): 4,
            ("repairs", "kind=schedule"): 1,
            ("fenced_writes", "stage=deliver"): 5,
            ("healed_schedules", "model=remote"): 6,
        }
    )
    series = scrape(client)
    assert value(series, "sync_jobs", state="failed") == 1
    assert value(series, "sync_jobs", state="pending") == 0
    assert value(series, "deliveries", state="held") == 1
    assert value(series, "polls_total", result="ok") == 7
    assert value(series, "polls_total", result="timeout") == 2
    assert value(series, "sync_jobs_total", result="failed") == 3
    assert value(series, "deliveries_total", result="applied") == 4
    assert value(series, "repairs_total", kind="schedule") == 1
    assert value(series, "fenced_writes_total", stage="deliver") == 5
    assert value(series, "healed_schedules_total", model="remote") == 6


def test_findings_have_a_series_for_each_kind(client: Client) -> None:
    series = scrape(client)
    assert {dict(labels)["kind"] for name, labels in series if name == "fleetsync_findings"} == set(KINDS)
    assert value(series, "findings", kind="overdue") == 0
    a_gitrepo("late")
    Remote.objects.update(next_poll_at=database_now() - timedelta(seconds=900))
    assert value(scrape(client), "findings", kind="overdue") == 1


def test_from_push_to_applied(client: Client) -> None:
    """S3."""
    for seconds in (0.4, 3, 3, 4000):
        Counter.add(push_to_applied(seconds))
    series = scrape(client)
    name = "push_to_applied_seconds"
    assert value(series, f"{name}_count") == 4
    assert value(series, f"{name}_sum") == pytest.approx(4006.4)
    assert [value(series, f"{name}_bucket", le=le) for le in ("0.5", "2.0", "5.0", "3600.0", "+Inf")] == [1, 1, 3, 3, 4]


def test_the_number_of_queries_does_not_grow(
    client: Client, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    """Most of them are the doctor's questions."""
    for number in range(30):
        a_delivery(a_revision(a_gitrepo(f"repo-{number}")), a_cluster(f"cluster-{number}"))
    with django_assert_max_num_queries(90):
        series = scrape(client)
    assert len([key for key in series if key[0] == "fleetsync_gitrepo_ready"]) == 30
