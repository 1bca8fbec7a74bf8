"""The machinery's pages: what each list says, that it costs the same however long it is, and that it reads nothing heavy."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.staticfiles import finders
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.html import escape
from pytest_django import Settings

from repos import clusters
from repos.admin.machinery import health_of
from repos.admin.probes import state_of
from repos.models import (
    Adoption,
    Bundle,
    Chore,
    ClusterGroup,
    Counter,
    Credential,
    Delivery,
    Event,
    Host,
    HostNotBefore,
    Mirror,
    Probe,
    Remote,
)
from tests.repos.history import NOW, a_cluster, a_delivery, a_gitrepo, a_revision

pytestmark = pytest.mark.django_db
OURS = [model for model in admin.site._registry if model._meta.app_label == "repos"]


def path_of(model: Any) -> str:
    return f"/admin/repos/{model._meta.model_name}/"


def shown(page: Client, path: str) -> list[Any]:
    return list(page.get(path).context["cl"].result_list)


def a_probe(kind: str = "machine", **columns: Any) -> Probe:
    given = {"worker_host": "worker1"} if kind == "machine" else {}
    return Probe.objects.create(kind=kind, examination=uuid.uuid4(), **{"created_at": NOW, **given, **columns})


def one_of_everything(number: int) -> None:
    credential = clusters.save_credential({"name": f"team-{number}", "kind": "token", "secret": "s"})
    gitrepo = a_gitrepo(f"repo-{number}", url=f"https://git{number}.example.com/repo.git", credential=credential)
    remote = gitrepo.remote
    delivery = a_delivery(a_revision(gitrepo), a_cluster(f"cluster-{number}"))
    ClusterGroup.objects.create(name=f"group-{number}", selector={})
    Bundle.objects.create(sha256=f"{number:064x}", size_bytes=1, files=1, last_used_at=NOW)
    HostNotBefore.objects.create(host=remote.host, credential_key=credential.pk, until=NOW)
    Mirror.objects.create(remote=remote, worker_host="worker1")
    Adoption.objects.get_or_create(remote=remote)
    Event.objects.create(remote=remote, reason="Quarantined", first_at=NOW, last_at=NOW)
    a_probe("remote", remote=remote)
    a_probe("target", delivery=delivery)
    a_probe()
    Chore.objects.create(name=f"chore-{number}")
    Counter.add({("polls", f"result={number}"): 1})


def test_every_list_costs_the_same_however_long(page: Client) -> None:
    counts: list[dict[str, int]] = []
    for first, last in ((0, 4), (4, 12)):
        for number in range(first, last):
            one_of_everything(number)
        counts.append({})
        for model in OURS:
            with CaptureQueriesContext(connection) as queries:
                assert len(shown(page, path_of(model))) >= last
            counts[-1][model.__name__] = len(queries)
    assert counts[0] == counts[1]


def test_no_list_reads_what_is_heavy(page: Client) -> None:
    one_of_everything(0)
    for model in OURS:
        with CaptureQueriesContext(connection) as queries:
            page.get(path_of(model))
        read = " ".join(query["sql"] for query in queries)
        for column in ('"repos_remote"."refs"', '"repos_remote"."recent"', '"repos_probe"."answer"'):
            assert column not in read, model


@pytest.mark.parametrize("model", OURS, ids=lambda model: model._meta.model_name)
def test_an_empty_list_says_what_to_do(page: Client, model: Any) -> None:
    says = admin.site._registry[model].empty  # type: ignore[attr-defined]
    assert says
    assert escape(says) in page.get(f"{path_of(model)}?o=1").content.decode()
    if page.get(path_of(model)).context["cl"].search_fields:
        found = page.get(f"{path_of(model)}?q=nothing").content.decode()
        assert "take away a filter" in found
        assert escape(says) not in found


def test_every_page_has_the_stylesheet(page: Client) -> None:
    assert finders.find("repos/admin.css")
    gitrepo = a_gitrepo()
    change = f"/admin/repos/gitrepo/{gitrepo.pk}"
    for path in ("/admin/", "/admin/repos/host/", f"{change}/change/", f"{change}/history/", f"{change}/delete/"):
        assert 'href="/static/repos/admin.css"' in page.get(path).content.decode(), path


def test_times_are_written_as_the_logs_write_them(page: Client) -> None:
    gitrepo = a_gitrepo()
    a_revision(gitrepo)
    Remote.objects.update(last_poll_at=NOW + timedelta(seconds=7))
    for path in ("/admin/repos/revision/", f"/admin/repos/gitrepo/{gitrepo.pk}/change/"):
        text = page.get(path).content.decode()
        assert "2026-03-01 12:00:00Z" in text, path
        assert "p.m." not in text, path
    assert "2026-03-01 12:00:07Z" in page.get(f"/admin/repos/remote/{gitrepo.remote_id}/change/").content.decode()
    assert "2026-03-01 12:00:07Z" in text


def test_a_long_url_hides_no_column(page: Client) -> None:
    url = f"https://git.example.com/{'x' * 500}.git"
    remote = a_gitrepo(url=url).remote
    Mirror.objects.create(remote=remote, worker_host="worker1")
    Adoption.objects.get_or_create(remote=remote)
    Event.objects.create(remote=remote, reason="Quarantined", first_at=NOW, last_at=NOW)
    a_probe("remote", remote=remote)
    for name in ("remote", "mirror", "adoption", "event", "probe", "gitrepo"):
        text = page.get(f"/admin/repos/{name}/").content.decode()
        assert url not in text, name
        assert "x…" in text, name


# -- remotes and hosts -------------------------------------------------------------------------------------------------

HEALTH = [
    (0, 0, "well"),
    (1, 0, "well"),
    (0, 2, "failing"),
    (2, 0, "on probation"),
    (2, 2, "on probation"),
    (3, 0, "quarantined"),
    (9, 2, "quarantined"),
]


def test_the_list_of_remotes_says_how_each_is(page: Client) -> None:
    for number, (crashes, failures, _) in enumerate(HEALTH):
        remote = a_gitrepo(f"repo-{number}").remote
        Remote.objects.filter(pk=remote.pk).update(crashes=crashes, consecutive_failures=failures)
    rows = Remote.objects.order_by("pk")
    assert [health_of(remote) for remote in rows] == [health for *_, health in HEALTH]
    for health in {health for *_, health in HEALTH}:
        found = shown(page, f"/admin/repos/remote/?health={health}")
        assert {remote.pk for remote in found} == {remote.pk for remote in rows if health_of(remote) == health}
    assert "quarantined" in page.get(f"/admin/repos/remote/{rows[6].pk}/change/").content.decode()


def test_the_list_of_hosts_begins_with_those_that_give_no_answer(page: Client, settings: Settings) -> None:
    settings.GIT_HOST_BREAKER = 10
    for name, failures in (("a", 0), ("b", 10), ("c", 9), ("d", 250)):
        Host.objects.create(name=name, port=443, failures=failures, failing_since=NOW if failures else None)
    assert [host.name for host in shown(page, "/admin/repos/host/")] == ["d", "b", "c", "a"]
    assert [host.name for host in shown(page, "/admin/repos/host/?breaker=open")] == ["d", "b"]
    assert [host.name for host in shown(page, "/admin/repos/host/?breaker=closed")] == ["c", "a"]
    text = page.get("/admin/repos/host/").content.decode()
    assert text.count('field-breaker">open<') == 2
    assert text.count('field-breaker">closed<') == 2


def test_a_host_that_asked_to_wait_says_whom(page: Client) -> None:
    credential = clusters.save_credential({"name": "team", "kind": "token", "secret": "s"})
    host = Host.objects.create(name="git.example.com", port=443)
    for key, minutes in ((0, 1), (credential.pk, 3), (credential.pk + 1, 2)):
        HostNotBefore.objects.create(host=host, credential_key=key, until=NOW + timedelta(minutes=minutes))
    listed = page.get("/admin/repos/host/").content.decode()
    assert "2026-03-01 12:03:00Z" in listed, "the last one"
    assert "2026-03-01 12:01:00Z" not in listed
    for path in (f"/admin/repos/host/{host.pk}/change/", "/admin/repos/hostnotbefore/"):
        text = page.get(path).content.decode()
        for said in (">none<", ">team<", ">a deleted one<"):
            assert said in text, (path, said)
    Credential.objects.all().delete()
    HostNotBefore.objects.all().delete()
    assert "it never asked to wait" in page.get(f"/admin/repos/host/{host.pk}/change/").content.decode()


# -- probes ------------------------------------------------------------------------------------------------------------

PROBES: list[tuple[dict[str, Any], str]] = [
    ({"due_at": NOW}, "waiting"),
    ({"due_at": NOW, "lease_token": uuid.UUID(int=1), "lease_until": NOW, "lease_owner": "worker1"}, "at work"),
    ({"ended_at": NOW, "answer": {"refs": {"refs/heads/main": "1" * 40}}}, "answered"),
    ({"ended_at": NOW, "error": "the host did not answer"}, "failed"),
]


def test_the_list_of_probes_says_how_far_each_is(page: Client) -> None:
    probes = [a_probe(**columns) for columns, _ in PROBES]
    assert [state_of(probe) for probe in probes] == [state for _, state in PROBES]
    for probe, (_, state) in zip(probes, PROBES, strict=True):
        assert [row.pk for row in shown(page, f"/admin/repos/probe/?state={state}")] == [probe.pk]
    text = page.get("/admin/repos/probe/").content.decode()
    assert "the host did not answer" in text
    pages = [page.get(f"/admin/repos/probe/{probe.pk}/change/").content.decode() for probe in probes]
    assert ["nobody" in text for text in pages] == [True, False, True, True]
    assert "worker1, until 2026-03-01 12:00:00Z" in pages[1]
    assert "refs/heads/main" in pages[2]


def test_a_probe_says_what_was_asked(page: Client) -> None:
    delivery = a_delivery(a_revision(a_gitrepo()), a_cluster())
    a_probe("target", delivery=delivery)
    a_probe("remote", remote=Remote.objects.get())
    a_probe(worker_host="worker7")
    text = page.get("/admin/repos/probe/").content.decode()
    for asked in (str(Delivery.objects.get()), "https://git.example.com/team/shop.git", "worker7"):
        assert f'field-asked">{asked}<' in text


def test_of_a_long_answer_the_beginning_is_shown(page: Client) -> None:
    probe = a_probe(ended_at=NOW, answer={"refs": {f"refs/heads/{n}": "1" * 40 for n in range(1000)}})
    text = page.get(f"/admin/repos/probe/{probe.pk}/change/").content.decode()
    assert "refs/heads/0" in text
    assert "refs/heads/999" not in text
