"""Statements whose number of parameters stays, however many rows there are: PostgreSQL takes 65,535 in one."""

import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from pytest_django import Settings

from repos import clusters, statements
from repos.doctor import deep, probing
from repos.leases import database_now
from repos.models import Cluster, ClusterGroup, Credential, Delivery, DeliveryRecord, GitRepo, Host, Probe, Remote
from repos.statements import in_pages
from tests.core import A, B, later
from tests.repos.history import a_cluster, a_delivery, a_gitrepo, a_revision

pytestmark = pytest.mark.django_db
FEW, MANY = 3, 30
TOKEN = {"kind": "token", "secret": "s3cret"}


@pytest.fixture(autouse=True)
def short_pages(monkeypatch: pytest.MonkeyPatch, settings: Settings, tmp_path: Path) -> None:
    monkeypatch.setattr(statements, "PAGE", 2)
    settings.DELIVERY_DIRECTORY_ROOT = str(tmp_path)


def most_parameters(step: Callable[[], object]) -> int:
    """How many parameters the statement of `step` has that has the most."""
    counts = [0]

    def count(execute: Callable[..., Any], sql: str, parameters: Any, many: bool, context: Any) -> Any:
        counts.append(len(parameters or ()))
        return execute(sql, parameters, many, context)

    with connection.execute_wrapper(count):
        step()
    return max(counts)


def remotes_of(name: str, count: int) -> tuple[Credential, list[int]]:
    """A new credential, and the keys of its remotes, half of them at each of two hosts."""
    credential = Credential.objects.create(name=name, **TOKEN)
    hosts = [Host.objects.get_or_create(name=f"{host}.example.com", port=443)[0] for host in ("one", "two")]
    made = Remote.objects.bulk_create(
        Remote(
            identity=f"{name}-{number}",
            url=f"https://{hosts[number % 2].name}/{name}/{number}.git",
            host=hosts[number % 2],
            credential=credential,
            **Remote.due_in(later(900), 900),
        )
        for number in range(count)
    )
    return credential, [remote.pk for remote in made]


def deliveries_at(name: str, count: int) -> tuple[Cluster, list[int]]:
    """A cluster, and the keys of its deliveries, of which every third one's GitRepo is paused."""
    cluster = a_cluster(name, settings={"path": "/srv/old"})
    repos = [a_gitrepo(f"{name}-{number}", paused=number % 3 == 2) for number in range(count)]
    return cluster, [a_delivery(a_revision(gitrepo), cluster).pk for gitrepo in repos]


def asked_about(deliveries: list[int]) -> None:
    for pk in deliveries:
        Probe.objects.create(kind="target", delivery_id=pk, examination=uuid.uuid4(), created_at=database_now())


# -- clusters and credentials --------------------------------------------------------------------------------------


def test_a_new_secret_wakes_the_remotes_of_its_credential_however_many() -> None:
    numbers = {}
    others, _ = remotes_of("others", 4)
    for count in (FEW, MANY):
        credential, keys = remotes_of(f"c{count}", count)
        numbers[count] = most_parameters(partial(clusters.save_credential, {"secret": "another"}, credential.pk))
        woken = Remote.objects.filter(wakes=1, next_poll_at__lte=database_now(), wait_seconds=0)
        assert list(woken.filter(credential=credential).order_by("pk").values_list("pk", flat=True)) == keys
    assert numbers[FEW] == numbers[MANY]
    assert set(Remote.objects.filter(credential=others).values_list("wakes", flat=True)) == {0}


def test_a_new_credential_wakes_nothing() -> None:
    remotes_of("others", 2)
    clusters.save_credential({"name": "new", **TOKEN})
    assert set(Remote.objects.values_list("wakes", flat=True)) == {0}


def test_a_cluster_that_moves_is_delivered_to_again_however_much_is_there(tmp_path: Path) -> None:
    numbers = {}
    _, others = deliveries_at("others", 3)
    for count in (FEW, MANY):
        cluster, keys = deliveries_at(f"c{count}", count)
        spec = {"settings": {"path": str(tmp_path / cluster.name)}}
        numbers[count] = most_parameters(partial(clusters.save_cluster, spec, cluster.pk))
        moved = Delivery.objects.filter(cluster=cluster, sequence=2, state="waiting").order_by("pk")
        assert list(moved.values_list("pk", flat=True)) == keys
        assert {due is None for due in moved.filter(gitrepo__paused=True).values_list("due_at", flat=True)} == {True}
        assert {due is None for due in moved.filter(gitrepo__paused=False).values_list("due_at", flat=True)} == {False}
    assert numbers[FEW] == numbers[MANY]
    assert set(Delivery.objects.filter(pk__in=others).values_list("sequence", flat=True)) == {1}


def test_a_cluster_goes_however_much_was_delivered_there() -> None:
    numbers = {}
    _, others = deliveries_at("others", 2)
    asked_about(others)
    for count in (FEW, MANY):
        cluster, keys = deliveries_at(f"c{count}", count)
        asked_about(keys)
        numbers[count] = most_parameters(partial(clusters.delete_cluster, cluster.pk))
    assert numbers[FEW] == numbers[MANY]
    assert list(Cluster.objects.values_list("name", flat=True)) == ["others"]
    assert list(Delivery.objects.order_by("pk").values_list("pk", flat=True)) == others
    assert list(Probe.objects.order_by("delivery").values_list("delivery", flat=True)) == others
    assert DeliveryRecord.objects.count() == len(others)


def test_a_group_is_matched_again_however_many_clusters_it_has() -> None:
    numbers = {}
    for count in (FEW, MANY):
        labels = {"env": f"e{count}"}
        Cluster.objects.bulk_create(Cluster(name=f"c{count}-{number}", labels=labels) for number in range(count))
        spec = {"name": f"g{count}", "selector": {"matchLabels": labels}}
        numbers[count] = most_parameters(partial(clusters.save_group, spec))
        due = Cluster.objects.filter(match_due_at__lte=database_now(), match_wanted=1, labels=labels)
        assert due.count() == count
    assert numbers[FEW] == numbers[MANY]
    assert ClusterGroup.objects.count() == 2


# -- the doctor ----------------------------------------------------------------------------------------------------


def test_the_doctor_asks_about_any_number_of_remotes_once_more() -> None:
    _, keys = remotes_of("all", MANY)
    made: list[Probe] = []
    few = most_parameters(lambda: probing.remote_probes(set(keys[:FEW])))
    assert most_parameters(lambda: made.extend(probing.remote_probes([*reversed(keys[1:]), keys[1]]))) == few
    assert [probe.remote_id for probe in made] == keys[1:]


def test_the_doctor_asks_about_any_number_of_targets_once_more() -> None:
    _, keys = deliveries_at("prod-eu", MANY)
    Delivery.objects.filter(pk=keys[5]).update(state="waiting")
    made: list[Probe] = []
    few = most_parameters(lambda: probing.target_probes(keys[:FEW]))
    assert most_parameters(lambda: made.extend(probing.target_probes(keys[1:]))) == few
    assert [probe.delivery_id for probe in made] == [pk for pk in keys[1:] if pk != keys[5]]


def test_the_doctor_waits_for_any_number_of_suspects() -> None:
    for number in range(MANY):
        a_revision(a_gitrepo(f"r{number}"), commit=A)
    Remote.objects.update(last_poll_at=later(60))
    examination = uuid.uuid4()
    probing.make(examination, probing.remote_probes())
    answer = {"asked": ["HEAD"], "refs": {"HEAD": B}}
    Probe.objects.update(due_at=None, ended_at=database_now(), answer=answer)
    suspects = list(deep.suspects_of(examination))
    assert [suspect.follower.pk for suspect in suspects] == list(
        GitRepo.objects.order_by("pk").values_list("pk", flat=True)
    )

    run = deep.Examination(5, lambda _: None)
    few = most_parameters(lambda: run._became(suspects[:FEW]))
    became: dict[str, list[deep.Suspect]] = {}
    assert most_parameters(lambda: became.update(run._became(suspects))) == few
    assert {name: len(rows) for name, rows in became.items()} == {"cleared": 0, "wait": 0, "ask": MANY}


def test_pages_are_in_order_and_complete() -> None:
    assert [list(page) for page in in_pages([5, 3, 4])] == [[5, 3], [4]]
    assert list(in_pages([])) == []
