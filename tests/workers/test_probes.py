"""doctor --deep: what workers answer about remotes, targets and machines, and what the doctor makes of it."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from pytest_django import Settings

from repos.doctor import deep, probing
from repos.leases import claim, database_now
from repos.models import Cluster, Delivery, GitRepo, Mirror, Probe, Remote
from repos.retention import prune_probes
from tests.core import expire, fresh, later, register
from tests.git_servers import Repository
from tests.repos.doctor.house import aged, resynced
from workers import adopt, bundles, probes, sync
from workers.debris import debris, orphans
from workers.deliver.session import claim_deliveries, deliver
from workers.fetch.locks import locked
from workers.poll.everything import RemoteEngine
from workers.poll.session import Session
from workers.tick import tick

pytestmark = pytest.mark.usefixtures("folders")

never: Callable[[], bool] = lambda: False  # noqa: E731
Kind = Probe.Kind


@pytest.fixture
def source(tmp_path: Path) -> Repository:
    source = Repository.make(tmp_path / "served" / "shop.git")
    source.commit({"app.yaml": "one"})
    return source


@pytest.fixture
def gitrepo(source: Repository, tmp_path: Path, db: None) -> GitRepo:
    """Followed, and its commit delivered to a folder."""
    a_cluster(tmp_path)
    gitrepo = register("shop", source.file_url, targets=[{"cluster": "prod-eu"}])
    work()
    resynced()
    aged()
    return fresh(gitrepo)  # type: ignore[no-any-return]


def a_cluster(tmp_path: Path) -> None:
    Cluster.objects.create(name="prod-eu", settings={"path": str(tmp_path / "clusters" / "eu")})


def work() -> None:
    """One turn of every stage."""
    engine = RemoteEngine(50)
    try:
        Session(engine, limit=10, budget_seconds=1, stopping=never).run()
    finally:
        engine.close()
    adopt.run_adoptions(budget_seconds=2, stopping=never)
    sync.run_session(budget_seconds=5, stopping=never)
    for delivery in claim_deliveries(8):
        deliver(delivery, bundles.open_bundle)


def answer() -> None:
    """One turn of every worker that answers the doctor."""
    engine = RemoteEngine(50)
    try:
        probes.ask_remotes(engine, budget_seconds=5, stopping=never)
    finally:
        engine.close()
    probes.ask_targets(bundles.open_bundle, budget_seconds=5, stopping=never)
    probes.look_around(stopping=never)


def ask(*made: list[Probe]) -> uuid.UUID:
    examination = uuid.uuid4()
    probing.make(examination, [probe for some in made for probe in some])
    return examination


# -- what workers answer -----------------------------------------------------------------------------------------


def test_a_remote_is_asked_for_what_is_followed_and_nothing_is_written_to_it(
    gitrepo: GitRepo, source: Repository
) -> None:
    head = source.commit({"app.yaml": "two"})
    before = Remote.objects.values().get()
    ask(probing.remote_probes())

    answer()

    probe = Probe.objects.get()
    assert probe.answer == {"refs": {"refs/heads/main": head}, "asked": ["refs/heads/main"]}
    assert probe.error == "" and probe.due_at is None and probe.ended_at is not None and probe.lease_token is None
    assert Remote.objects.values().get() == before


def test_a_remote_that_does_not_answer_is_an_answer_too(gitrepo: GitRepo, source: Repository) -> None:
    source.folder.rename(source.folder.with_name("gone.git"))
    examination = ask(probing.remote_probes())

    answer()

    assert Probe.objects.get().error
    assert [(f.kind, f.severity) for f in deep.not_asked(examination)] == [("not-asked", "warning")]


def test_a_target_says_what_it_has(gitrepo: GitRepo) -> None:
    ask(probing.target_probes())

    answer()

    delivery = Delivery.objects.get()
    assert delivery.applied_bundle is not None
    sha256 = delivery.applied_bundle.sha256
    order = {"epoch": 0, "sequence": 1, "bundle": sha256}
    assert Probe.objects.get().answer == {
        "recorded": order,
        "found": {**order, "complete": True, "verified": True},
        "moved": False,
    }


def test_a_delivery_that_changes_meanwhile_is_not_judged(gitrepo: GitRepo) -> None:
    examination = ask(probing.target_probes())
    Delivery.objects.update(sequence=2, state="waiting", **Delivery.due_in(database_now(), 0))

    answer()

    assert Probe.objects.get().answer["moved"] is True
    assert [finding for _, finding in deep.differing(examination)] == [None]


def test_a_question_that_kills_its_workers_is_given_up(gitrepo: GitRepo) -> None:
    ask(probing.remote_probes())
    for _ in range(3):
        assert probes.claim_probes(Kind.REMOTE, 1, 30)
        expire(Probe.objects.get())

    assert probes.claim_probes(Kind.REMOTE, 1, 30) == []

    assert "died 3 times" in Probe.objects.get().error
    assert Probe.objects.get().due_at is None


def test_a_late_answer_of_a_worker_that_was_frozen_is_dropped(gitrepo: GitRepo) -> None:
    ask(probing.remote_probes())
    frozen = probes.claim_probes(Kind.REMOTE, 1, 30)[0]
    expire(frozen)
    answer()

    assert probes.answered(frozen, {"refs": {}, "asked": []}) is False
    assert Probe.objects.get().answer["refs"]


def test_a_machine_answers_for_itself_alone(gitrepo: GitRepo, settings: Settings) -> None:
    Mirror.objects.create(remote=fresh(gitrepo).remote, worker_host="elsewhere", last_used_at=database_now())
    Mirror.objects.create(remote=fresh(gitrepo).remote, worker_host="long-gone", last_used_at=later(-2 * 86400))
    ask(probing.machine_probes(database_now()))
    assert set(Probe.objects.values_list("worker_host", flat=True)) == {settings.WORKER_HOST, "elsewhere"}

    answer()

    assert Probe.objects.get(due_at__isnull=True).worker_host == settings.WORKER_HOST


def test_the_tick_rings_for_one_worker_of_each_kind(gitrepo: GitRepo) -> None:
    assert probing.queues_to_ask(database_now()) == []
    ask(probing.remote_probes(), probing.target_probes(), probing.machine_probes(database_now()))
    assert sorted(probing.queues_to_ask(database_now())) == ["deliver", "poll", "sync"]

    claim(Probe, limit=3, seconds=30)

    assert probing.queues_to_ask(database_now()) == []
    tick()


def test_old_questions_are_pruned(gitrepo: GitRepo) -> None:
    ask(probing.remote_probes(), probing.target_probes())
    Probe.objects.filter(kind=Kind.REMOTE).update(created_at=database_now() - timedelta(days=1, seconds=5))

    assert prune_probes(10) == 1
    assert Probe.objects.get().kind == Kind.TARGET


# -- what lies about on a machine --------------------------------------------------------------------------------


def test_a_tidy_machine(gitrepo: GitRepo) -> None:
    assert debris(0, 0) == []


def test_what_dead_processes_left_is_listed_and_left_alone(gitrepo: GitRepo, settings: Settings) -> None:
    mirror = settings.MIRROR_DIR / fresh(gitrepo).remote.identity
    draft = settings.BUNDLE_DIR / "drafts" / "draft-x"
    run_folder = settings.DATA_DIR / "run" / "git-x"
    run_folder.mkdir(parents=True)
    left = [mirror / "shallow.lock", mirror / "objects" / "pack" / "tmp_pack_x", draft, run_folder]
    for path in left[:3]:
        path.touch()
    assert debris(900, 900) == [], "somebody may be at work"
    for path in left:
        os.utime(path, (0, 0))

    found = debris(900, 900)

    assert len(found) == 4 and all(any(str(path) in line for line in found) for path in left)
    assert all(path.exists() for path in left)
    with locked(mirror.with_name(mirror.name + ".lock"), shared=False):
        assert len(debris(900, 900)) == 2, "the mirror is in use"


def test_a_git_process_without_a_worker_is_an_orphan(settings: Settings) -> None:
    settings.MIRROR_DIR.mkdir(parents=True)
    git = settings.MIRROR_DIR / "git-sleeps"
    git.symlink_to("/bin/sleep")
    process = subprocess.Popen([git, "60"], env={"GIT_DIR": f"{settings.MIRROR_DIR}/1"})
    try:
        time.sleep(0.2)
        assert [line for line in orphans() if str(process.pid) in line]
        ours = Path(sys.executable).name
        assert list(orphans(lambda command: any(ours in word or "pytest" in word for word in command))) == []
    finally:
        process.kill()
        process.wait()
    assert list(orphans()) == []
