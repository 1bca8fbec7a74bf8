"""Requests through registration: edits, forced syncs and moves to another remote, and which answers are for them."""

import pytest

from repos import registration
from repos.models import GitRepo, Revision
from repos.registration import edit, force
from tests import core
from tests.core import MAIN, A, B, adopt_all, answered, fresh, observed, open_job
from tests.repos.test_registration import gitrepo, is_due, pending, quiet

__all__ = ["gitrepo", "quiet"]


pytestmark = pytest.mark.django_db


# -- requests and answers ------------------------------------------------------------------------------------------


def test_an_answer_from_before_the_edit_is_not_adopted(gitrepo: GitRepo) -> None:
    """The poll was claimed, then the branch was edited, then the poll ended."""
    read = fresh(gitrepo.remote).wakes
    edit(gitrepo.pk, {"branch": "dev"})

    answered(gitrepo.remote, {MAIN: B, "refs/heads/dev": B}, wakes=read)
    adopt_all()

    assert pending(gitrepo)
    assert Revision.objects.count() == 1
    observed(gitrepo, B, "refs/heads/dev")
    assert not pending(gitrepo)
    assert open_job(gitrepo).revision.reason == Revision.Reason.SPEC


def test_a_head_seen_while_somebody_asks_again_is_not_kept_out(gitrepo: GitRepo) -> None:
    """Else a branch that is announced more often than it can be polled would never be followed."""
    read = fresh(gitrepo.remote).wakes
    registration.ask(gitrepo.pk)

    answered(gitrepo.remote, {MAIN: B}, wakes=read)
    adopt_all()

    assert fresh(gitrepo).observed_commit == B
    assert pending(gitrepo)


def test_a_forced_sync_asks_the_remote_first(gitrepo: GitRepo) -> None:
    read = fresh(gitrepo.remote).wakes
    force(gitrepo.pk)

    answered(gitrepo.remote, {MAIN: A}, wakes=read)
    adopt_all()
    assert Revision.objects.count() == 1

    observed(gitrepo, A)
    assert open_job(gitrepo).revision.reason == Revision.Reason.FORCE
    assert fresh(gitrepo).handled_force == 1


def test_two_forces_are_both_handled_by_one_run(gitrepo: GitRepo) -> None:
    force(gitrepo.pk)
    force(gitrepo.pk)
    assert fresh(gitrepo).force_sync_generation == 2

    observed(gitrepo, A)

    assert fresh(gitrepo).handled_force == 2
    assert Revision.objects.filter(reason=Revision.Reason.FORCE).count() == 1


def test_a_force_between_the_claim_and_the_answer_of_another_is_not_lost(gitrepo: GitRepo) -> None:
    force(gitrepo.pk)
    read = fresh(gitrepo.remote).wakes
    force(gitrepo.pk)

    answered(gitrepo.remote, {MAIN: A}, wakes=read)
    adopt_all()
    assert pending(gitrepo)

    observed(gitrepo, A)
    assert not pending(gitrepo)
    assert fresh(gitrepo).handled_force == 2


def test_a_force_on_one_of_several_syncs_that_one() -> None:
    one, two = core.register("one"), core.register("two")
    observed(one, A)
    force(one.pk)

    observed(one, A)

    assert one.revisions.count() == 2
    assert two.revisions.count() == 1


def test_a_forced_pinned_commit_is_synced_without_a_poll() -> None:
    gitrepo = core.register(commit=A)
    force(gitrepo.pk)

    assert open_job(gitrepo).revision.reason == Revision.Reason.FORCE
    assert fresh(gitrepo.remote).next_poll_at is None


def test_an_edit_of_a_pinned_commit_makes_its_revision_itself() -> None:
    gitrepo = core.register(commit=A)
    edit(gitrepo.pk, {"commit": B})
    edit(gitrepo.pk, {"paths": ["deploy"]})

    assert list(gitrepo.revisions.order_by("number").values_list("commit", "reason")) == [
        (A, "new head"),
        (B, "spec"),
        (B, "spec"),
    ]


def test_unpinning_asks_the_remote(gitrepo: GitRepo) -> None:
    edit(gitrepo.pk, {"branch": "", "commit": B})
    assert fresh(gitrepo.remote).next_poll_at is None

    edit(gitrepo.pk, {"branch": "main", "commit": ""})

    assert is_due(gitrepo.remote) and pending(gitrepo)


# -- another remote ------------------------------------------------------------------------------------------------


def test_a_request_that_is_not_handled_goes_along(gitrepo: GitRepo) -> None:
    for _ in range(3):
        force(gitrepo.pk)

    edit(gitrepo.pk, {"insecure_skip_tls_verify": True})

    row = fresh(gitrepo)
    assert (row.requested, row.handled, row.remote.wakes) == (1, 0, 1)
    observed(gitrepo, A)
    assert fresh(gitrepo).handled_force == 3 and not pending(gitrepo)


def test_a_request_that_is_handled_does_not(quiet: GitRepo) -> None:
    edit(quiet.pk, {"insecure_skip_tls_verify": True})

    assert not pending(quiet)


def test_an_answer_of_the_new_remote_from_before_the_move_is_not_adopted(quiet: GitRepo) -> None:
    other = core.register("other", insecure_skip_tls_verify=True)
    read = fresh(other.remote).wakes
    edit(quiet.pk, {"insecure_skip_tls_verify": True})

    answered(other.remote, {MAIN: B}, wakes=read)
    adopt_all()

    assert fresh(quiet).observed_commit == A
    observed(quiet, B)
    assert fresh(quiet).observed_commit == B


def test_there_and_back_again_forgets_nothing(quiet: GitRepo) -> None:
    force(quiet.pk)
    edit(quiet.pk, {"insecure_skip_tls_verify": True})
    edit(quiet.pk, {"insecure_skip_tls_verify": False})

    row = fresh(quiet)
    assert row.remote_id == quiet.remote_id
    assert row.requested == row.remote.wakes and pending(quiet)


def test_the_old_remote_is_polled_as_those_who_stay_want_it(quiet: GitRepo) -> None:
    stays = core.register("stays", polling_interval="5m")
    assert fresh(quiet.remote).interval_seconds == 15

    edit(quiet.pk, {"insecure_skip_tls_verify": True})

    assert fresh(stays.remote).interval_seconds == 300
