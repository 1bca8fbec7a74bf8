"""What happened to a GitRepo, and waiting for it."""

import threading
import time
from typing import Any

import pytest
from django.conf import settings
from django.db import connections
from rest_framework.test import APIClient

from repos.api import waiting
from repos.models import DeliveryRecord, GitRepo, Revision
from tests.repos.history import a_cluster, a_delivery, a_gitrepo, a_revision

URL = "/api/v1/gitrepos/shop/"


@pytest.mark.django_db
def test_the_ledger(api: APIClient) -> None:
    gitrepo, cluster = a_gitrepo(targets=[{"cluster": "prod-eu"}]), a_cluster()
    a_revision(gitrepo, outcome="superseded", job="superseded")
    second = a_revision(gitrepo)
    a_delivery(second, cluster)
    third = a_revision(gitrepo, outcome="", job="failed", failures=2)

    revisions = api.get(f"{URL}revisions/").json()["results"]
    assert [(r["number"], r["commit"], r["outcome"]) for r in revisions] == [
        (3, third.commit, ""),
        (2, second.commit, "synced"),
        (1, f"{1:040x}", "superseded"),
    ]
    assert [[(x["cluster"], x["outcome"]) for x in r["records"]] for r in revisions] == [
        [],
        [("prod-eu", "delivered")],
        [],
    ]

    jobs = api.get(f"{URL}jobs/").json()["results"]
    assert [(j["revision"], j["state"], j["failures"]) for j in jobs] == [
        (3, "failed", 2),
        (2, "succeeded", 0),
        (1, "superseded", 0),
    ]

    (delivery,) = api.get(f"{URL}deliveries/").json()["results"]
    assert (delivery["cluster"], delivery["state"], delivery["wanted_commit"]) == ("prod-eu", "applied", second.commit)
    assert (delivery["applied_commit"], delivery["applied_revision"]) == (second.commit, 2)

    events = api.get(f"{URL}events/").json()
    assert [(e["reason"], e["type"]) for e in events["results"]] == [("Registered", "Normal")]
    assert api.get(f"{URL}revisions/?page_size=1").json()["next"].endswith("page=2&page_size=1")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("outcome", "records", "ended"),
    [
        ("", [], False),
        ("superseded", [], True),
        ("unchanged", [], True),
        ("no target", [], True),
        ("synced", ["delivered", "superseded", "withdrawn", "unchanged"], True),
        ("synced", ["delivered", "pending"], False),
        ("synced", ["delivered", "failed"], False),
        ("synced", ["delivered", "held"], False),
    ],
)
def test_when_a_revision_has_ended(api: APIClient, outcome: str, records: list[str], ended: bool) -> None:
    revision = a_revision(a_gitrepo(), outcome=outcome)
    for number, said in enumerate(records):
        DeliveryRecord.objects.create(
            revision=revision, cluster=a_cluster(f"c{number}"), outcome=said, wanted_at=revision.observed_at
        )
    body = api.get(f"{URL}wait/?revision=1&timeout=0").json()
    assert (body["ended"], body["revision"], body["outcome"]) == (ended, 1, outcome)
    assert [record["outcome"] for record in body["records"]] == records


@pytest.mark.django_db
def test_waiting_for_what_is_to_come(api: APIClient) -> None:
    gitrepo = a_gitrepo()
    began = time.monotonic()
    body = api.get(f"{URL}wait/?timeout=1s").json()
    assert 1 <= time.monotonic() - began < 5
    assert (body["ended"], body["revision"], body["commit"]) == (False, 1, "")
    a_revision(gitrepo, outcome="no target")
    assert api.get(f"{URL}wait/?timeout=0").json()["ended"] is True
    assert api.get(f"{URL}wait/?revision=2&timeout=0").json()["ended"] is False
    api.post(f"{URL}sync/")
    assert api.get(f"{URL}wait/?timeout=0").json()["ended"] is False, "a forced sync is asked for and not answered"
    assert api.get(f"{URL}wait/?revision=1&timeout=0").json()["ended"] is True


@pytest.mark.django_db
def test_a_pruned_revision_has_ended(api: APIClient) -> None:
    gitrepo = a_gitrepo()
    a_revision(gitrepo)
    a_revision(gitrepo)
    Revision.objects.filter(number=1).delete()
    assert api.get(f"{URL}wait/?revision=1").json()["ended"] is True


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("query", "field"),
    [
        *[(f"revision={text}", "revision") for text in ("0", "-1", "x", "1.5", "9" * 30, "%D9%A1")],
        *[(f"timeout={text}", "timeout") for text in ("x", "-1", "1d", "nan", "inf", "9" * 5000)],
    ],
)
def test_waiting_for_nonsense(api: APIClient, query: str, field: str) -> None:
    a_gitrepo()
    response = api.get(f"{URL}wait/?{query}")
    assert response.status_code == 400
    assert list(response.json()) == [field]


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, 30), ("", 30), ("5", 5), ("1500ms", 1.5), ("2h", 60), ("9999999999", 60)]
)
def test_how_long_is_waited(text: str | None, seconds: float) -> None:
    assert waiting.timeout_seconds(text) == seconds


@pytest.mark.django_db(transaction=True)
def test_it_answers_as_soon_as_the_revision_has_ended(api: APIClient) -> None:
    gitrepo = a_gitrepo()
    revision = a_revision(gitrepo, outcome="", job="running")

    def end() -> None:
        time.sleep(0.7)
        Revision.objects.filter(pk=revision.pk).update(outcome="no target")
        connections.close_all()

    thread = threading.Thread(target=end)
    thread.start()
    began = time.monotonic()
    body = api.get(f"{URL}wait/?revision=1&timeout=20").json()
    thread.join()
    assert body["ended"] is True
    assert 0.5 < time.monotonic() - began < 5


@pytest.mark.django_db(transaction=True)
def test_a_gitrepo_deleted_while_somebody_waits(api: APIClient) -> None:
    gitrepo = a_gitrepo()

    def delete() -> None:
        time.sleep(0.3)
        GitRepo.objects.filter(pk=gitrepo.pk).delete()
        connections.close_all()

    thread = threading.Thread(target=delete)
    thread.start()
    response = api.get(f"{URL}wait/?timeout=20")
    thread.join()
    assert response.status_code == 404


@pytest.mark.django_db
def test_those_who_wait_leave_threads_for_the_others(api: APIClient) -> None:
    a_gitrepo()
    for _ in range(settings.WEB_THREADS):
        assert api.get(f"{URL}wait/?timeout=1ms").status_code == 200, "each gives its place back"
    places: list[Any] = []
    while waiting._places.acquire(blocking=False):
        places.append(1)
    try:
        response = api.get(f"{URL}wait/?timeout=5")
        assert response.status_code == 503
        assert response["Retry-After"] == "1"
        assert api.get(f"{URL}wait/?timeout=0").status_code == 200, "who only looks needs no place"
    finally:
        for _ in places:
            waiting._places.release()
