"""Clusters, groups and credentials through REST, and what a change of them asks of the pipeline."""

import json
from pathlib import Path
from typing import Any

import pytest
from pytest_django import Settings
from rest_framework.test import APIClient

from repos import clusters, registration
from repos.leases import database_now
from repos.models import Cluster, ClusterGroup, Credential, Delivery, Remote, SyncJob
from tests.repos.history import a_delivery, a_gitrepo, a_revision
from tests.repos.refusals import CANARY

pytestmark = pytest.mark.django_db
CLUSTERS, GROUPS, CREDENTIALS = "/api/v1/clusters/", "/api/v1/clustergroups/", "/api/v1/credentials/"
KEY = f"-----BEGIN OPENSSH PRIVATE KEY-----\n{CANARY}\n-----END OPENSSH PRIVATE KEY-----\n"


@pytest.fixture(autouse=True)
def root(settings: Settings, tmp_path: Path) -> Path:
    settings.DELIVERY_DIRECTORY_ROOT = str(tmp_path)
    return tmp_path


@pytest.fixture
def cluster(root: Path) -> Cluster:
    spec = {"name": "prod-eu", "labels": {"env": "prod"}, "settings": {"path": f"{root}/eu"}}
    made = clusters.save_cluster(spec)
    Cluster.objects.update(match_due_at=None)
    made.refresh_from_db()
    return made


def due_for_matching() -> set[str]:
    return set(Cluster.objects.filter(match_due_at__lte=database_now()).values_list("name", flat=True))


# -- clusters -----------------------------------------------------------------------------------------------------


def test_a_new_cluster_is_matched(api: APIClient, root: Path) -> None:
    spec = {"name": "prod-eu", "labels": {"env": "prod"}, "driver": "directory", "settings": {"path": f"{root}/eu"}}
    response = api.post(CLUSTERS, spec, format="json")
    assert response.status_code == 201, response.content
    assert response.json() == {
        **spec,
        "settings": {"path": f"{root}/eu", "keep_releases": 3},
        "status": {"deliveries": {}, "matching": True},
    }
    assert due_for_matching() == {"prod-eu"}
    assert Cluster.objects.get().match_wanted == 1


def test_a_change_of_labels_alone_matches_again(api: APIClient, cluster: Cluster) -> None:
    a_delivery(a_revision(a_gitrepo()), cluster)
    read = api.get(f"{CLUSTERS}prod-eu/").json()
    assert api.put(f"{CLUSTERS}prod-eu/", read, format="json").json() == read
    assert due_for_matching() == set(), "nothing changed"
    assert api.patch(f"{CLUSTERS}prod-eu/", {"labels": {"env": "test"}}, format="json").status_code == 200
    assert due_for_matching() == {"prod-eu"}
    assert Cluster.objects.get().match_wanted == 2
    assert Delivery.objects.get().sequence == 1, "what is wanted there is matched by its stage"


def test_a_change_of_settings_delivers_again(api: APIClient, cluster: Cluster, root: Path) -> None:
    a_delivery(a_revision(a_gitrepo()), cluster)
    a_delivery(a_revision(a_gitrepo("paused", paused=True)), cluster)
    a_delivery(a_revision(a_gitrepo("gone")), cluster, state="removed", outcome="withdrawn")
    response = api.patch(f"{CLUSTERS}prod-eu/", {"settings": {"path": f"{root}/new"}}, format="json")
    assert response.status_code == 200, response.content
    found = {
        d.gitrepo.name: (d.state, d.sequence, d.due_at is not None) for d in Delivery.objects.select_related("gitrepo")
    }
    assert found == {"shop": ("waiting", 2, True), "paused": ("waiting", 2, False), "gone": ("removed", 1, False)}
    assert due_for_matching() == set()
    assert response.json()["status"]["deliveries"] == {"waiting": 2, "removed": 1}


CLUSTER_REFUSALS = [
    ("name", "Prod EU"),
    ("name", None),
    ("labels", {"env": 5}),
    ("labels", []),
    ("labels", {"bad key": "x"}),
    ("driver", "kubernetes9"),
    ("driver", 5),
    ("settings", {"path": "/etc"}),
    ("settings", {"path": "ROOT/../../etc"}),
    ("settings", {"path": "ROOT/$(id)"}),
    ("settings", {"path": "ROOT/x", "exec": "id"}),
    ("settings", {}),
    ("settings", None),
    ("settings", [1]),
    ("secrets", {"token": CANARY}),
    ("secrets", CANARY),
    ("secrets", None),
    ("status", None),
    ("match_wanted", 5),
]


@pytest.mark.parametrize(("field", "value"), CLUSTER_REFUSALS, ids=lambda v: json.dumps(v)[:40])
def test_clusters_that_are_refused(api: APIClient, cluster: Cluster, root: Path, field: str, value: Any) -> None:
    value = json.loads(json.dumps(value).replace("ROOT", str(root)))
    before = list(Cluster.objects.values())
    good = {"name": "new", "labels": {}, "settings": {"path": f"{root}/new"}}
    for response in (
        api.post(CLUSTERS, {**good, field: value}, format="json"),
        api.patch(f"{CLUSTERS}prod-eu/", {field: value}, format="json"),
    ):
        if field == "status":
            assert response.status_code in (200, 201), "read only: passed over"
            continue
        assert response.status_code == 400, response.content
        assert list(response.json()) == [field]
        assert CANARY not in response.content.decode()
    if field != "status":
        assert list(Cluster.objects.values()) == before


def test_a_name_is_taken_once_and_kept(api: APIClient, cluster: Cluster) -> None:
    spec = {"name": "prod-eu", "settings": cluster.settings}
    assert list(api.post(CLUSTERS, spec, format="json").json()) == ["name"]
    assert list(api.patch(f"{CLUSTERS}prod-eu/", {"name": "other"}, format="json").json()) == ["name"]


def test_deleting_a_cluster(api: APIClient, cluster: Cluster) -> None:
    gitrepo = a_gitrepo()
    a_delivery(a_revision(gitrepo), cluster)
    assert api.delete(f"{CLUSTERS}prod-eu/").status_code == 204
    assert not Delivery.objects.exists()
    assert "stays there" in gitrepo.events.get(reason="ClusterDeleted").message
    assert api.get(f"{CLUSTERS}prod-eu/").status_code == 404


# -- groups -------------------------------------------------------------------------------------------------------


def test_a_group_matches_those_of_the_old_and_the_new_selector(api: APIClient, root: Path) -> None:
    for name in ("a", "b", "c"):
        Cluster.objects.create(name=name, labels={"name": name})

    def changed(response: Any) -> set[str]:
        assert response.status_code in (200, 201, 204), response.content
        found = due_for_matching()
        Cluster.objects.update(match_due_at=None)
        return found

    spec: dict[str, Any] = {"name": "eu", "selector": {"matchLabels": {"name": "a"}}}
    assert changed(api.post(GROUPS, spec, format="json")) == {"a"}
    assert changed(api.put(f"{GROUPS}eu/", spec, format="json")) == set()
    spec["selector"] = {"matchLabels": {"name": "b"}}
    assert changed(api.put(f"{GROUPS}eu/", spec, format="json")) == {"a", "b"}
    assert changed(api.patch(f"{GROUPS}eu/", {"selector": {}}, format="json")) == {"a", "b", "c"}
    assert api.get(f"{GROUPS}eu/").json() == {"name": "eu", "selector": {}}
    assert changed(api.delete(f"{GROUPS}eu/")) == {"a", "b", "c"}
    assert Cluster.objects.get(name="c").match_wanted == 2


@pytest.mark.parametrize(
    "selector", [None, [], "all", {"x": 1}, {"matchLabels": []}, {"matchExpressions": [{"key": "a"}]}]
)
def test_selectors_that_are_refused(api: APIClient, selector: Any) -> None:
    response = api.post(GROUPS, {"name": "eu", "selector": selector}, format="json")
    assert response.status_code == 400
    assert list(response.json()) == ["selector"]
    assert not ClusterGroup.objects.exists()


# -- credentials --------------------------------------------------------------------------------------------------


def test_a_secret_is_written_and_never_read(api: APIClient) -> None:
    spec = {"name": "team", "kind": "token", "username": "", "known_hosts": "", "secret": CANARY}
    response = api.post(CREDENTIALS, spec, format="json")
    assert response.status_code == 201, response.content
    shown = {name: value for name, value in spec.items() if name != "secret"}
    assert response.json() == shown
    assert api.get(f"{CREDENTIALS}team/").json() == shown
    assert api.get(CREDENTIALS).json()["results"] == [shown]
    assert Credential.objects.get().secret.reveal() == CANARY
    assert CANARY not in str(Credential.objects.values()), "encrypted at rest"
    assert CANARY not in str(list(Credential.history.values()))


def test_put_without_a_secret_keeps_it(api: APIClient) -> None:
    credential = clusters.save_credential({"name": "team", "kind": "token", "secret": CANARY})
    read = api.get(f"{CREDENTIALS}team/").json()
    assert api.put(f"{CREDENTIALS}team/", {**read, "username": "bot"}, format="json").status_code == 200
    credential.refresh_from_db()
    assert (credential.username, credential.secret.reveal()) == ("bot", CANARY)


def test_a_rotated_secret_polls_and_starts_no_job(api: APIClient) -> None:
    """A1: used from the next poll on with no edit, and an edit that changes no secret starts no job."""
    credential = clusters.save_credential({"name": "team", "kind": "token", "secret": "old"})
    a_gitrepo("shop", credential=credential)
    a_gitrepo("pay", credential=credential, url="https://other.example.com/pay.git")
    a_gitrepo("free")
    Remote.objects.update(next_poll_at=None)
    wakes = dict(Remote.objects.values_list("pk", "wakes"))
    read = api.get(f"{CREDENTIALS}team/").json()
    assert api.put(f"{CREDENTIALS}team/", read, format="json").status_code == 200
    assert not Remote.objects.filter(next_poll_at__isnull=False).exists(), "nothing changed"
    assert api.patch(f"{CREDENTIALS}team/", {"secret": "new"}, format="json").status_code == 200
    for remote in Remote.objects.all():
        used = remote.credential_id == credential.pk
        assert remote.wakes == wakes[remote.pk] + int(used)
        assert (remote.next_poll_at is not None) == used
    assert not SyncJob.objects.exists()


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"secret": None}, "secret"),
        ({"secret": ""}, "secret"),
        ({"secret": 5}, "secret"),
        ({"secret": f"{CANARY}\n{CANARY}"}, "secret"),
        ({"kind": "basic", "username": ""}, "username"),
        ({"username": f"{CANARY}:x"}, "username"),
        ({"username": "a\nb"}, "username"),
        ({"kind": "password"}, "kind"),
        ({"kind": None}, "kind"),
        ({"kind": "ssh", "secret": KEY}, "known_hosts"),
        ({"kind": "ssh", "secret": CANARY, "known_hosts": "h ssh-ed25519 AAAA"}, "secret"),
        ({"name": "A"}, "name"),
        ({"token": CANARY}, "token"),
    ],
    ids=str,
)
def test_credentials_that_are_refused(api: APIClient, given: dict[str, Any], field: str) -> None:
    good = {"name": "team", "kind": "token", "secret": "s3cret", "username": "bot"}
    response = api.post(CREDENTIALS, {**good, **given}, format="json")
    assert response.status_code == 400, response.content
    assert list(response.json()) == [field]
    assert CANARY not in response.content.decode()
    assert not Credential.objects.exists()


def test_a_credential_needs_its_secret(api: APIClient) -> None:
    response = api.post(CREDENTIALS, {"name": "team", "kind": "token"}, format="json")
    assert (response.status_code, list(response.json())) == (400, ["secret"])


def test_an_ssh_key_keeps_its_lines(api: APIClient) -> None:
    spec = {"name": "key", "kind": "ssh", "secret": KEY, "known_hosts": "git.example.com ssh-ed25519 AAAA\n"}
    assert api.post(CREDENTIALS, spec, format="json").status_code == 201
    assert Credential.objects.get().secret.reveal() == KEY


def test_a_credential_in_use_is_not_deleted(api: APIClient) -> None:
    credential = clusters.save_credential({"name": "team", "kind": "token", "secret": CANARY})
    gitrepo = a_gitrepo("shop", credential=credential)
    response = api.delete(f"{CREDENTIALS}team/")
    assert response.status_code == 409
    assert "used by shop" in response.json()["detail"]
    registration.edit(gitrepo.pk, {"credential": None})
    assert api.delete(f"{CREDENTIALS}team/").status_code == 409, "its remote is pruned a moment later"
    Remote.objects.filter(gitrepos__isnull=True).delete()
    assert api.delete(f"{CREDENTIALS}team/").status_code == 204
