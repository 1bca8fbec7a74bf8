"""The doctor's doors: the command, the REST answer, and the page that explains its words."""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection, connections
from pytest_django import Settings
from rest_framework.test import APIClient

from fleetsync.redis import redis_client
from repos.doctor.compare import Found, Recorded, target_fault
from repos.doctor.facts import broker
from repos.doctor.finding import ERROR, KINDS, WARNING, Finding, report_of
from repos.doctor.snapshot import snapshot
from repos.leases import database_now
from repos.management.commands.doctor import as_text, exit_code
from repos.models import Counter, Remote
from tests.core import later
from tests.fleetsync.conftest import RedisServer
from tests.repos.doctor.house import aged, delivered, failing_remote, resynced

pytestmark = pytest.mark.django_db
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def well(db: None) -> None:
    resynced()
    delivered()
    aged()


def run(*arguments: str) -> tuple[int, str]:
    """The exit status and what was printed."""
    out = StringIO()
    try:
        call_command("doctor", *arguments, stdout=out, stderr=StringIO())
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code, out.getvalue()
    return 0, out.getvalue()


# -- the command -------------------------------------------------------------------------------------------------


def test_all_is_well() -> None:
    code, text = run()

    assert code == 0 and "Every promise is kept." in text


def test_a_broken_promise_is_told_with_what_to_do_and_ends_with_1() -> None:
    Remote.objects.update(next_poll_at=None)

    code, text = run()

    assert code == 1
    assert "ERROR unscheduled: remote https://git.example.com/team/shop.git" in text
    assert "To do: sync the GitRepo" in text and "1 errors" in text


def test_what_fails_outside_is_told_and_ends_with_0() -> None:
    failing_remote("other")

    code, text = run()

    assert code == 0 and "WARNING failing: remote" in text and "Every promise is kept." in text


def test_json_for_machines() -> None:
    Remote.objects.update(next_poll_at=later(-900))

    code, text = run("--json")

    report = json.loads(text)
    assert code == 1
    assert set(report) == {"healthy", "deep", "examined_at", "errors", "warnings", "totals", "findings"}
    assert (report["healthy"], report["deep"], report["errors"]) == (False, False, 1)
    assert set(report["totals"]) == set(KINDS) and report["totals"]["overdue"] == 1
    assert set(report["findings"][0]) == {"kind", "subject", "message", "advice", "severity", "count"}


def test_seen_repairs_are_seen() -> None:
    Counter.add({("repairs", "kind=job"): 1})
    assert run()[0] == 1
    assert run("--seen-repairs")[0] == 0
    assert run()[0] == 0


def test_a_timeout_is_a_duration() -> None:
    with pytest.raises(CommandError, match="duration"):
        call_command("doctor", "--deep", "--timeout", "soon")


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        pytest.param([], 0, id="nothing"),
        pytest.param([("failing", WARNING)], 0, id="a warning"),
        pytest.param([("unanswered", ERROR)], 2, id="not examined"),
        pytest.param([("unanswered", ERROR), ("overdue", ERROR)], 1, id="not examined, and ill all the same"),
    ],
)
def test_the_exit_status(findings: list[tuple[str, str]], code: int) -> None:
    made = [Finding(kind, "x", "y", "z", severity) for kind, severity in findings]
    assert exit_code(report_of(made, database_now())) == code


def test_what_is_not_told_one_by_one_is_counted() -> None:
    many = [Finding("overdue", f"remote {n}", "late", "look") for n in range(130)]
    assert "… and 30 more of the same kinds" in as_text(report_of(many, database_now()))


def test_without_a_database_nothing_is_known() -> None:
    environment = {**os.environ, "DATABASE_URL": "postgres://fleetsync@127.0.0.1:1/none"}
    ended = subprocess.run(
        [sys.executable, "manage.py", "doctor"], cwd=ROOT, env=environment, capture_output=True, text=True
    )

    assert ended.returncode == 2
    assert "The database does not answer" in ended.stderr and "Traceback" not in ended.stderr


# -- the broker --------------------------------------------------------------------------------------------------


def about_broker() -> list[tuple[str, str, str]]:
    return [(finding.severity, finding.subject, finding.message) for finding in broker(database_now())]


def test_a_broker_that_is_away_is_a_warning() -> None:
    assert [(severity, subject) for severity, subject, _ in about_broker()] == [("warning", "redis")]


def test_a_broker_that_evicts_is_an_error_and_one_that_nobody_empties_a_warning(settings: Settings) -> None:
    with tempfile.TemporaryDirectory(prefix="fleetsync-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            redis_client.cache_clear()
            settings.REDIS_URL = server.url
            assert about_broker() == []

            server.client.config_set("maxmemory-policy", "allkeys-lru")
            server.client.rpush("sync", *["bell"] * 40)

            found = about_broker()
            assert [(severity, subject) for severity, subject, _ in found] == [
                ("warning", "queue sync"),
                ("error", "redis"),
            ]
            assert "40" in found[0][2] and "allkeys-lru" in found[1][2]
        finally:
            server.stop()


# -- REST --------------------------------------------------------------------------------------------------------


def test_staff_gets_the_report(api: APIClient) -> None:
    Remote.objects.update(next_poll_at=later(-900))

    answer = api.get("/api/v1/doctor/")

    assert answer.status_code == 200
    assert answer.json()["totals"]["overdue"] == 1
    assert answer.json()["findings"][0]["subject"].startswith("remote https://")


def test_nobody_else_does(client_of: Callable[..., APIClient]) -> None:
    """A right to see GitRepos is no right to see all of them."""
    assert APIClient().get("/api/v1/doctor/").status_code == 401
    reader = client_of("reader", "view_gitrepo")
    assert reader.get("/api/v1/doctor/").status_code == 403
    User.objects.filter(username="reader").update(is_staff=True)
    assert reader.get("/api/v1/doctor/").status_code == 200


# -- the words ---------------------------------------------------------------------------------------------------


def test_the_page_explains_every_kind_once() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    table = page.split("## What the doctor says")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([a-z-]+) \| (.+) \| (.+) \|$", table, re.M)
    assert [kind for kind, _, _ in rows if kind != "kind"] == list(KINDS)


@pytest.mark.django_db(transaction=True)
def test_inside_a_snapshot_nobody_waits_and_nothing_moves() -> None:
    """What is committed meanwhile is not seen, and whoever commits it does not wait."""

    def write() -> None:
        Counter.add({("polls", "result=ok"): 1})
        connections.close_all()

    with snapshot():
        assert not Counter.objects.exists()
        writer = threading.Thread(target=write)
        writer.start()
        writer.join(timeout=20)
        assert not writer.is_alive()
        assert not Counter.objects.exists()
    assert Counter.objects.exists()
    assert not connection.in_atomic_block


# -- a target beside its record ----------------------------------------------------------------------------------

X, Y = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("recorded", "found", "kind", "word"),
    [
        pytest.param((0, 3, X), (0, 3, X, True, True), None, "", id="as recorded"),
        pytest.param((0, 3, X), None, "target-differs", "nothing", id="empty"),
        pytest.param((0, 3, X), (0, 3, X, True, False), "target-differs", "byte for byte", id="drift"),
        pytest.param((0, 3, X), (0, 3, X, False, None), "target-differs", "interrupted", id="half done"),
        pytest.param((0, 3, X), (0, 3, Y, True, None), "target-differs", "bundle bbb", id="another bundle"),
        pytest.param((0, 3, X), (0, 3, "", True, None), "target-differs", "has nothing", id="removed"),
        pytest.param((0, 3, X), (0, 2, Y, True, None), "target-differs", "behind", id="older"),
        pytest.param((0, 3, X), (0, 4, Y, True, None), "target-differs", "restored", id="newer"),
        pytest.param((1, 3, X), (0, 9, X, True, None), "target-differs", "behind", id="an older epoch"),
        pytest.param((0, 9, X), (1, 3, X, True, None), "target-differs", "ahead", id="a newer epoch"),
        pytest.param((0, 3, ""), None, None, "", id="removed where nothing was"),
        pytest.param((0, 3, ""), (0, 3, "", True, None), None, "", id="removed as recorded"),
        pytest.param((0, 3, ""), (0, 3, X, True, None), "not-removed", "bundle aaa", id="not removed"),
        pytest.param((0, 3, ""), (0, 3, "", False, None), "not-removed", "there", id="removed by half"),
    ],
)
def test_a_target_beside_its_record(recorded: Any, found: Any, kind: str | None, word: str) -> None:
    fault = target_fault(Recorded(*recorded), Found(*found) if found else None)

    assert (fault[0] if fault else None) == kind
    assert word in (fault[1] if fault else "")
