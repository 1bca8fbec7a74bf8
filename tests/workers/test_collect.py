"""Collecting a machine's disk: real mirrors, real bundles, and jobs that are at work meanwhile."""

import contextlib
import os
from pathlib import Path

import pytest
from django.conf import settings as django_settings
from pytest_django import Settings

from repos import registration
from repos.leases import claim
from repos.models import Counter, GitRepo, Mirror, Revision, SyncJob
from tests.core import MAIN, adopt_all, answered, cluster, expire, fresh, later, register
from tests.git_servers import Repository
from workers import collect as collecting
from workers import sync
from workers.collect import collect, superfluous, too_many
from workers.fetch.mirror import Mirror as MirrorFolder
from workers.prune import prune

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folders")]
HOUR, DAY = 3600.0, 86400.0


@pytest.fixture
def source(tmp_path: Path) -> Repository:
    return source_of(tmp_path, "shop")


def source_of(tmp_path: Path, name: str) -> Repository:
    source = Repository.make(tmp_path / "served" / f"{name}.git")
    source.commit({"deploy/app.yaml": name, "README.md": "one"})
    return source


def synced(source: Repository, name: str = "shop", **spec: object) -> GitRepo:
    gitrepo = register(name, url=source.file_url, paths=["deploy"], **spec)
    resynced(gitrepo, source)
    return fresh(gitrepo)  # type: ignore[no-any-return]


def resynced(gitrepo: GitRepo, source: Repository) -> None:
    heads = {MAIN: source.head(), "refs/heads/big": source.head("big")}
    answered(fresh(gitrepo).remote, {ref: commit for ref, commit in heads.items() if commit})
    adopt_all()
    SyncJob.objects.filter(due_at__isnull=False).update(**SyncJob.due_in(later(-1), 0))
    assert sync.run_session(budget_seconds=20, stopping=lambda: False) >= 1
    assert not SyncJob.objects.exclude(last_error="").exists()


def folder_of(gitrepo: GitRepo) -> MirrorFolder:
    return MirrorFolder(django_settings.MIRROR_DIR / fresh(gitrepo).remote.identity)


def used(gitrepo: GitRepo, seconds_ago: float, **columns: object) -> None:
    Mirror.objects.filter(remote=gitrepo.remote_id).update(last_used_at=later(-seconds_ago), **columns)


def newest(gitrepo: GitRepo) -> Revision:
    return Revision.objects.filter(gitrepo=gitrepo).order_by("-number")[0]


# -- mirrors -------------------------------------------------------------------------------------------------------


def test_the_mirror_of_a_remote_that_is_gone(source: Repository, tmp_path: Path) -> None:
    gone, kept = synced(source), synced(source_of(tmp_path, "pay"), "pay")
    folder = folder_of(gone)
    registration.delete(gone.pk)
    assert collect()["mirrors"] == 0, "its remote is still there"
    assert prune()["remotes"] == 1

    assert collect()["mirrors"] == 1

    assert not folder.folder.exists() and not folder.lock_file.exists()
    assert folder_of(kept).folder.exists()
    assert Counter.objects.get(name="pruned", label="kind=mirrors").value == 1


def test_what_a_killed_process_left_of_a_mirror_goes_too(source: Repository) -> None:
    synced(source)
    left = django_settings.MIRROR_DIR / ("d" * 64 + ".old-17")
    (left / "objects").mkdir(parents=True)
    stranger = django_settings.MIRROR_DIR / "notes.txt"
    stranger.write_text("not ours")
    assert collect()["mirrors"] == 1
    assert not left.exists() and stranger.exists()


def test_a_mirror_of_a_remote_that_has_come_back_stays(source: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    gitrepo = synced(source)
    identity = gitrepo.remote.identity
    # As it looked a moment ago, before the remote was registered again.
    assert collecting._remove_stranger(identity) is False
    assert folder_of(gitrepo).folder.exists()


def test_a_mirror_that_nothing_has_used_for_long(source: Repository, tmp_path: Path) -> None:
    idle, busy = synced(source), synced(source_of(tmp_path, "pay"), "pay")
    used(idle, 8 * DAY)
    used(busy, 6 * DAY)

    assert collect()["mirrors"] == 1

    assert [row.remote_id for row in Mirror.objects.all()] == [busy.remote_id]
    assert not folder_of(idle).folder.exists() and folder_of(busy).folder.exists()
    source.commit({"deploy/app.yaml": "two"})
    resynced(idle, source)
    assert newest(idle).outcome == Revision.Outcome.NO_TARGET, "it is fetched anew"


def test_other_machines_mirrors_are_theirs(source: Repository, settings: Settings) -> None:
    gitrepo = synced(source)
    used(gitrepo, 8 * DAY, worker_host="another")
    assert collect()["mirrors"] == 0
    # What lies here without a row has one now, and its time begins.
    assert Mirror.objects.filter(worker_host=settings.WORKER_HOST).count() == 1
    assert Mirror.objects.filter(worker_host="another").count() == 1


@pytest.mark.parametrize("who", ["a job", "a reader", "a git child of a frozen job"])
def test_a_mirror_in_use_has_its_turn_another_time(source: Repository, who: str) -> None:
    gitrepo = synced(source)
    folder = folder_of(gitrepo)
    used(gitrepo, 8 * DAY)
    with contextlib.ExitStack() as stack:
        if who == "a job":
            assert claim(Mirror, limit=1, seconds=30)
        elif who == "a reader":
            stack.enter_context(folder.reader(deadline_seconds=20))
        else:
            from workers.fetch.locks import locked

            stack.enter_context(locked(folder.lock_file, shared=False))
        assert collect()["mirrors"] == 0
        assert folder.folder.exists() and Mirror.objects.exists()
    for row in Mirror.objects.all():
        expire(row)
    used(gitrepo, 8 * DAY)
    assert collect()["mirrors"] == 1


def test_no_job_gets_a_mirror_that_is_being_collected(source: Repository) -> None:
    gitrepo = synced(source)
    source.commit({"deploy/app.yaml": "two"})
    answered(fresh(gitrepo).remote, {MAIN: source.head()})
    adopt_all()
    with collecting.leased_mirror(Mirror.objects.get().pk) as found:
        assert found is not None
        assert not claim(SyncJob, limit=1, seconds=30, where=sync.free_jobs())
    assert Mirror.objects.get().lease_token is None
    assert claim(SyncJob, limit=1, seconds=30, where=sync.free_jobs())


@pytest.mark.parametrize(
    ("sizes", "most", "gone"),
    [
        ([], 0, []),
        ([(1, 10), (2, 10), (3, 10)], 30, []),
        ([(1, 10), (2, 10), (3, 10)], 29, [1]),
        ([(1, 10), (2, 10), (3, 10)], 10, [1, 2]),
        ([(1, 0), (2, 10), (3, 10)], 10, [2]),
        ([(1, 50)], 10, [1]),
    ],
)
def test_which_mirrors_are_too_many(sizes: list[tuple[int, int]], most: int, gone: list[int]) -> None:
    assert list(too_many(sizes, sum(size for _, size in sizes), most)) == gone


def test_the_least_recently_used_go_when_the_disk_is_full(
    source: Repository, tmp_path: Path, settings: Settings
) -> None:
    rows = [synced(source), synced(source_of(tmp_path, "pay"), "pay"), synced(source_of(tmp_path, "web"), "web")]
    for gitrepo, hours in zip(rows, (1, 3, 2), strict=True):
        used(gitrepo, hours * HOUR, size_bytes=100)
    settings.MIRROR_MAX_BYTES = 200
    assert collect()["mirrors"] == 1
    assert set(Mirror.objects.values_list("remote", flat=True)) == {rows[0].remote_id, rows[2].remote_id}
    settings.MIRROR_MAX_BYTES = 0
    assert collect()["mirrors"] == 0


def test_a_collection_is_bounded(source: Repository, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        used(synced(source_of(tmp_path, name), name), 8 * DAY)
    assert [collect(limit=1)["mirrors"] for _ in range(4)] == [1, 1, 1, 0]


def test_a_budget_that_is_over_leaves_the_rest(source: Repository) -> None:
    used(synced(source), 8 * DAY)
    assert collect(budget_seconds=-1)["mirrors"] == 0


# -- keep refs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refs", "needed", "gone"),
    [
        (["1", "2"], {"1", "2"}, []),
        (["1", "2", "12"], {"1"}, ["12", "2"]),
        (["3/7", "1/7"], {"1"}, ["3/7"]),
        (["probe", "1"], {"1"}, []),
        ([], set(), []),
    ],
)
def test_which_refs_are_superfluous(refs: list[str], needed: set[str], gone: list[str]) -> None:
    assert superfluous(refs, needed) == gone


@pytest.mark.parametrize("how", ["deleted", "deleted, removals to come", "moved"])
def test_a_gitrepo_that_left_holds_no_commit(source: Repository, tmp_path: Path, how: str) -> None:
    first = synced(source)
    held = source.head()
    source.commit({"deploy/app.yaml": "two", "deploy/big.bin": os.urandom(200_000)}, branch="big")
    cluster()
    targets = [{"cluster": "prod-eu"}] if how == "deleted, removals to come" else []
    second = synced(source, "second", branch="big", targets=targets)
    folder = folder_of(first)
    assert set(folder.refs()) == {str(first.pk), str(second.pk)}
    before = Mirror.objects.get(remote=first.remote_id).size_bytes
    if how.startswith("deleted"):
        registration.delete(second.pk)
        assert GitRepo.objects.filter(pk=second.pk).exists() is bool(targets)
    else:
        registration.edit(second.pk, {"url": source_of(tmp_path, "elsewhere").file_url})

    assert collect()["keep-refs"] == 1

    assert folder.refs() == {str(first.pk): held}
    row = Mirror.objects.get(remote=first.remote_id)
    assert row.lease_token is None and row.size_bytes < before - 150_000, "and its objects went"
    assert collect()["keep-refs"] == 0
    source.commit({"deploy/app.yaml": "three"})
    resynced(first, source)
    assert newest(first).commit == source.head()


def test_a_mirror_that_nothing_can_be_asked_of_is_removed(source: Repository) -> None:
    gitrepo, second = synced(source), synced(source, "second")
    registration.delete(second.pk)
    folder = folder_of(gitrepo)
    (folder.folder / "HEAD").write_text("nonsense")
    collect()
    assert not folder.folder.exists() and not Mirror.objects.exists()
    source.commit({"deploy/app.yaml": "two"})
    resynced(gitrepo, source)
