"""Collecting the bundles of a machine, and everything together."""

import contextlib
import os
import threading
import time
from pathlib import Path

import pytest
from pytest_django import Settings

from repos import retention
from repos.models import Bundle, Remote
from repos.retention import touch_bundle
from tests.core import cluster, delivery_of, fresh, later
from tests.git_servers import Repository
from tests.workers.test_collect import DAY, HOUR, newest, resynced, source, synced, used
from workers import bundles
from workers import collect as collecting
from workers.bundle.store import BundleStore
from workers.collect import collect, collect_sometimes, sweep
from workers.deliver.session import claim_deliveries, deliver
from workers.prune import prune

__all__ = ["source"]


pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folders")]


# -- bundles -------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(settings: Settings) -> BundleStore:
    return BundleStore(settings.BUNDLE_DIR)


def stored(store: BundleStore, content: bytes = b"x", *, hours_ago: float = 0) -> str:
    with store.draft() as draft:
        draft.write(content)
    aged(store, draft.sha256, hours_ago)
    return draft.sha256


def aged(store: BundleStore, name: str, hours: float) -> None:
    at = time.time() - hours * HOUR
    os.utime(store.path_of(name), (at, at))


def a_row(sha256: str, hours_ago: float = 0) -> Bundle:
    return Bundle.objects.create(sha256=sha256, size_bytes=1, files=1, last_used_at=later(-hours_ago * HOUR))


@pytest.mark.parametrize(
    ("file_hours", "has_row", "left"), [(7, False, False), (5.9, False, True), (7, True, True), (99, True, True)]
)
def test_a_file_goes_without_a_row_after_its_grace(
    store: BundleStore, file_hours: float, has_row: bool, left: bool
) -> None:
    name = stored(store, hours_ago=file_hours)
    if has_row:
        a_row(name)
    assert collect()["bundle-files"] == int(not left)
    assert store.exists(name) is left


def test_the_row_goes_first_then_the_file(store: BundleStore) -> None:
    name = stored(store, hours_ago=7)
    a_row(name, hours_ago=7)
    assert collect()["bundle-files"] == 0
    assert prune()["bundles"] == 1
    assert store.exists(name), "a process that dies here leaves a file without a row"
    assert collect()["bundle-files"] == 1
    assert not store.exists(name)


def test_files_go_a_batch_at_a_time(store: BundleStore) -> None:
    for number in range(5):
        stored(store, b"%d" % number, hours_ago=7)
    assert [collect(limit=2)["bundle-files"] for _ in range(4)] == [2, 2, 1, 0]


def test_a_bundle_that_is_made_again_while_its_file_is_about_to_go(store: BundleStore) -> None:
    """The collector has found the file old and without a row; before it removes it, a job stores it again."""
    name = stored(store, hours_ago=7)
    stored(store)

    assert store.delete_if_older(name, 6 * HOUR) is False

    with store.open_bundle(name):
        pass


def test_a_collector_that_died_with_a_file_in_its_hand(store: BundleStore) -> None:
    young, old, twice = stored(store, b"young"), stored(store, b"old", hours_ago=7), stored(store, b"twice")
    for name in (young, old, twice):
        (store.folder / "leaving").mkdir(exist_ok=True)
        store.path_of(name).rename(store.folder / "leaving" / f"{name}.dead")
    stored(store, b"twice")

    assert collect()["bundle-files"] == 1

    assert [store.exists(name) for name in (young, old, twice)] == [True, False, True]
    assert list((store.folder / "leaving").iterdir()) == []


@pytest.mark.timeout(60)
def test_many_jobs_and_collectors_at_one_bundle(store: BundleStore) -> None:
    """Whatever comes between: what was stored last and young is there in the end, and nothing is left aside."""
    name = stored(store)
    over = threading.Event()
    errors: list[BaseException] = []

    def collects() -> None:
        try:
            while not over.is_set():
                store.delete_if_older(name, 6 * HOUR)
                store.sweep_leaving(6 * HOUR)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=collects) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(150):
            with contextlib.suppress(FileNotFoundError):
                aged(store, name, 7)
            stored_name = stored_quietly(store)
            assert stored_name == name
    finally:
        over.set()
        for thread in threads:
            thread.join(20)
    assert not errors
    store.sweep_leaving(6 * HOUR)
    assert store.exists(name)
    assert list((store.folder / "leaving").iterdir()) == []


def stored_quietly(store: BundleStore) -> str:
    with store.draft() as draft:
        draft.write(b"x")
    return draft.sha256


def test_drafts_of_dead_writers_go(store: BundleStore) -> None:
    stored(store)
    draft = store.folder / "drafts" / "draft-dead"
    draft.write_bytes(b"half")
    assert sweep()["drafts"] == 0
    os.utime(draft, (time.time() - 7 * HOUR,) * 2)
    assert sweep()["drafts"] == 1


def test_opening_a_bundle_marks_it_as_in_use(source: Repository) -> None:
    synced(source)
    Bundle.objects.update(last_used_at=later(-5 * HOUR))
    row = Bundle.objects.get()
    with bundles.open_bundle(row.sha256):
        assert fresh(row).last_used_at > later(-60)


# -- together ------------------------------------------------------------------------------------------------------


def test_after_everything_was_pruned_and_collected_deliveries_are_still_made(
    source: Repository, tmp_path: Path, settings: Settings
) -> None:
    settings.RETENTION_REVISIONS = 1
    place = cluster()
    type(place).objects.update(settings={"path": str(tmp_path / "clusters" / "prod-eu")})
    gitrepo = synced(source, targets=[{"cluster": "prod-eu"}])
    for number in range(3):
        source.commit({"deploy/app.yaml": f"{number}"})
        resynced(gitrepo, source)
    Bundle.objects.update(last_used_at=later(-9 * HOUR))
    store = bundles.store()
    for name, _ in list(store.names()):
        aged(store, name, 9)

    pruned, collected = prune(), collect()

    assert (pruned["revisions"], pruned["bundles"], collected["bundle-files"]) == (3, 3, 3)
    [claimed] = claim_deliveries(1)
    deliver(claimed, bundles.open_bundle)
    row = delivery_of(gitrepo)
    assert (row.state, row.last_error, row.applied_revision) == ("applied", "", newest(gitrepo))
    assert (tmp_path / "clusters/prod-eu/shop/current/deploy/app.yaml").read_text() == "2"


def test_once_in_a_while_is_enough(source: Repository, settings: Settings) -> None:
    """For mirrors and bundles; what killed processes left goes each time."""
    used(synced(source), 8 * DAY)
    draft = settings.BUNDLE_DIR / "drafts" / "draft-dead"
    draft.parent.mkdir(parents=True, exist_ok=True)
    assert collect_sometimes()["mirrors"] == 1
    assert "mirrors" not in collect_sometimes()
    marker = settings.MIRROR_DIR / collecting.MARKER
    for seconds in (-collecting.EVERY_SECONDS - 1, +3600):  # its time has come; the clock was set back
        os.utime(marker, (time.time() + seconds,) * 2)
        assert collect_sometimes()["mirrors"] == 0
        draft.touch()
        os.utime(draft, (time.time() - 7 * HOUR,) * 2)
        assert collect_sometimes() == {"run-folders": 0, "drafts": 1}


def test_one_at_a_time_on_one_machine(settings: Settings) -> None:
    from workers.fetch.locks import locked

    with locked(settings.MIRROR_DIR / collecting.MARKER, shared=False):
        assert "mirrors" not in collect_sometimes()
    assert "mirrors" in collect_sometimes()


def test_one_kind_that_fails_keeps_no_other_from_its_turn(source: Repository, settings: Settings) -> None:
    used(synced(source), 8 * DAY)
    leaving = settings.BUNDLE_DIR / "leaving"
    name = stored(BundleStore(settings.BUNDLE_DIR), hours_ago=9)
    leaving.write_text("a file where a folder should be")
    collected = collect()
    assert "bundle-files" not in collected and collected["mirrors"] == 1
    assert BundleStore(settings.BUNDLE_DIR).exists(name)


def test_machines_that_only_poll_sweep_their_run_folder(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "_run_folder_swept_at", 0.0)
    dead = settings.DATA_DIR / "run" / "git-dead"

    def leave() -> None:
        dead.mkdir(parents=True)
        os.utime(dead, (time.time() - 3600,) * 2)

    leave()
    assert collecting.sweep_run_folder_sometimes() == 1
    leave()
    assert collecting.sweep_run_folder_sometimes() == 0
    assert sweep()["run-folders"] == 1


def test_nothing_here_is_nothing_to_do() -> None:
    assert set((sweep() | collect()).values()) == {0}
    touch_bundle("0" * 64)
    assert retention.prune_bundles(5) == (0, False)
    assert not Remote.objects.exists()
