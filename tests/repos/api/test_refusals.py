"""Bad input through POST, PUT and PATCH: 400 with the field and a sentence, nothing changed, no secret repeated."""

import json
from typing import Any

import pytest
from rest_framework.test import APIClient

from repos import registration
from repos.api.parsers import MAX_BODY_BYTES
from repos.models import Credential, GitRepo
from tests.repos.refusals import CANARY, REFUSALS, everything

pytestmark = pytest.mark.django_db
URL = "/api/v1/gitrepos/"
GOOD = {"name": "shop", "url": "https://git.example.com/team/shop.git"}


@pytest.fixture
def gitrepo(db: None) -> GitRepo:
    return registration.register({"name": "there", "url": "https://git.example.com/team/there.git"})


def refused(response: Any, field: str) -> None:
    assert response.status_code == 400, response.content
    body = response.json()
    assert list(body) == [field]
    assert all(isinstance(sentence, str) and len(sentence) > 10 for sentence in body[field])
    assert CANARY not in response.content.decode()


@pytest.mark.parametrize(("given", "field"), REFUSALS)
def test_post(api: APIClient, given: dict[str, Any], field: str) -> None:
    before = everything()
    refused(api.post(URL, {**GOOD, **given}, format="json"), field)
    assert everything() == before


@pytest.mark.parametrize(("given", "field"), REFUSALS)
def test_patch(api: APIClient, gitrepo: GitRepo, given: dict[str, Any], field: str) -> None:
    before = everything()
    refused(api.patch(f"{URL}there/", given, format="json"), field)
    assert everything() == before


VALUES: dict[tuple[str, ...], list[Any]] = {
    ("name",): [None, 5, True, [], {}, "", "Upper", "a/b", "a" * 64, "-a", "a\0b", "\ud800"],
    ("url",): [
        None,
        5,
        False,
        " https://git.example.com/x",
        "https://git.example.com/x ",
        ["https://git.example.com/x"],
        {"a": 1},
    ],
    ("branch", "tag", "semver", "commit"): [None, 5, [], {"a": None}],
    ("paths",): [None, "deploy", {}, [5], [None], [["a"]], [""], ["a"] * 101],
    ("polling_interval",): [None, 60, 1.5, True, []],
    ("disable_polling", "paused", "insecure_skip_tls_verify", "correct_drift", "keep_resources"): [
        *(None, "yes", "true", 1, 0, [], {}),
    ],
    ("credential",): [5, [], {}, "no-such", "NO SUCH", "a\0b"],
    ("ca_bundle",): [None, 5, []],
    ("targets",): [
        *(None, "all", {}, [5], [None], ["prod"], [[]], [{"cluster": None}], [{"cluster": 5}]),
        *([{"cluster_selector": None}], [{"cluster_selector": []}], [{"cluster_selector": "a"}]),
        *([{"cluster_selector": {"matchLabels": {"a": 1}}}], [{"cluster_selector": {"x": 1}}]),
    ],
    ("force_sync_generation",): [None, "1", 1.5, -1, True, 2**63, 10**400, []],
    ("unknown_field", "Name", "remote", "deleted_at", "handled"): [None, 7],
}
TYPES = [(field, value) for fields, values in VALUES.items() for field in fields for value in values]


@pytest.mark.parametrize(("field", "value"), TYPES, ids=lambda v: json.dumps(v)[:40])
def test_wrong_types_and_unknown_fields(api: APIClient, gitrepo: GitRepo, field: str, value: Any) -> None:
    before = everything()
    for method, url, body in (
        ("POST", URL, {**GOOD, field: value}),
        ("PUT", f"{URL}there/", {**GOOD, "name": "there", field: value}),
        ("PATCH", f"{URL}there/", {field: value}),
    ):
        refused(api.generic(method, url, json.dumps(body), content_type="application/json"), field)
    assert everything() == before


def test_every_bad_field_is_named_at_once(api: APIClient) -> None:
    response = api.post(URL, {"url": "ext::x", "branch": "a..b", "nope": 1}, format="json")
    assert response.status_code == 400
    assert set(response.json()) == {"name", "url", "branch", "nope"}


@pytest.mark.parametrize("body", ["null", "[]", "[{}]", '"text"', "5", "true"])
def test_a_body_that_is_no_object(api: APIClient, gitrepo: GitRepo, body: str) -> None:
    before = everything()
    for method, url in (("POST", URL), ("PUT", f"{URL}there/"), ("PATCH", f"{URL}there/")):
        response = api.generic(method, url, body, content_type="application/json")
        assert response.status_code == 400, (method, response.content)
        assert list(response.json()) == ["non_field_errors"]
    assert everything() == before


@pytest.mark.parametrize(
    "body",
    [
        "{",
        "",
        "{'name': 1}",
        '{"name": NaN}',
        '{"name": Infinity}',
        '{"name": "a", "name": "b"}',
        b'{"name": "\xff"}',
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"force_sync_generation": ' + "9" * 5000 + "}",
    ],
    ids=lambda body: ascii(body[:30]),
)
def test_malformed_json(api: APIClient, body: str | bytes) -> None:
    response = api.generic("POST", URL, body, content_type="application/json")  # type: ignore[arg-type]  # bytes do
    assert response.status_code == 400
    assert list(response.json()) == (["name", "url"] if not body else ["non_field_errors"])
    assert not GitRepo.objects.exists()


def test_a_body_over_the_limit(api: APIClient) -> None:
    body = json.dumps({**GOOD, "ca_bundle": "x" * MAX_BODY_BYTES})
    for content_type in ("application/json", "application/yaml"):
        assert api.generic("POST", URL, body, content_type=content_type).status_code == 413


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_another_content_type(api: APIClient, content_type: str) -> None:
    assert api.generic("POST", URL, "name=shop", content_type=content_type).status_code == 415


def test_yaml_is_for_registering_alone(api: APIClient, gitrepo: GitRepo) -> None:
    response = api.generic("PUT", f"{URL}there/", "name: there", content_type="application/yaml")
    assert response.status_code == 415


def test_two_of_branch_and_tag(api: APIClient, gitrepo: GitRepo) -> None:
    before = everything()
    refused(api.post(URL, {**GOOD, "branch": "main", "tag": "v1"}, format="json"), "tag")
    refused(api.patch(f"{URL}there/", {"branch": "main", "semver": ">=1.0.0"}, format="json"), "semver")
    assert everything() == before


def test_a_name_that_is_taken(api: APIClient, gitrepo: GitRepo) -> None:
    before = everything()
    refused(api.post(URL, {**GOOD, "name": "there"}, format="json"), "name")
    assert everything() == before


def test_another_name(api: APIClient, gitrepo: GitRepo) -> None:
    before = everything()
    refused(api.patch(f"{URL}there/", {"name": "other"}, format="json"), "name")
    refused(api.put(f"{URL}there/", {**GOOD, "name": "other"}, format="json"), "name")
    assert everything() == before


def test_a_forced_sync_is_not_taken_back(api: APIClient, gitrepo: GitRepo) -> None:
    registration.force(gitrepo.pk)
    before = everything()
    refused(api.patch(f"{URL}there/", {"force_sync_generation": 0}, format="json"), "force_sync_generation")
    assert everything() == before


def test_another_host_with_the_credential_attached(api: APIClient) -> None:
    """Case 41: the new host would see the credential."""
    credential = Credential.objects.create(name="team", kind="token", secret=CANARY)
    registration.register({**GOOD, "credential": credential})
    before = everything()
    url = {"url": "https://elsewhere.example.com/x.git"}
    refused(api.patch(f"{URL}shop/", url, format="json"), "credential")
    refused(api.patch(f"{URL}shop/", {**url, "credential": "team"}, format="json"), "credential")
    refused(api.put(f"{URL}shop/", {**GOOD, **url, "credential": "team"}, format="json"), "credential")
    assert everything() == before
    assert api.patch(f"{URL}shop/", {**url, "credential": None}, format="json").status_code == 200
    assert api.patch(f"{URL}shop/", {"credential": "team"}, format="json").status_code == 200


@pytest.mark.parametrize(
    "path", ["/api/v1/gitrepos", "/api/v1/gitrepos/Shop/", "/api/v1/", "/api/v2/gitrepos/", "/api/"]
)
def test_a_path_that_is_none(api: APIClient, path: str) -> None:
    for response in (api.get(path), api.post(path, {}, format="json"), APIClient().delete(path)):
        assert response.status_code == 404
        assert "slash" in response.json()["detail"]
