"""Clusters, groups and credentials in the admin, and the machinery that is only to be looked at."""

import json
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.db import models
from django.test import Client
from pytest_django import Settings

from repos import clusters
from repos.models import Cluster, ClusterGroup, Counter, Credential, Delivery, Host, Remote
from tests.repos.history import a_cluster, a_delivery, a_gitrepo, a_revision
from tests.repos.refusals import CANARY

pytestmark = pytest.mark.django_db
WRITTEN = {"gitrepo", "cluster", "clustergroup", "credential"}
OURS = [model for model in admin.site._registry if model._meta.app_label == "repos"]


@pytest.fixture(autouse=True)
def root(settings: Settings, tmp_path: Path) -> Path:
    settings.DELIVERY_DIRECTORY_ROOT = str(tmp_path)
    return tmp_path


def errors_of(response: Any) -> list[str]:
    assert response.status_code == 200
    return list(response.context["adminform"].form.errors)


def test_every_model_has_its_page(page: Client) -> None:
    spoken_of = {m for m in apps.get_app_config("repos").get_models() if not m.__name__.startswith("Historical")}
    assert set(OURS) == spoken_of


@pytest.mark.parametrize("model", OURS, ids=lambda model: model._meta.model_name)
def test_the_pages_open(page: Client, model: type[models.Model]) -> None:
    gitrepo = a_gitrepo(credential=clusters.save_credential({"name": "team", "kind": "token", "secret": CANARY}))
    a_delivery(a_revision(gitrepo), a_cluster(labels={"a": "b"}))
    ClusterGroup.objects.create(name="eu", selector={})
    Counter.add({("polls", "result=ok"): 1})
    name = model._meta.model_name
    assert page.get(f"/admin/repos/{name}/").status_code == 200
    assert page.get(f"/admin/repos/{name}/?q=a").status_code == 200
    row = model._default_manager.first()
    if row is not None:
        response = page.get(f"/admin/repos/{name}/{row.pk}/change/")
        assert response.status_code == 200
        assert CANARY not in response.content.decode()


@pytest.mark.parametrize(
    "model", [m for m in OURS if m._meta.model_name not in WRITTEN], ids=lambda m: m._meta.model_name
)
def test_machinery_is_read_only(page: Client, model: type[models.Model]) -> None:
    a_delivery(a_revision(a_gitrepo()), a_cluster())
    name = model._meta.model_name
    assert page.get(f"/admin/repos/{name}/add/").status_code == 403
    row = model._default_manager.first()
    if row is not None:
        assert page.post(f"/admin/repos/{name}/{row.pk}/change/", {}).status_code == 403
        assert page.post(f"/admin/repos/{name}/{row.pk}/delete/", {"post": "yes"}).status_code == 403
        assert model._default_manager.filter(pk=row.pk).exists()


# -- clusters and groups -----------------------------------------------------------------------------------------------


def test_a_cluster_goes_through_its_door(page: Client, root: Path) -> None:
    settings = json.dumps({"path": f"{root}/eu"})
    sent = {"name": "prod-eu", "labels": '{"env": "prod"}', "driver": "directory", "settings": settings}
    assert page.post("/admin/repos/cluster/add/", sent).status_code == 302
    cluster = Cluster.objects.get()
    assert (cluster.settings["keep_releases"], cluster.match_wanted) == (3, 1)
    assert cluster.match_due_at is not None
    a_delivery(a_revision(a_gitrepo()), cluster)
    change = f"/admin/repos/cluster/{cluster.pk}/change/"
    assert page.post(change, {**sent, "settings": json.dumps({"path": f"{root}/new"})}).status_code == 302
    assert Delivery.objects.get().sequence == 2
    assert page.post(change, {**sent, "settings": '{"path": "/etc"}'}).context["adminform"].form.errors.keys() == {
        "settings"
    }
    assert errors_of(page.post(change, {**sent, "labels": "[]"})) == ["labels"]
    assert errors_of(page.post(change, {**sent, "labels": '{"a": 5}'})) == ["labels"]
    assert page.post(f"/admin/repos/cluster/{cluster.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not Cluster.objects.exists()


def test_clusters_that_are_refused(page: Client) -> None:
    sent = {"name": "Prod EU", "labels": "{}", "driver": "nothing", "settings": "{}"}
    assert set(errors_of(page.post("/admin/repos/cluster/add/", sent))) >= {"name"}
    assert errors_of(page.post("/admin/repos/cluster/add/", {**sent, "name": "prod"})) == ["settings"]
    assert not Cluster.objects.exists()


def test_an_empty_list_of_clusters_says_what_to_do(page: Client) -> None:
    assert "There is no Cluster yet" in page.get("/admin/repos/cluster/").content.decode()


def test_a_group_goes_through_its_door(page: Client) -> None:
    a_cluster(labels={"env": "prod"})
    add = "/admin/repos/clustergroup/add/"
    assert errors_of(page.post(add, {"name": "eu", "selector": '{"x": 1}'})) == ["selector"]
    assert page.post(add, {"name": "eu", "selector": '{"matchLabels": {"env": "prod"}}'}).status_code == 302
    assert Cluster.objects.get().match_wanted == 1
    group = ClusterGroup.objects.get()
    assert page.post(f"/admin/repos/clustergroup/{group.pk}/change/", {"selector": "{}"}).status_code == 302
    group.refresh_from_db()
    assert (group.selector, Cluster.objects.get().match_wanted) == ({}, 2)


# -- credentials -------------------------------------------------------------------------------------------------------


def test_a_secret_is_written_and_never_shown(page: Client) -> None:
    sent = {"name": "team", "kind": "token", "new_secret": CANARY}
    assert page.post("/admin/repos/credential/add/", sent).status_code == 302
    credential = Credential.objects.get()
    change = f"/admin/repos/credential/{credential.pk}/change/"
    a_gitrepo(credential=credential)
    wakes = Remote.objects.get().wakes
    assert page.post(change, {**sent, "new_secret": "", "username": "bot"}).status_code == 302
    credential.refresh_from_db()
    assert (credential.username, credential.secret.reveal()) == ("bot", CANARY), "left empty, the old one stays"
    assert Remote.objects.get().wakes == wakes + 1
    assert page.post(change, {**sent, "new_secret": f"{CANARY}2", "username": "bot"}).status_code == 302
    credential.refresh_from_db()
    assert credential.secret.reveal() == f"{CANARY}2"
    assert Remote.objects.get().wakes == wakes + 2
    history = credential.history.latest()
    pages = ["/admin/repos/credential/", change, f"/admin/repos/credential/{credential.pk}/history/"]
    pages += [f"/admin/repos/credential/{credential.pk}/history/{history.pk}/", "/admin/"]
    assert 'name="initial-new_secret"' not in page.get(change).content.decode()
    for path in pages:
        text = page.get(path).content.decode()
        assert CANARY not in text, path
        assert credential.secret.stored not in text, path


def test_a_typed_secret_does_not_come_back_with_an_error(page: Client) -> None:
    response = page.post("/admin/repos/credential/add/", {"name": "Bad Name", "kind": "token", "new_secret": CANARY})
    assert errors_of(response) == ["name"]
    assert CANARY not in response.content.decode()


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"new_secret": ""}, "new_secret"),
        ({"new_secret": f"{CANARY}\nx"}, "new_secret"),
        ({"kind": "basic", "username": ""}, "username"),
        ({"kind": "ssh", "new_secret": "-----BEGIN OPENSSH PRIVATE KEY-----\nx"}, "known_hosts"),
        ({"username": "a:b"}, "username"),
    ],
    ids=str,
)
def test_credentials_that_are_refused(page: Client, given: dict[str, str], field: str) -> None:
    sent = {"name": "team", "kind": "token", "new_secret": CANARY, "username": "bot", **given}
    response = page.post("/admin/repos/credential/add/", sent)
    assert errors_of(response) == [field]
    assert CANARY not in response.content.decode()
    assert not Credential.objects.exists()


def test_a_credential_in_use_is_not_deleted(page: Client) -> None:
    credential = clusters.save_credential({"name": "team", "kind": "token", "secret": CANARY})
    a_gitrepo(credential=credential)
    sent = {"action": "delete_selected", "_selected_action": [credential.pk], "post": "yes"}
    for path, data in (
        (f"/admin/repos/credential/{credential.pk}/delete/", {"post": "yes"}),
        ("/admin/repos/credential/", sent),
    ):
        response = page.post(path, data, follow=True)
        assert "used by shop" in " ".join(str(message) for message in response.context["messages"])
    assert Credential.objects.exists()
    assert Host.objects.exists()
