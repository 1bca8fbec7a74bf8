"""Promises 1, 3, 4 and 11 under random interleavings: whatever is edited while polls, adoptions, jobs and deliveries are at
any point of their work, nothing that was asked for is forgotten and nothing that is to be done is without an instant.

The machine is everybody: users, poll sessions, adoption, sync and delivery workers. Only Git and the targets are made up.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from django.conf import settings
from django.db import transaction
from django.db.models import F, Q
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from repos import registration
from repos.adoption import adopt as run_adoption
from repos.adoption import concerned
from repos.deliveries import unapplied
from repos.leases import claim, database_now, finish
from repos.models import Adoption, Delivery, GitRepo, Remote, Revision, SyncJob
from repos.refs import followed_ref
from repos.remotes import wanted_interval_seconds, wanting
from tests.core import cluster, register
from tests.repos.doctor.house import errors
from workers import adopt, sync
from workers.deliver import outcome
from workers.deliver.session import claim_deliveries
from workers.make import Made, Work
from workers.poll.claim import ClaimedRemote, claim_remotes
from workers.poll.engine import PollError, PollResult
from workers.poll.results import store
from workers.resync import Repairs, repair

NAMES = ("one", "two", "three")
BRANCHES = ("main", "dev")
never: Callable[[], bool] = lambda: False  # noqa: E731
names = st.sampled_from(NAMES)
branches = st.sampled_from(BRANCHES)


@dataclass
class Asked:
    """A poll in flight: what the server said when it was asked, which may be old when it is written."""

    claimed: ClaimedRemote
    refs: dict[str, str] = field(default_factory=dict)


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.atomic = transaction.atomic()
        self.atomic.__enter__()
        self.heads: dict[str, str] = {"refs/heads/main": f"{1:040x}"}
        self.commits = 1
        self.polls: list[Asked] = []
        self.adoptions: list[Adoption] = []
        self.works: list[Work] = []
        self.deliveries: list[Delivery] = []
        for name in ("near", "far"):
            cluster(name)
        # Two that share a remote and one that asks it once: edits meet something from the first step on.
        for name, disabled in (("one", False), ("two", True)):
            register(name, disable_polling=disabled, targets=[{"cluster": "near"}])
        self.all_goes_well()

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            transaction.set_rollback(True)
            self.atomic.__exit__(None, None, None)

    # -- users ---------------------------------------------------------------------------------------------------

    def living(self, name: str) -> GitRepo | None:
        return GitRepo.objects.alive().filter(name=name).first()

    def edit(self, name: str, **changes: object) -> None:
        if gitrepo := self.living(name):
            registration.edit(gitrepo.pk, changes)

    @rule(name=names, branch=branches, disabled=st.booleans(), pinned=st.booleans())
    def registers(self, name: str, branch: str, disabled: bool, pinned: bool) -> None:
        if self.living(name) is None:
            source = {"commit": f"{0xF:040x}"} if pinned and disabled else {"branch": branch}
            register(name, disable_polling=disabled, targets=[{"cluster": "near"}], **source)

    @rule(branch=branches)
    def pushes(self, branch: str) -> None:
        self.commits += 1
        self.heads[f"refs/heads/{branch}"] = f"{self.commits:040x}"

    @rule()
    def deletes_the_branch(self) -> None:
        self.heads.pop("refs/heads/dev", None)

    @rule(name=names, branch=branches)
    def edits_the_branch(self, name: str, branch: str) -> None:
        self.edit(name, branch=branch, commit="")

    @rule(name=names, commit=st.sampled_from(["e" * 40, "f" * 40]))
    def pins(self, name: str, commit: str) -> None:
        self.edit(name, branch="", commit=commit)

    @rule(name=names, path=st.sampled_from(["a", "b"]))
    def edits_the_paths(self, name: str, path: str) -> None:
        self.edit(name, paths=[path])

    @rule(name=names, insecure=st.booleans())
    def moves_to_another_remote(self, name: str, insecure: bool) -> None:
        self.edit(name, insecure_skip_tls_verify=insecure)

    @rule(name=names, disabled=st.booleans(), interval=st.sampled_from(["", "1m"]))
    def changes_the_polling(self, name: str, disabled: bool, interval: str) -> None:
        self.edit(name, disable_polling=disabled, polling_interval=interval)

    @rule(name=names, paused=st.booleans())
    def pauses_or_resumes(self, name: str, paused: bool) -> None:
        self.edit(name, paused=paused)

    @rule(name=names, clusters=st.sets(st.sampled_from(["near", "far"])), keep=st.booleans())
    def changes_the_targets(self, name: str, clusters: set[str], keep: bool) -> None:
        self.edit(name, targets=[{"cluster": c} for c in sorted(clusters)], keep_resources=keep)

    @rule(name=names)
    def forces(self, name: str) -> None:
        if gitrepo := self.living(name):
            registration.force(gitrepo.pk)

    @rule(name=names)
    def asks(self, name: str) -> None:
        if gitrepo := self.living(name):
            registration.ask(gitrepo.pk)

    @rule(name=names)
    def approves(self, name: str) -> None:
        if gitrepo := self.living(name):
            registration.approve(gitrepo.pk)

    @rule(name=names)
    def deletes(self, name: str) -> None:
        if gitrepo := self.living(name):
            registration.delete(gitrepo.pk)

    # -- polls ---------------------------------------------------------------------------------------------------

    @rule()
    def time_passes(self) -> None:
        """Everything that has a due instant is due; leases run on."""
        for model in (Remote, SyncJob, Delivery):
            model._default_manager.filter(**{f"{model.DUE}__isnull": False}).update(**model.due_in(database_now(), 0))

    @rule()
    def polls_begin(self) -> None:
        self.polls += [Asked(claimed, dict(self.heads)) for claimed in claim_remotes(10)]

    @precondition(lambda self: self.polls)
    @rule(fails=st.booleans(), last=st.booleans())
    def a_poll_ends(self, fails: bool, last: bool) -> None:
        asked = self.polls.pop(-1 if last else 0)
        error = PollError("server", "502") if fails else None
        store([(asked.claimed, PollResult(asked.claimed.remote.pk, 0.1, {} if fails else asked.refs, error))])

    @rule()
    def a_poller_freezes(self) -> None:
        """Its leases run out; it may come back and write."""
        Remote.objects.filter(lease_until__isnull=False).update(lease_until=database_now() - timedelta(seconds=1))

    # -- adoption ------------------------------------------------------------------------------------------------

    @rule()
    def adoptions_are_claimed(self) -> None:
        self.adoptions += claim(Adoption, limit=10, seconds=settings.JOB_LEASE)

    @precondition(lambda self: self.adoptions)
    @rule(dies=st.booleans())
    def a_claimed_adoption_runs(self, dies: bool) -> None:
        adoption = self.adoptions.pop(0)
        assert run_adoption(adoption) == 0
        if dies:
            Adoption.objects.filter(pk=adoption.pk).update(lease_until=database_now() - timedelta(seconds=1))
        else:
            finish(adoption, due_at=adopt._unless("wanted", adoption.wanted), wait_seconds=0)

    @rule()
    def adoptions_run(self) -> None:
        adopt.run_adoptions(budget_seconds=5, stopping=never)

    # -- jobs ----------------------------------------------------------------------------------------------------

    @rule()
    def a_job_begins(self) -> None:
        now = database_now()
        started = {"state": SyncJob.State.RUNNING, "started_at": now}
        for job in claim(SyncJob, limit=1, seconds=60, where=sync.free_jobs(), extra=lambda _: started):
            with suppress(sync.Dropped):
                self.works.append(sync.begin(job))

    @precondition(lambda self: self.works)
    @rule(how=st.sampled_from(["made", "made", "unchanged", "failed", "busy"]), last=st.booleans())
    def a_job_ends(self, how: str, last: bool) -> None:
        work = self.works.pop(-1 if last else 0)
        before = work.gitrepo.wanted_revision
        if how == "failed":
            sync.fail(work.job, "network", "no network")
        elif how == "busy":
            sync.give_back(work.job, 0.5)
        elif how == "unchanged" and not work.forced and before is not None and before.pk != work.revision.pk:
            sync.conclude(work, Made("same"))
        else:
            sync.conclude(work, made(work))

    @rule()
    def a_job_worker_freezes(self) -> None:
        SyncJob.objects.filter(lease_until__isnull=False).update(lease_until=database_now() - timedelta(seconds=1))

    # -- deliveries ----------------------------------------------------------------------------------------------

    @rule()
    def deliveries_begin(self) -> None:
        self.deliveries += claim_deliveries(2)

    @precondition(lambda self: self.deliveries)
    @rule(how=st.sampled_from(["applied", "applied", "failed", "held", "ahead", "bundle"]), last=st.booleans())
    def a_delivery_ends(self, how: str, last: bool) -> None:
        delivery = self.deliveries.pop(-1 if last else 0)
        if how == "failed":
            outcome.failed(delivery, "disk", "disk full")
        elif how == "held" and not delivery.removal:
            outcome.held_back(delivery, 3, 4)
        elif how == "ahead":
            outcome.target_ahead(delivery, delivery.epoch, delivery.sequence + 5)
        elif how == "bundle" and not delivery.removal:
            outcome.bundle_missing(delivery, "the bundle is gone")
        else:
            outcome.applied(delivery)

    @rule()
    def a_delivery_worker_freezes(self) -> None:
        Delivery.objects.filter(lease_until__isnull=False).update(lease_until=database_now() - timedelta(seconds=1))

    # -- what always holds ---------------------------------------------------------------------------------------

    @invariant()
    def what_is_wanted_has_an_instant(self) -> None:
        for remote in Remote.objects.all():
            interval = wanted_interval_seconds(remote)
            assert remote.interval_seconds == interval
            assert interval is None or remote.next_poll_at is not None
            assert remote.answered == remote.wakes or remote.next_poll_at is not None
        running = Q(paused=False) | Q(deleted_at__isnull=False)
        for gitrepo in GitRepo.objects.filter(running):
            open_jobs = gitrepo.jobs.filter(state__in=(*SyncJob.WAITING, SyncJob.State.RUNNING))
            assert not open_jobs.filter(due_at__isnull=True).exists()
            assert not gitrepo.deliveries.filter(unapplied(), due_at__isnull=True).exists()

    @invariant()
    def numbers_agree(self) -> None:
        for gitrepo in GitRepo.objects.alive().select_related("remote"):
            assert gitrepo.handled <= gitrepo.requested <= gitrepo.remote.wakes
            assert gitrepo.follows_since <= gitrepo.remote.wakes
            assert gitrepo.handled_force <= gitrepo.force_sync_generation
            if gitrepo.wanted_revision is not None:
                assert gitrepo.wanted_revision.number <= gitrepo.latest_revision
        assert not Remote.objects.filter(answered__gt=F("wakes")).exists()

    @invariant()
    def who_is_kept_is_never_removed(self) -> None:
        """A content that is to stay is not taken away by whoever ends late."""
        assert not Delivery.objects.filter(state=Delivery.State.KEPT, due_at__isnull=False).exists()

    @invariant()
    def there_is_nothing_to_repair(self) -> None:
        repairs = Repairs()
        for pk, remote_id in GitRepo.objects.values_list("pk", "remote_id"):
            repair(pk, remote_id, repairs)
        assert repairs.counts == {}

    @invariant()
    def the_doctor_finds_no_error(self) -> None:
        """In no state between two steps, whoever froze and whatever failed."""
        assert errors() == []

    # -- a good round ---------------------------------------------------------------------------------------------

    def all_goes_well(self) -> None:
        """Everything is due, and everything that is due is done to its end."""
        self.time_passes()
        for claimed in claim_remotes(10):
            store([(claimed, PollResult(claimed.remote.pk, 0.1, dict(self.heads)))])
        adopt.run_adoptions(budget_seconds=5, stopping=never)
        self.works.clear()
        self.a_job_begins()
        while self.works:
            work = self.works.pop()
            sync.conclude(work, made(work))
            self.a_job_begins()
        while batch := claim_deliveries(10):
            for delivery in batch:
                outcome.applied(delivery)

    # -- the end -------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let everything that is due run without faults: then everything asked for is done and the newest is wanted."""
        self.heads.setdefault("refs/heads/dev", f"{0xD:040x}")
        for gitrepo in GitRepo.objects.alive().filter(paused=True):
            registration.edit(gitrepo.pk, {"paused": False})
        for model in (Remote, Adoption, SyncJob, Delivery):
            model._default_manager.update(lease_until=None, lease_token=None)
        # Each round is one poll; two more than the one that answers, for heads that come back are asked for twice.
        for _ in range(4):
            self.all_goes_well()
        assert not GitRepo.objects.filter(deleted_at__isnull=False).exists()
        assert not GitRepo.objects.filter(requested__gt=F("handled")).exists()
        assert not GitRepo.objects.filter(force_sync_generation__gt=F("handled_force")).exists()
        assert not SyncJob.objects.filter(state__in=(*SyncJob.WAITING, SyncJob.State.RUNNING)).exists()
        assert not Delivery.objects.filter(unapplied()).exists()
        for gitrepo in GitRepo.objects.select_related("wanted_revision__bundle", "remote"):
            self.check_settled(gitrepo)

    def check_settled(self, gitrepo: GitRepo) -> None:
        newest = Revision.objects.filter(gitrepo=gitrepo).order_by("-number").first()
        assert newest is not None and newest.generation == gitrepo.generation
        assert newest == gitrepo.wanted_revision
        if gitrepo.commit or not gitrepo.disable_polling:
            assert newest.commit == (gitrepo.commit or self.heads[followed_ref(gitrepo)])
        wanted = {target["cluster"] for target in gitrepo.targets}
        present = Delivery.objects.filter(gitrepo=gitrepo, removal=False)
        assert {d.cluster.name for d in present} == wanted
        for delivery in present.exclude(state=Delivery.State.HELD):
            assert delivery.state == Delivery.State.APPLIED
            assert delivery.applied_bundle_id == newest.bundle_id
            assert (delivery.applied_epoch, delivery.applied_sequence) == (delivery.epoch, delivery.sequence)
        if gitrepo.remote.interval_seconds is None:
            wishing = GitRepo.objects.filter(wanting(), remote=gitrepo.remote)
            assert gitrepo.remote.next_poll_at is None and not wishing.exists()
        assert not GitRepo.objects.filter(concerned(gitrepo.remote), pk=gitrepo.pk).exists()


def made(work: Work) -> Made:
    """What a job would make: other content for each commit, selection and forced run."""
    sha256 = f"{work.revision.pk:064x}"
    return Made(f"selection of {work.revision.commit[:8]}", sha256, 1, 1)


@pytest.mark.django_db
def test_nothing_asked_for_is_forgotten() -> None:
    run_state_machine_as_test(
        World,
        settings=hypothesis_settings(
            max_examples=12,
            stateful_step_count=30,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
