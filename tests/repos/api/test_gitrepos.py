"""Registering, reading, changing and deleting GitRepos through REST."""

from typing import Any

import pytest
from django.db import OperationalError, connection
from rest_framework.test import APIClient

from repos import registration
from repos.models import Cluster, Credential, Delivery, GitRepo, Remote
from tests.repos.refusals import CANARY

pytestmark = pytest.mark.django_db
URL = "/api/v1/gitrepos/"
SPEC: dict[str, Any] = {
    "name": "shop",
    "url": "https://git.example.com/team/shop.git",
    "branch": "main",
    "tag": "",
    "semver": "",
    "commit": "",
    "paths": ["deploy"],
    "polling_interval": "60s",
    "disable_polling": False,
    "paused": False,
    "credential": "team",
    "ca_bundle": "",
    "insecure_skip_tls_verify": False,
    "targets": [
        {"cluster": "prod-eu"},
        {"cluster_selector": {"matchLabels": {"env": "prod"}}},
        {"cluster_group": "eu"},
    ],
    "correct_drift": False,
    "keep_resources": False,
    "force_sync_generation": 0,
}
STATUS = {
    "display_state",
    "message",
    "commit",
    "wanted_commit",
    "observed_commit",
    "observed_generation",
    "conditions",
    "last_poll_at",
    "last_success_at",
    "next_poll_at",
    "poll_lag_seconds",
    "consecutive_failures",
    "last_error",
    "ready_clusters",
}


@pytest.fixture(autouse=True)
def credential(db: None) -> Credential:
    return Credential.objects.create(name="team", kind="token", secret=CANARY)


def register(**given: Any) -> GitRepo:
    return registration.register({"name": "shop", "url": SPEC["url"], **given})


def test_what_is_written_is_read(api: APIClient) -> None:
    made = api.post(URL, SPEC, format="json")
    assert made.status_code == 201, made.content
    body = api.get(f"{URL}shop/").json()
    assert body == made.json()
    assert list(body) == [*SPEC, "generation", "status"]
    assert {name: body[name] for name in SPEC} == SPEC
    assert body["generation"] == 1
    assert set(body["status"]) >= STATUS
    assert body["status"]["display_state"] == "Pending"
    assert [c["type"] for c in body["status"]["conditions"]] == [
        "Ready",
        "GitPolling",
        "Reconciling",
        "Stalled",
        "Accepted",
    ]
    assert CANARY not in made.content.decode()


def test_defaults(api: APIClient) -> None:
    body = api.post(URL, {"name": "shop", "url": SPEC["url"]}, format="json").json()
    assert body["polling_interval"] == ""
    assert (body["paths"], body["targets"], body["credential"], body["branch"]) == ([], [], "", "")
    assert GitRepo.objects.get().interval_seconds == 15


@pytest.mark.parametrize(("text", "seconds"), [("", 15), ("0", 15), ("0s", 15), ("5s", 5), ("1h30m", 5400)])
def test_intervals(api: APIClient, text: str, seconds: float) -> None:
    assert api.post(URL, {**SPEC, "polling_interval": text}, format="json").status_code == 201
    assert GitRepo.objects.get().interval_seconds == seconds


@pytest.mark.parametrize("none", [None, ""])
def test_no_credential(api: APIClient, none: str | None) -> None:
    assert api.post(URL, {**SPEC, "credential": none}, format="json").json()["credential"] == ""


def test_put_of_what_was_read_changes_nothing(api: APIClient) -> None:
    api.post(URL, SPEC, format="json")
    registration.force(GitRepo.objects.get().pk)
    read = api.get(f"{URL}shop/").json()
    wakes = Remote.objects.get().wakes
    response = api.put(f"{URL}shop/", read, format="json")
    assert response.status_code == 200, response.content
    assert response.json() == read
    assert Remote.objects.get().wakes == wakes


def test_put_without_a_field_means_its_default(api: APIClient) -> None:
    api.post(URL, {**SPEC, "keep_resources": True}, format="json")
    registration.force(GitRepo.objects.get().pk)
    body = api.put(f"{URL}shop/", {"url": SPEC["url"]}, format="json").json()
    assert (body["branch"], body["paths"], body["credential"], body["keep_resources"]) == ("", [], "", False)
    assert body["force_sync_generation"] == 1, "a count that only rises has no default to go back to"
    assert body["generation"] == 2


def test_patch_changes_what_is_given(api: APIClient) -> None:
    api.post(URL, SPEC, format="json")
    body = api.patch(f"{URL}shop/", {"branch": "next"}, format="json").json()
    assert {name: body[name] for name in SPEC} == {**SPEC, "branch": "next"}
    assert body["generation"] == 2


@pytest.mark.parametrize(
    ("change", "generation"),
    [
        ({"url": "https://git.example.com/team/other.git"}, 2),
        ({"paths": []}, 2),
        ({"branch": "", "commit": "a" * 40}, 2),
        ({"polling_interval": "5s"}, 1),
        ({"paused": True}, 1),
        ({"credential": None}, 1),
        ({"targets": []}, 1),
    ],
)
def test_what_shapes_the_content_raises_the_generation(api: APIClient, change: dict[str, Any], generation: int) -> None:
    api.post(URL, SPEC, format="json")
    assert api.patch(f"{URL}shop/", change, format="json").json()["generation"] == generation


def test_actions(api: APIClient) -> None:
    register()
    assert api.post(f"{URL}shop/sync/").json()["force_sync_generation"] == 1
    assert api.post(f"{URL}shop/sync/").status_code == 202
    assert GitRepo.objects.get().force_sync_generation == 2
    assert api.post(f"{URL}shop/pause/").json()["status"]["display_state"] == "Paused"
    assert api.post(f"{URL}shop/pause/").json()["paused"] is True
    assert api.post(f"{URL}shop/resume/").json()["paused"] is False
    assert api.post(f"{URL}shop/approve/").json() == {"approved": 0}
    assert api.get(f"{URL}shop/sync/").status_code == 405


def test_approve_lets_held_deliveries_go_on(api: APIClient) -> None:
    gitrepo, cluster = register(), Cluster.objects.create(name="prod-eu")
    Delivery.objects.create(gitrepo=gitrepo, cluster=cluster, state="held", sequence=3)
    assert api.get(f"{URL}shop/").json()["status"]["display_state"] == "Held"
    assert api.post(f"{URL}shop/approve/").json() == {"approved": 1}
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.approved_sequence, delivery.due_at is not None) == ("waiting", 3, True)


def test_delete_frees_the_name(api: APIClient) -> None:
    gitrepo, cluster = register(), Cluster.objects.create(name="prod-eu")
    Delivery.objects.create(gitrepo=gitrepo, cluster=cluster, state="applied", sequence=3, applied_sequence=3)
    assert api.delete(f"{URL}shop/").status_code == 204
    assert GitRepo.objects.get().deleted_at is not None, "a tombstone until the removal has ended"
    assert api.get(f"{URL}shop/").status_code == 404
    assert api.get(URL).json()["count"] == 0
    assert api.patch(f"{URL}shop/", {"paused": True}, format="json").status_code == 404
    assert api.delete(f"{URL}shop/").status_code == 404
    assert api.post(URL, SPEC, format="json").status_code == 201


@pytest.mark.parametrize("name", ["no-such", "%00", "..", "Shop", "a b", "x" * 300])
def test_no_such_gitrepo(api: APIClient, name: str) -> None:
    for path in ("", "revisions/", "jobs/", "deliveries/", "events/", "wait/"):
        assert api.get(f"{URL}{name}/{path}").status_code == 404
    assert api.post(f"{URL}{name}/sync/").status_code == 404


def test_a_name_with_dots(api: APIClient) -> None:
    register(name="shop.v2.json")
    assert api.get(f"{URL}shop.v2.json/").json()["name"] == "shop.v2.json"


# -- lists -----------------------------------------------------------------------------------------------------------


def names(api: APIClient, query: str) -> list[str]:
    response = api.get(f"{URL}?{query}")
    assert response.status_code == 200, response.content
    return [row["name"] for row in response.json()["results"]]


def test_lists_are_paged(api: APIClient) -> None:
    for number in range(55):
        register(name=f"repo-{number:02}")
    first = api.get(URL).json()
    assert (first["count"], len(first["results"])) == (55, 50)
    assert names(api, "page=2") == [f"repo-{number}" for number in range(50, 55)]
    assert len(names(api, "page_size=500")) == 55
    assert len(names(api, "page_size=100000")) == 55
    assert api.get(f"{URL}?page=99999999999999999999").status_code == 404


def test_lists_are_filtered_and_ordered(api: APIClient, credential: Credential) -> None:
    register(name="shop-a", credential=credential)
    register(name="shop-b", url="https://git.example.com/other.git", paused=True)
    gitrepo = register(name="pay")
    cluster = Cluster.objects.create(name="prod-eu")
    Delivery.objects.create(gitrepo=gitrepo, cluster=cluster, state="failed")
    assert names(api, "name=SHOP") == ["shop-a", "shop-b"]
    assert names(api, "url=other") == ["shop-b"]
    assert names(api, "credential=team") == ["shop-a"]
    assert names(api, "paused=true") == ["shop-b"]
    assert names(api, "cluster=prod-eu") == ["pay"]
    assert names(api, "display_state=ErrApplied") == ["pay"]
    assert names(api, "display_state=Paused") == ["shop-b"]
    assert names(api, "display_state=Pending") == ["shop-a"]
    assert names(api, "ordering=-name") == ["shop-b", "shop-a", "pay"]
    assert names(api, "ordering=-consecutive_failures,next_poll_at&name=shop") != []


@pytest.mark.parametrize("query", ["display_state=Broken", "ordering=url;drop", "name=a%00b", "credential=%00"])
def test_a_filter_that_is_not_understood(api: APIClient, query: str) -> None:
    response = api.get(f"{URL}?{query}")
    assert response.status_code == 400
    assert list(response.json()) == [query.partition("=")[0]]


# -- manifests --------------------------------------------------------------------------------------------------------

MANIFEST = """
apiVersion: fleet.cattle.io/v1alpha1
kind: GitRepo
metadata: {{name: {name}, namespace: fleet-default}}
spec:
  repo: https://git.example.com/team/{name}.git
  branch: main
  paths: [deploy]
  clientSecretName: {credential}
  targets:
  - clusterSelector: {{matchLabels: {{env: prod}}}}
"""


@pytest.mark.parametrize("content_type", ["application/yaml", "text/yaml", "application/yaml; charset=utf-8"])
def test_a_manifest(api: APIClient, content_type: str) -> None:
    body = MANIFEST.format(name="shop", credential="team")
    response = api.generic("POST", URL, body, content_type=content_type)
    assert response.status_code == 201, response.content
    assert response.json()["targets"] == [{"cluster_selector": {"matchLabels": {"env": "prod"}}}]
    assert response.json()["credential"] == "team"


def test_several_manifests_are_registered_all_or_none(api: APIClient) -> None:
    good = [MANIFEST.format(name=name, credential="team") for name in ("a", "b")]
    bad = MANIFEST.format(name="c", credential="no-such")
    response = api.generic("POST", URL, "---".join([*good, bad]), content_type="application/yaml")
    assert response.status_code == 400
    assert list(response.json()) == ["credential"]
    assert "c: " in response.json()["credential"][0]
    assert not GitRepo.objects.exists()
    response = api.generic("POST", URL, "---".join(good), content_type="application/yaml")
    assert [row["name"] for row in response.json()] == ["a", "b"]


def test_a_manifest_that_asks_for_what_we_lack(api: APIClient) -> None:
    body = MANIFEST.format(name="shop", credential="team") + "  helmSecretName: x\n"
    response = api.generic("POST", URL, body, content_type="application/yaml")
    assert response.status_code == 400
    assert "spec.helmSecretName" in response.content.decode()
    assert not GitRepo.objects.exists()


# -- when the database is busy ---------------------------------------------------------------------------------------


def test_a_busy_database(api: APIClient) -> None:
    def locked(execute: Any, sql: str, *rest: Any) -> Any:
        if "repos_gitrepo" in sql and sql.startswith("INSERT"):
            raise OperationalError("database is locked")
        return execute(sql, *rest)

    with connection.execute_wrapper(locked):
        response = api.post(URL, SPEC, format="json")
    assert response.status_code == 503
    assert response["Retry-After"] == "1"
    assert "try again" in response.json()["detail"]
    assert not Remote.objects.exists(), "nothing is half saved"
