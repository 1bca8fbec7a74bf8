"""The one door to a GitRepo's spec: what each change asks for."""

import threading
import time
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import connections

from repos import registration
from repos.leases import database_now
from repos.models import Credential, Delivery, Event, GitRepo, Remote, Revision, SyncJob
from repos.registration import delete, edit, force, purge, register
from tests import core
from tests.core import URL, A, B, cluster, delivery_of, fresh, is_now_due, observed, open_job
from tests.core import synced as synced_revision

pytestmark = pytest.mark.django_db


@pytest.fixture
def gitrepo() -> GitRepo:
    """Registered, polled and adopted: nothing is pending."""
    gitrepo = core.register(targets=[{"cluster": "prod-eu"}])
    observed(gitrepo, A)
    return fresh(gitrepo)  # type: ignore[no-any-return]


@pytest.fixture
def quiet(gitrepo: GitRepo) -> GitRepo:
    """The same, and the remote is scheduled for later."""
    Remote.objects.update(**Remote.due_in(database_now(), 15))
    return gitrepo


def pending(gitrepo: GitRepo) -> bool:
    row = fresh(gitrepo)
    return bool(row.requested > row.handled)


def is_due(remote: Remote) -> bool:
    due = fresh(remote).next_poll_at
    return due is not None and due <= database_now()


def credential(name: str = "team") -> Credential:
    return Credential.objects.create(name=name, kind="token", secret="s3cret")


# -- registering ---------------------------------------------------------------------------------------------------


def test_a_new_gitrepo_is_polled_at_once() -> None:
    gitrepo = core.register()

    assert is_due(gitrepo.remote)
    assert pending(gitrepo)
    assert fresh(gitrepo.remote).interval_seconds == 15
    assert (fresh(gitrepo).generation, fresh(gitrepo).latest_revision) == (1, 0)
    assert Event.objects.filter(gitrepo=gitrepo, reason="Registered").exists()


def test_gitrepos_with_one_url_and_one_access_share_a_remote() -> None:
    one, two = core.register("one"), core.register("two", url="https://GIT.example.com:443/team/shop.git", branch="dev")
    other = core.register("three", insecure_skip_tls_verify=True)
    private = core.register("four", credential=credential())

    assert one.remote_id == two.remote_id
    assert len({one.remote_id, other.remote_id, private.remote_id}) == 3
    assert len(set(Remote.objects.values_list("host", flat=True))) == 1
    assert (fresh(one).requested, fresh(two).requested) == (1, 2)


def test_a_pinned_commit_gets_its_job_and_is_never_polled() -> None:
    gitrepo = core.register(commit=A)

    assert fresh(gitrepo.remote).next_poll_at is None
    assert fresh(gitrepo.remote).interval_seconds is None
    assert open_job(gitrepo).revision.commit == A
    assert is_now_due(open_job(gitrepo).due_at)
    assert not pending(gitrepo)


def test_a_gitrepo_that_does_not_poll_is_polled_once() -> None:
    gitrepo = core.register(disable_polling=True)
    assert is_due(gitrepo.remote)

    observed(gitrepo, A)

    assert fresh(gitrepo.remote).next_poll_at is None
    assert open_job(gitrepo).revision.commit == A


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        pytest.param({"name": "Not A Name"}, "name", id="name"),
        pytest.param({"url": "ftp://x/y"}, "url", id="scheme"),
        pytest.param({"url": "https://user:secret@example.com/x"}, "url", id="password in the URL"),
        pytest.param({"polling_interval": "1d"}, "polling_interval", id="interval"),
        pytest.param({"tag": "v1", "branch": "main"}, "tag", id="two sources"),
        pytest.param({"paths": ["../etc"]}, "paths", id="paths"),
        pytest.param({"targets": [{"nobody": 1}]}, "targets", id="targets"),
    ],
)
def test_a_bad_spec_names_its_field_and_leaves_nothing(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        register({"name": "shop", "url": URL, **spec})

    assert field in caught.value.message_dict
    assert "secret" not in str(caught.value)
    assert not GitRepo.objects.exists() and not Remote.objects.exists()


def test_a_name_is_given_once() -> None:
    core.register()

    with pytest.raises(ValidationError) as caught:
        core.register(url="https://git.example.com/other.git")

    assert "exists already" in str(caught.value)


# -- what raises the generation ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "generation", "asks", "wakes"),
    [
        pytest.param({"url": "https://git.example.com/team/other.git"}, 1, True, True, id="url"),
        pytest.param({"branch": "dev"}, 1, True, True, id="branch"),
        pytest.param({"branch": "", "tag": "v1"}, 1, True, True, id="tag"),
        pytest.param({"branch": "", "semver": ">=1.0.0"}, 1, True, True, id="semver"),
        pytest.param({"branch": "", "commit": B}, 1, False, False, id="commit"),
        pytest.param({"paths": ["deploy"]}, 1, True, True, id="paths"),
        pytest.param({"force_sync_generation": 1}, 0, True, True, id="force"),
        pytest.param({"polling_interval": "1m"}, 0, False, True, id="interval"),
        pytest.param({"disable_polling": True}, 0, False, True, id="disabled"),
        pytest.param({"insecure_skip_tls_verify": True}, 0, False, True, id="tls"),
        pytest.param({"paused": True}, 0, False, False, id="paused"),
        pytest.param({"targets": []}, 0, False, False, id="targets"),
        pytest.param({"correct_drift": True}, 0, False, False, id="drift"),
        pytest.param({"keep_resources": True}, 0, False, False, id="keep"),
        pytest.param({}, 0, False, False, id="nothing"),
        pytest.param({"branch": "main", "paths": []}, 0, False, False, id="the same values"),
    ],
)
def test_what_an_edit_asks_for(
    quiet: GitRepo, changes: dict[str, Any], generation: int, asks: bool, wakes: bool
) -> None:
    edit(quiet.pk, changes)

    row = fresh(quiet)
    assert row.generation - quiet.generation == generation
    assert pending(quiet) == asks
    assert is_due(row.remote) == wakes
    if wakes:
        assert row.remote.wakes > row.remote.answered
    if asks:
        assert row.requested == row.remote.wakes


def test_a_changed_credential_moves_to_another_remote_and_asks_for_no_job(quiet: GitRepo) -> None:
    edit(quiet.pk, {"credential": credential()})

    row = fresh(quiet)
    assert row.remote_id != quiet.remote_id
    assert is_due(row.remote)
    assert fresh(quiet.remote).next_poll_at is None
    observed(quiet, A)
    assert Revision.objects.count() == 1
    observed(quiet, B)
    assert Revision.objects.count() == 2


def test_a_credential_does_not_go_to_another_host() -> None:
    gitrepo = core.register(credential=credential())

    with pytest.raises(ValidationError) as caught:
        edit(gitrepo.pk, {"url": "https://evil.example.com/team/shop.git"})

    assert "credential" in caught.value.message_dict
    edit(gitrepo.pk, {"url": "https://evil.example.com/team/shop.git", "credential": None})
    edit(gitrepo.pk, {"credential": credential("other")})


def test_the_same_host_keeps_its_credential() -> None:
    gitrepo = core.register(credential=credential())

    edit(gitrepo.pk, {"url": "https://git.example.com/team/renamed.git"})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        pytest.param({"name": "other"}, "name", id="name"),
        pytest.param({"force_sync_generation": 0}, "force_sync_generation", id="a lower force"),
        pytest.param({"tag": "v1"}, "tag", id="two sources"),
        pytest.param({"generation": 7}, "generation", id="no field of the spec"),
        pytest.param({"url": "nonsense"}, "url", id="url"),
        pytest.param({"polling_interval": "often"}, "polling_interval", id="interval"),
    ],
)
def test_a_refused_edit_changes_nothing(quiet: GitRepo, changes: dict[str, Any], field: str) -> None:
    force(quiet.pk)
    before, remote = fresh(quiet), fresh(quiet.remote)

    with pytest.raises(ValidationError) as caught:
        edit(quiet.pk, changes)

    assert field in caught.value.message_dict
    assert (fresh(quiet).generation, fresh(quiet).requested) == (before.generation, before.requested)
    assert fresh(remote).wakes == remote.wakes


# -- pausing -------------------------------------------------------------------------------------------------------


def test_a_pause_takes_work_off_the_queue_and_a_resume_puts_it_back(gitrepo: GitRepo) -> None:
    cluster()
    synced_revision(gitrepo)
    edit(gitrepo.pk, {"keep_resources": True})  # matches again
    assert delivery_of(gitrepo).due_at is not None

    edit(gitrepo.pk, {"paused": True})
    assert (open_job(gitrepo).due_at, delivery_of(gitrepo).due_at) == (None, None)
    observed(gitrepo, B)
    assert (fresh(gitrepo).observed_commit, open_job(gitrepo).due_at) == (B, None)

    edit(gitrepo.pk, {"paused": False})
    assert is_now_due(open_job(gitrepo).due_at)
    assert open_job(gitrepo).revision.commit == B
    assert is_now_due(delivery_of(gitrepo).due_at)


def test_an_edit_during_a_pause_waits(gitrepo: GitRepo) -> None:
    edit(gitrepo.pk, {"paused": True, "branch": "", "commit": B})
    assert open_job(gitrepo).due_at is None

    edit(gitrepo.pk, {"paused": False, "commit": A})

    assert open_job(gitrepo).due_at is not None


# -- deleting ------------------------------------------------------------------------------------------------------


def test_what_delivered_nothing_goes_at_once(gitrepo: GitRepo) -> None:
    delete(gitrepo.pk)

    assert not GitRepo.objects.exists()
    assert not SyncJob.objects.exists() and not Revision.objects.exists()
    assert fresh(gitrepo.remote).next_poll_at is None or not is_due(gitrepo.remote)
    assert fresh(gitrepo.remote).interval_seconds is None


def test_a_tombstone_stays_until_its_removals_have_ended(gitrepo: GitRepo) -> None:
    cluster()
    synced_revision(gitrepo)
    edit(gitrepo.pk, {"correct_drift": True, "targets": [{"cluster": "prod-eu"}, {"cluster": "x"}]})

    delete(gitrepo.pk)

    row = delivery_of(gitrepo)
    assert (row.removal, row.state, row.sequence) == (True, Delivery.State.WAITING, 2)
    assert row.due_at is not None
    assert not purge(fresh(gitrepo))
    again = core.register()
    assert again.uuid != gitrepo.uuid
    Delivery.objects.update(state=Delivery.State.REMOVED, **Delivery.not_due())
    assert purge(fresh(gitrepo))
    assert list(GitRepo.objects.values_list("pk", flat=True)) == [again.pk]


def test_deleting_what_keeps_its_resources_removes_nothing(gitrepo: GitRepo) -> None:
    cluster()
    synced_revision(gitrepo)
    edit(gitrepo.pk, {"keep_resources": True})

    delete(gitrepo.pk)

    assert not GitRepo.objects.exists()


def test_a_removal_that_a_pause_held_up_goes_on_with_the_deletion(gitrepo: GitRepo) -> None:
    """Nobody resumes a tombstone."""
    cluster()
    synced_revision(gitrepo)
    edit(gitrepo.pk, {"keep_resources": True})
    edit(gitrepo.pk, {"keep_resources": False})
    edit(gitrepo.pk, {"targets": []})
    edit(gitrepo.pk, {"paused": True})
    assert (delivery_of(gitrepo).removal, delivery_of(gitrepo).due_at) == (True, None)

    delete(gitrepo.pk)

    assert delivery_of(gitrepo).due_at is not None


def test_a_deleted_gitrepo_is_edited_by_nobody(gitrepo: GitRepo) -> None:
    GitRepo.objects.update(deleted_at=database_now())

    for door in (lambda: edit(gitrepo.pk, {"paused": True}), lambda: force(gitrepo.pk), lambda: delete(gitrepo.pk)):
        with pytest.raises(GitRepo.DoesNotExist):
            door()
    assert not registration.ask(gitrepo.pk)


# -- two at once ---------------------------------------------------------------------------------------------------


def both(*works: Any) -> None:
    """Run these at the same moment, each in a thread with a connection of its own."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(works))

    def run(work: Any) -> None:
        try:
            barrier.wait(10)
            work()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []


@pytest.mark.django_db(transaction=True)
def test_edits_of_different_fields_both_hold() -> None:
    gitrepo = core.register()

    both(
        lambda: edit(gitrepo.pk, {"paths": ["deploy"]}),
        lambda: edit(gitrepo.pk, {"polling_interval": "1m"}),
        lambda: force(gitrepo.pk),
        lambda: force(gitrepo.pk),
    )

    row = fresh(gitrepo)
    assert (row.paths, row.polling_interval, row.force_sync_generation, row.generation) == (["deploy"], "1m", 2, 2)
    assert row.requested == max(row.requested, row.follows_since) <= row.remote.wakes


@pytest.mark.django_db(transaction=True)
def test_gitrepos_that_change_places_do_not_wait_for_each_other() -> None:
    """Each locks the other's Remote as well: in the order of their keys."""
    one, two = core.register("one"), core.register("two", insecure_skip_tls_verify=True)

    def swing(gitrepo: GitRepo, first: bool) -> None:
        for turn in range(6):
            edit(gitrepo.pk, {"insecure_skip_tls_verify": first ^ bool(turn % 2)})

    both(lambda: swing(one, True), lambda: swing(two, False), lambda: swing(one, False))

    for gitrepo in (one, two):
        row = fresh(gitrepo)
        assert row.requested <= row.remote.wakes
        assert row.remote.insecure_skip_tls_verify == row.insecure_skip_tls_verify
    for remote in Remote.objects.all():
        follows = remote.gitrepos.exists()
        assert remote.interval_seconds == (15 if follows else None)


@pytest.mark.django_db(transaction=True)
def test_one_of_two_registrations_of_a_name_is_refused_with_a_sentence() -> None:
    refused: list[ValidationError] = []

    def registers() -> None:
        try:
            core.register()
        except ValidationError as error:
            refused.append(error)

    both(registers, registers, registers)

    assert GitRepo.objects.count() == 1
    assert ["exists already" in str(error) for error in refused] == [True, True]


@pytest.mark.django_db(transaction=True)
def test_a_registration_does_not_meet_a_remote_that_is_being_pruned() -> None:
    from repos.retention import prune_remotes

    def registers() -> None:
        for number in range(10):
            delete(core.register(f"r{number}").pk)

    def prunes() -> None:
        for _ in range(30):
            prune_remotes(10)
            time.sleep(0.005)

    both(registers, prunes)


def test_the_interval_of_a_gitrepo(settings: Any) -> None:
    settings.GITREPO_POLLING_INTERVAL = 20.0
    assert [registration.interval_seconds(text) for text in ("", "0", "0s", "5s", "1h30m")] == [20, 20, 20, 5, 5400]
