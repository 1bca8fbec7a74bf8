"""The GitRepo pages: the list, the form, the actions; refusals beside their field and never a 500."""

import json
from html.parser import HTMLParser
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import OperationalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from repos import clusters, registration
from repos.models import Event, GitRepo, Remote
from tests.repos.history import a_cluster, a_delivery, a_gitrepo, a_revision, failing
from tests.repos.refusals import CANARY, REFUSALS, everything

pytestmark = pytest.mark.django_db
LIST, ADD = "/admin/repos/gitrepo/", "/admin/repos/gitrepo/add/"
GOOD: dict[str, Any] = {
    "name": "shop",
    "url": "https://git.example.com/team/shop.git",
    "branch": "main",
    "paths": '["deploy"]',
    "targets": '[{"cluster": "prod-eu"}]',
}
SCRIPT = "<script>alert(1)</script>"


def page_of(gitrepo: GitRepo) -> str:
    return f"{LIST}{gitrepo.pk}/change/"


def as_form(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}


def form_of(gitrepo: GitRepo, **given: Any) -> dict[str, Any]:
    """What a browser sends back of the page, with `given` in it."""
    sent = {
        "url": gitrepo.url,
        "branch": gitrepo.branch,
        "paths": json.dumps(gitrepo.paths),
        "targets": json.dumps(gitrepo.targets),
        "polling_interval": gitrepo.polling_interval,
        "credential": gitrepo.credential_id or "",
    }
    return {**sent, **({"paused": "on"} if gitrepo.paused else {}), **given}


def refused(response: Any, field: str) -> None:
    assert response.status_code == 200, response
    errors = response.context["adminform"].form.errors
    assert list(errors) == [field]
    assert CANARY not in str(errors)


def messages_of(response: Any) -> str:
    return " ".join(str(message) for message in response.context["messages"])


# -- the form ---------------------------------------------------------------------------------------------------------


def test_adding_registers(page: Client) -> None:
    response = page.post(ADD, GOOD)
    assert response.status_code == 302, response.context["adminform"].form.errors
    gitrepo = GitRepo.objects.get()
    assert (gitrepo.branch, gitrepo.paths, gitrepo.targets) == ("main", ["deploy"], [{"cluster": "prod-eu"}])
    assert gitrepo.remote.next_poll_at is not None
    assert gitrepo.requested == gitrepo.remote.wakes
    assert gitrepo.history.get().history_user == User.objects.get(username="browser")


@pytest.mark.parametrize("empty", ["", "null", "[]"])
def test_empty_lists(page: Client, empty: str) -> None:
    assert page.post(ADD, {**GOOD, "paths": empty, "targets": empty}).status_code == 302
    assert (GitRepo.objects.get().paths, GitRepo.objects.get().targets) == ([], [])


def test_saving_without_a_change_changes_nothing(page: Client) -> None:
    gitrepo = a_gitrepo(branch="main", paths=["deploy"])
    before = everything()
    assert page.post(page_of(gitrepo), form_of(gitrepo)).status_code == 302
    assert everything() == before


class Fields(HTMLParser):
    """What a browser sends of a page if nothing is typed."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, str] = {}
        self.open: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        name = given.get("name") or ""
        if (tag == "input" and given.get("type") not in ("submit", "checkbox")) or "checked" in given:
            self.sent[name] = given.get("value") or ("on" if "checked" in given else "")
        elif tag in ("textarea", "select"):
            self.open = name
            self.sent[name] = ""
        elif tag == "option" and "selected" in given and self.open:
            self.sent[self.open] = given.get("value") or ""

    def handle_data(self, data: str) -> None:
        if self.open and self.lasttag == "textarea":
            self.sent[self.open] += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("textarea", "select"):
            self.open = None


def opened(page: Client, path: str) -> dict[str, str]:
    parser = Fields()
    parser.feed(page.get(path).content.decode())
    return {name: value.removeprefix("\n") for name, value in parser.sent.items()}


def test_an_edit_meanwhile_of_another_field_holds(page: Client) -> None:
    gitrepo = a_gitrepo(branch="main", paths=["deploy"], keep_resources=True)
    sent = opened(page, page_of(gitrepo))
    before = everything()
    assert page.post(page_of(gitrepo), sent).status_code == 302
    assert everything() == before
    registration.edit(gitrepo.pk, {"targets": [{"cluster": "prod-eu"}], "paused": True, "branch": "next"})
    sent |= {"polling_interval": "1m", "paths": '["deploy", "more"]'}
    del sent["keep_resources"]
    assert page.post(page_of(gitrepo), sent).status_code == 302
    gitrepo.refresh_from_db()
    assert (gitrepo.polling_interval, gitrepo.paths, gitrepo.keep_resources) == ("1m", ["deploy", "more"], False)
    assert (gitrepo.targets, gitrepo.paused, gitrepo.branch) == ([{"cluster": "prod-eu"}], True, "next")


def test_the_page_carries_what_it_was_opened_with(page: Client) -> None:
    text = page.get(page_of(a_gitrepo(branch="main"))).content.decode()
    assert 'name="initial-branch" value="main"' in text


def test_a_request_without_those_values_is_taken_at_its_word(page: Client) -> None:
    gitrepo = a_gitrepo(branch="main", keep_resources=True)
    assert page.post(page_of(gitrepo), form_of(gitrepo, branch="")).status_code == 302
    gitrepo.refresh_from_db()
    assert (gitrepo.branch, gitrepo.keep_resources) == ("", False)


def test_an_edit_of_the_source_asks_for_a_poll(page: Client) -> None:
    gitrepo = a_gitrepo(branch="main")
    wakes = gitrepo.remote.wakes
    assert page.post(page_of(gitrepo), form_of(gitrepo, branch="next")).status_code == 302
    gitrepo.refresh_from_db()
    assert (gitrepo.generation, gitrepo.branch) == (2, "next")
    assert Remote.objects.get().wakes == wakes + 1
    assert Event.objects.filter(reason="Edited", message="changed: branch").exists()


@pytest.mark.parametrize(("given", "field"), REFUSALS)
def test_refusals_of_a_new_one(page: Client, given: dict[str, Any], field: str) -> None:
    before = everything()
    sent = {**GOOD, **({"branch": ""} if field in ("tag", "semver", "commit") else {}), **as_form(given)}
    response = page.post(ADD, sent)
    refused(response, field)
    assert everything() == before


@pytest.mark.parametrize(("given", "field"), REFUSALS)
def test_refusals_of_an_edit(page: Client, given: dict[str, Any], field: str) -> None:
    gitrepo = a_gitrepo()
    before = everything()
    refused(page.post(page_of(gitrepo), form_of(gitrepo, **as_form(given))), field)
    assert everything() == before


@pytest.mark.parametrize(
    "value", ["{}", "5", '"deploy"', "[", "[5]", "true", "NaN", "[" * 5000, "9" * 5000], ids=lambda v: v[:9]
)
@pytest.mark.parametrize("field", ["paths", "targets"])
def test_json_of_another_type(page: Client, field: str, value: str) -> None:
    before = everything()
    refused(page.post(ADD, {**GOOD, field: value}), field)
    assert everything() == before


def test_rules_over_several_fields(page: Client) -> None:
    gitrepo = a_gitrepo(branch="main")
    before = everything()
    refused(page.post(ADD, {**GOOD, "name": "two", "tag": "v1"}), "tag")
    refused(page.post(page_of(gitrepo), form_of(gitrepo, semver=">=1.0.0")), "semver")
    refused(page.post(ADD, GOOD), "name")
    assert everything() == before


def test_another_host_with_the_credential_attached(page: Client) -> None:
    """Case 41."""
    credential = clusters.save_credential({"name": "team", "kind": "token", "secret": CANARY})
    gitrepo = a_gitrepo(credential=credential)
    before = everything()
    refused(page.post(page_of(gitrepo), form_of(gitrepo, url="https://evil.example.com/x.git")), "credential")
    assert everything() == before


def test_the_name_stays(page: Client) -> None:
    gitrepo = a_gitrepo()
    page.post(page_of(gitrepo), form_of(gitrepo, name="other"))
    assert GitRepo.objects.get().name == "shop"


def test_a_refusal_that_the_form_did_not_foresee_is_a_message(page: Client) -> None:
    """Between the form's look and the door's somebody else was quicker; here: the database refuses."""

    def locked(execute: Any, sql: str, *rest: Any) -> Any:
        if "repos_gitrepo" in sql and sql.startswith("INSERT"):
            raise OperationalError("database is locked")
        return execute(sql, *rest)

    with connection.execute_wrapper(locked):
        response = page.post(ADD, GOOD, follow=True)
    assert response.status_code == 200
    assert "Nothing was saved" in messages_of(response)
    assert not Remote.objects.exists()


def test_machinery_is_shown_and_not_written(page: Client) -> None:
    gitrepo = a_gitrepo()
    page.post(page_of(gitrepo), form_of(gitrepo, requested=99, handled=99, generation=99, deleted_at="2026-01-01"))
    gitrepo.refresh_from_db()
    assert (gitrepo.handled, gitrepo.generation, gitrepo.deleted_at) == (0, 1, None)
    form = page.get(page_of(gitrepo)).context["adminform"].form
    assert not {"requested", "handled", "generation", "remote", "force_sync_generation"} & set(form.fields)


# -- what is shown ----------------------------------------------------------------------------------------------------


def test_what_others_wrote_is_text(page: Client) -> None:
    """Case 42, and 11: a URL is no link."""
    gitrepo = a_gitrepo(targets=[{"cluster": "prod-eu"}])
    revision = a_revision(gitrepo, job="failed", failures=1)
    delivery = a_delivery(revision, a_cluster(), state="failed")
    for rows in (gitrepo.jobs, type(delivery).objects):
        rows.update(last_error=SCRIPT)
    failing(gitrepo, SCRIPT)
    GitRepo.objects.update(ref_error=SCRIPT)
    Event.objects.update(message=f"\x1b[31m{SCRIPT}=cmd|x", reason=SCRIPT)
    for path in (LIST, page_of(gitrepo), "/admin/repos/event/", "/admin/repos/remote/", "/admin/repos/syncjob/"):
        text = page.get(path).content.decode()
        assert SCRIPT not in text, path
        assert "&lt;script&gt;" in text, path
        assert f'href="{gitrepo.url}' not in text


def test_the_list_says_who_is_behind(page: Client) -> None:
    gitrepo = a_gitrepo()
    a_delivery(a_revision(gitrepo), a_cluster())
    failing(a_gitrepo("pay"))
    response = page.get(LIST)
    text = response.content.decode()
    for shown in (
        "Ready",
        "ErrPolling",
        "the server answered 502",
        "1/1",
        f"{1:040x}"[:12],
        "git.example.com/team/shop.git",
    ):
        assert shown in text
    names = [g.name for g in page.get(f"{LIST}?display_state=ErrPolling").context["cl"].result_list]
    assert names == ["pay"]
    assert [g.name for g in page.get(f"{LIST}?q=shop").context["cl"].result_list] == ["shop"]


def test_the_list_costs_the_same_however_long(page: Client) -> None:
    counts = []
    for first, last in ((0, 3), (3, 30)):
        for number in range(first, last):
            a_delivery(a_revision(a_gitrepo(f"repo-{number}")), a_cluster(f"cluster-{number}"))
        with CaptureQueriesContext(connection) as queries:
            assert page.get(LIST).status_code == 200
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 14


def test_an_empty_list_says_what_to_do(page: Client) -> None:
    assert "import_gitrepos" in page.get(LIST).content.decode()
    a_gitrepo()
    assert "import_gitrepos" not in page.get(LIST).content.decode()
    assert "take away a filter" in page.get(f"{LIST}?q=nothing").content.decode()


def test_the_page_shows_the_last_rows(page: Client) -> None:
    gitrepo = a_gitrepo()
    for _ in range(25):
        revision = a_revision(gitrepo)
    a_delivery(revision, a_cluster())
    text = page.get(page_of(gitrepo)).content.decode()
    assert f"{25:040x}" in text
    assert f"{6:040x}" in text
    assert f"{5:040x}" not in text, "twenty of them"
    assert "1 delivered" in text


def test_history_is_to_be_read(page: Client) -> None:
    gitrepo = a_gitrepo()
    registration.edit(gitrepo.pk, {"branch": "next"})
    history = f"{LIST}{gitrepo.pk}/history/"
    assert page.get(history).status_code == 200
    first = gitrepo.history.earliest()
    assert page.get(f"{history}{first.pk}/").status_code == 200
    assert page.post(f"{history}{first.pk}/", form_of(gitrepo)).status_code == 405
    registration.delete(gitrepo.pk)
    assert page.get(history).status_code == 200
    assert page.get(f"{history}{first.pk}/").status_code == 200


# -- actions and deleting ----------------------------------------------------------------------------------------------


def act(page: Client, action: str, *gitrepos: GitRepo, **more: str) -> Any:
    sent = {"action": action, "_selected_action": [g.pk for g in gitrepos], **more}
    return page.post(LIST, sent, follow=True)


def test_actions(page: Client) -> None:
    gitrepo = a_gitrepo()
    delivery = a_delivery(a_revision(gitrepo), a_cluster(), state="held")
    assert "1 paused" in messages_of(act(page, "pause", gitrepo))
    gitrepo.refresh_from_db()
    assert gitrepo.paused
    act(page, "resume", gitrepo)
    act(page, "sync_now", gitrepo)
    act(page, "approve", gitrepo)
    gitrepo.refresh_from_db()
    delivery.refresh_from_db()
    assert (gitrepo.paused, gitrepo.force_sync_generation, delivery.approved_sequence) == (False, 1, 1)


def test_actions_need_the_right(client: Client) -> None:
    gitrepo = a_gitrepo()
    user = User.objects.create_user("reader", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_gitrepo"))
    client.force_login(user)
    act(client, "pause", gitrepo)
    gitrepo.refresh_from_db()
    assert not gitrepo.paused
    assert client.post(page_of(gitrepo), form_of(gitrepo, branch="x")).status_code == 403


def test_deleting_one_and_several(page: Client) -> None:
    one, two, three = (a_gitrepo(name) for name in ("one", "two", "three"))
    for gitrepo in (one, two, three):
        a_delivery(a_revision(gitrepo), a_cluster())
    assert page.post(f"{LIST}{one.pk}/delete/", {"post": "yes"}).status_code == 302
    act(page, "delete_selected", two, three, post="yes")
    assert GitRepo.objects.filter(deleted_at__isnull=False).count() == 3, "tombstones until the removals have ended"
    assert page.get(LIST).context["cl"].result_count == 0
    assert page.get(page_of(one)).status_code == 302
