"""Who may do what. Case 40: without a right to see it, nothing tells whether something exists."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from rest_framework.test import APIClient

from repos.models import Credential, GitRepo
from tests.conftest import ClientOf
from tests.repos.history import a_cluster, a_gitrepo
from tests.repos.refusals import everything

pytestmark = pytest.mark.django_db
ROOMS = ("gitrepos", "clusters", "clustergroups", "credentials")
URL = "/api/v1/gitrepos/"
DETAILS = [
    ("get", ""),
    ("put", ""),
    ("patch", ""),
    ("delete", ""),
    *[("post", f"{verb}/") for verb in ("sync", "pause", "resume", "approve")],
    *[("get", f"{room}/") for room in ("revisions", "jobs", "deliveries", "events", "wait")],
]


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("header", ["", "Token nonsense", "Basic eDp5", "Token \xff"])
def test_nobody(room: str, header: str) -> None:
    client = APIClient()
    if header:
        client.credentials(HTTP_AUTHORIZATION=header)
    for response in (client.get(f"/api/v1/{room}/"), client.post(f"/api/v1/{room}/"), client.get(f"/api/v1/{room}/x/")):
        assert response.status_code == 401
        assert response["WWW-Authenticate"] == "Token"


def test_a_user_who_is_not_active(client_of: ClientOf) -> None:
    client = client_of("left", "view_gitrepo")
    User.objects.update(is_active=False)
    assert client.get(URL).status_code == 401


@pytest.mark.parametrize(("method", "path"), DETAILS)
def test_the_same_404_for_what_exists_and_what_does_not(client_of: ClientOf, method: str, path: str) -> None:
    a_gitrepo()
    before = everything()
    client = client_of("stranger", "view_cluster")
    answers = [
        getattr(client, method)(
            f"{URL}{name}/{path}", {"paused": True} if method in ("put", "patch") else None, format="json"
        )
        for name in ("shop", "no-such")
    ]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].content == answers[1].content
    assert everything() == before


@pytest.mark.parametrize("room", ROOMS)
def test_lists_and_creation_without_the_right(client_of: ClientOf, room: str) -> None:
    client = client_of("stranger")
    assert client.get(f"/api/v1/{room}/").status_code == 403
    assert client.post(f"/api/v1/{room}/", {}, format="json").status_code == 403
    assert client.get(f"/api/v1/{room}/x/").status_code == 404


@pytest.mark.parametrize(("method", "path"), DETAILS)
def test_a_reader_reads(client_of: ClientOf, method: str, path: str) -> None:
    a_gitrepo()
    before = everything()
    client = client_of("reader", "view_gitrepo")
    query = "?timeout=0" if path == "wait/" else ""
    response = getattr(client, method)(f"{URL}shop/{path}{query}", {}, format="json")
    assert response.status_code == (200 if method == "get" else 403)
    assert everything() == before


@pytest.mark.parametrize(
    ("permission", "method", "path", "code"),
    [
        ("change_gitrepo", "get", "", 200),
        ("change_gitrepo", "patch", "", 200),
        ("change_gitrepo", "post", "sync/", 202),
        ("change_gitrepo", "post", "pause/", 200),
        ("change_gitrepo", "delete", "", 403),
        ("add_gitrepo", "get", "", 404),
        ("delete_gitrepo", "delete", "", 404),
    ],
)
def test_one_right(client_of: ClientOf, permission: str, method: str, path: str, code: int) -> None:
    a_gitrepo()
    response = getattr(client_of("somebody", permission), method)(f"{URL}shop/{path}", {}, format="json")
    assert response.status_code == code


def test_deleting_needs_its_right(client_of: ClientOf) -> None:
    a_gitrepo()
    assert client_of("cleaner", "view_gitrepo", "delete_gitrepo").delete(f"{URL}shop/").status_code == 204
    assert not GitRepo.objects.alive().exists()


def test_a_credential_is_attached_by_those_who_may_see_it(client_of: ClientOf) -> None:
    """Else who may register a GitRepo could have any credential sent to a host of his own."""
    credential = Credential.objects.create(name="team", kind="token", secret="x")
    spec: dict[str, Any] = {"name": "shop", "url": "https://git.example.com/x.git", "credential": "team"}
    client = client_of("developer", "view_gitrepo", "add_gitrepo", "change_gitrepo")
    refused = client.post(URL, spec, format="json")
    unknown = client.post(URL, {**spec, "credential": "no-such"}, format="json")
    assert (refused.status_code, refused.content) == (400, unknown.content)
    a_gitrepo("pay", credential=credential)
    spec = {**client.get(f"{URL}pay/").json(), "branch": "next"}
    assert client.put(f"{URL}pay/", spec, format="json").status_code == 200, "it is attached already"
    allowed = client_of("operator", "add_gitrepo", "view_credential")
    assert allowed.post(URL, {**spec, "name": "new"}, format="json").status_code == 201


def test_a_session_works_and_needs_its_csrf_token(api: APIClient) -> None:
    a_cluster()
    client = APIClient(enforce_csrf_checks=True)
    client.force_login(User.objects.get())
    assert client.get("/api/v1/clusters/").status_code == 200
    assert client.delete("/api/v1/clusters/prod-eu/").status_code == 403
