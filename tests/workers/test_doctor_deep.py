"""doctor --deep as a whole: what the doctor makes of the workers' answers."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections

from repos.doctor import deep, probing
from repos.doctor.deep import Examination
from repos.doctor.finding import Finding
from repos.leases import database_now
from repos.models import Adoption, Delivery, GitRepo, Probe, Remote
from tests.core import fresh, later
from tests.git_servers import Repository
from tests.workers.test_probes import Kind, answer, ask, gitrepo, source, work

pytestmark = pytest.mark.usefixtures("folders")

__all__ = ["gitrepo", "source"]


def poll_again() -> None:
    Remote.objects.update(**Remote.due_in(database_now(), 0))
    work()


@pytest.fixture
def workers(gitrepo: GitRepo) -> Iterator[list[Callable[[], None]]]:
    """Workers that answer in a thread of their own, and do before it what a test puts into the list."""
    over = threading.Event()
    turns: list[Callable[[], None]] = []

    def run() -> None:
        try:
            while not over.is_set():
                for turn in turns:
                    turn()
                answer()
                time.sleep(0.05)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    yield turns
    over.set()
    thread.join(timeout=30)


def examined(seconds: float = 15) -> list[Finding]:
    report = Examination(seconds, lambda _: None).run()
    assert report.deep
    return [finding for finding in report.findings if finding.kind != "broker"]


# -- what the doctor makes of it ---------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_sound_house_asked_deeply_is_well(workers: object) -> None:
    assert examined() == []
    assert set(Probe.objects.values_list("kind", flat=True)) == {"remote", "target", "machine"}


@pytest.mark.django_db(transaction=True)
def test_a_push_of_a_moment_ago_is_waited_for(
    workers: list[Callable[[], None]], gitrepo: GitRepo, source: Repository
) -> None:
    head = source.commit({"app.yaml": "two"})

    def poll_later() -> None:
        if Probe.objects.filter(kind=Kind.REMOTE, due_at__isnull=True).exists():
            poll_again()

    workers.append(poll_later)

    assert examined() == []
    assert fresh(gitrepo).observed_commit == head


@pytest.mark.django_db(transaction=True)
def test_a_push_before_its_poll_is_no_error_when_time_is_over(
    workers: object, gitrepo: GitRepo, source: Repository
) -> None:
    source.commit({"app.yaml": "two"})

    assert [(f.kind, f.severity, f.subject) for f in examined(4)] == [("behind", "warning", "gitrepo shop")]


@pytest.mark.django_db(transaction=True)
def test_a_commit_that_a_poll_did_not_bring_was_missed(
    workers: list[Callable[[], None]], gitrepo: GitRepo, source: Repository
) -> None:
    """The remote was polled after the probe, nothing is to be adopted, and the newest revision is still the old one."""
    head = source.commit({"app.yaml": "two"})

    def poll_in_vain() -> None:
        Remote.objects.update(last_poll_at=database_now(), **Remote.due_in(database_now(), 15))

    workers.append(poll_in_vain)

    found = examined()

    assert [(f.kind, f.subject) for f in found] == [("missed", "gitrepo shop")]
    assert head[:12] in found[0].message and found[0].advice


def ahead(shown: Path) -> None:
    for state in shown.parents[1].rglob("state.json"):
        text = json.loads(state.read_text())
        state.write_text(json.dumps({**text, "sequence": 9}))


def as_removed() -> None:
    Delivery.objects.update(
        state="removed",
        removal=True,
        wanted_revision=None,
        wanted_bundle=None,
        applied_revision=None,
        applied_bundle=None,
    )
    GitRepo.objects.update(targets=[])


BROKEN: list[tuple[str, str, Callable[[Path], Any]]] = [
    ("target-differs", "byte for byte", lambda shown: (shown / "app.yaml").write_text("by hand")),
    ("target-differs", "byte for byte", lambda shown: (shown / "more.yaml").write_text("by hand")),
    ("target-differs", "behind", lambda _: Delivery.objects.update(sequence=5, applied_sequence=5)),
    ("target-differs", "ahead", ahead),
    ("not-removed", "recorded", lambda _: as_removed()),
]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("kind", "word", "breaks"), BROKEN, ids=[f"{kind} {word}" for kind, word, _ in BROKEN])
def test_a_target_that_is_not_as_recorded_is_found(
    kind: str, word: str, breaks: Callable[[Path], Any], workers: object, tmp_path: Path
) -> None:
    breaks((tmp_path / "clusters" / "eu" / "shop" / "current").resolve())

    found = [finding for finding in examined() if finding.kind == kind]

    assert [finding.subject for finding in found] == ["delivery of shop at prod-eu"]
    assert word in found[0].message and found[0].advice


@pytest.mark.django_db(transaction=True)
def test_without_workers_it_says_so_in_time(gitrepo: GitRepo) -> None:
    out, err = StringIO(), StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("doctor", "--deep", "--json", "--timeout", "1s", stdout=out, stderr=err)

    report = json.loads(out.getvalue())
    assert ended.value.code == 2
    assert {f["subject"].split(" on ")[0] for f in report["findings"] if f["kind"] == "unanswered"} == {
        "queue poll",
        "queue deliver",
        "queue sync",
    }
    assert "questions" in err.getvalue()


@pytest.mark.django_db(transaction=True)
def test_the_adoption_that_is_due_is_waited_for(gitrepo: GitRepo, source: Repository) -> None:
    """A poll has told, and nobody has adopted it yet: neither missed nor asked again."""
    head = source.commit({"app.yaml": "two"})
    examination = ask(probing.remote_probes())
    answer()
    suspects = list(deep.suspects_of(examination))
    assert [suspect.head for suspect in suspects] == [head]
    Remote.objects.update(last_poll_at=later(5))
    Adoption.objects.update(due_at=later(0))

    run = Examination(5, lambda _: None)
    assert run._became(suspects) == {"cleared": [], "wait": suspects, "ask": []}
    Adoption.objects.update(due_at=None)
    assert run._became(suspects) == {"cleared": [], "wait": [], "ask": suspects}
    Remote.objects.update(consecutive_failures=1, last_error="502")
    assert run._became(suspects) == {"cleared": suspects, "wait": [], "ask": []}
