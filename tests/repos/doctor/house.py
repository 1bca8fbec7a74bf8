"""A house where all is well, in every normal state, for the doctor to look at."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from repos import deliveries, registration
from repos.doctor.examination import asked
from repos.doctor.finding import ERROR, Finding
from repos.leases import database_now
from repos.models import Chore, Cluster, Delivery, DeliveryRecord, GitRepo, Remote, Revision, SyncJob
from tests.core import MAIN, A, B, adopt_all, answered, bundle, cluster, fresh, register

State, Outcome = Delivery.State, DeliveryRecord.Outcome


def url(name: str) -> str:
    return f"https://git.example.com/team/{name}.git"


def followed(name: str, commit: str = A, **spec: Any) -> GitRepo:
    """A GitRepo of its own remote, polled and adopted; its job waits."""
    gitrepo = register(name, url=url(name), **spec)
    answered(gitrepo.remote, {MAIN: commit})
    adopt_all()
    polled(gitrepo)
    return fresh(gitrepo)  # type: ignore[no-any-return]


def polled(gitrepo: GitRepo, **columns: Any) -> None:
    """Its remote after a good poll, with the next one in a quarter of a minute."""
    now = database_now()
    remote = fresh(gitrepo).remote
    due = Remote.due_in(now, 15) if remote.interval_seconds is not None else Remote.not_due()
    Remote.objects.filter(pk=remote.pk).update(last_poll_at=now, last_success_at=now, **{**due, **columns})


def sync(gitrepo: GitRepo) -> Revision:
    """Its waiting job done as the worker does it: the revision is wanted at each matched cluster."""
    gitrepo = fresh(gitrepo)
    now = database_now()
    job = SyncJob.objects.get(gitrepo=gitrepo, state__in=SyncJob.WAITING)
    revision: Revision = job.revision
    clusters = deliveries.matched_clusters(gitrepo)
    revision.bundle, revision.synced_at = bundle(), now
    revision.outcome = Revision.Outcome.SYNCED if clusters else Revision.Outcome.NO_TARGET
    revision.save()
    GitRepo.objects.filter(pk=gitrepo.pk).update(wanted_revision=revision)
    SyncJob.objects.filter(pk=job.pk).update(
        state=SyncJob.State.SUCCEEDED, started_at=now, finished_at=now, **SyncJob.not_due()
    )
    deliveries.want(fresh(gitrepo), revision, clusters, now)
    return revision


def deliver(gitrepo: GitRepo) -> None:
    """Its waiting deliveries done, removals too."""
    now = database_now()
    for row in Delivery.objects.filter(deliveries.unapplied(), gitrepo=gitrepo):
        Delivery.objects.filter(pk=row.pk).update(
            state=State.REMOVED if row.removal else State.APPLIED,
            applied_epoch=row.epoch,
            applied_sequence=row.sequence,
            applied_revision=row.wanted_revision,
            applied_bundle=row.wanted_bundle,
            applied_at=now,
            failures=0,
            last_error="",
            **Delivery.not_due(),
        )
        DeliveryRecord.objects.filter(revision=row.wanted_revision, cluster=row.cluster_id).update(
            outcome=Outcome.DELIVERED, error="", ended_at=now
        )


def delivered(name: str = "shop", **spec: Any) -> GitRepo:
    """A GitRepo whose newest commit is at prod-eu."""
    cluster_of("prod-eu")
    gitrepo = followed(name, targets=[{"cluster": "prod-eu"}], **spec)
    sync(gitrepo)
    deliver(gitrepo)
    return fresh(gitrepo)  # type: ignore[no-any-return]


def cluster_of(name: str) -> Cluster:
    return Cluster.objects.filter(name=name).first() or cluster(name)


def resynced() -> None:
    """The resync goes its rounds."""
    Chore.objects.update_or_create(name=Chore.RESYNC, defaults=Chore.due_in(database_now(), 7000))


def aged(seconds: float = 86400) -> None:
    """As if everything had been there for a day."""
    GitRepo.objects.update(created_at=database_now() - timedelta(seconds=seconds))


def failed_delivery(name: str) -> None:
    gitrepo = delivered(name)
    registration.edit(gitrepo.pk, {"paths": ["deploy"]})
    answered(gitrepo.remote, {MAIN: B})
    adopt_all()
    polled(gitrepo)
    revision = sync(gitrepo)
    now = database_now()
    Delivery.objects.filter(gitrepo=gitrepo).update(
        state=State.FAILED, failures=2, last_error="disk full", **Delivery.due_in(now, 8)
    )
    DeliveryRecord.objects.filter(revision=revision).update(outcome=Outcome.FAILED, error="disk full")


def held_delivery(name: str) -> None:
    failed_delivery(name)
    rows = Delivery.objects.filter(gitrepo__name=name)
    rows.update(state=State.HELD, failures=0, last_error="would remove too much", **Delivery.not_due())
    DeliveryRecord.objects.filter(revision__gitrepo__name=name, outcome=Outcome.FAILED).update(outcome=Outcome.HELD)


def failed_job(name: str) -> None:
    followed(name)
    job = SyncJob.objects.filter(gitrepo__name=name)
    job.update(state="failed", failures=1, last_error="502", **SyncJob.due_in(database_now(), 4))


def failing_remote(name: str) -> None:
    gitrepo = followed(name)
    polled(gitrepo, consecutive_failures=3, last_error="502", **Remote.due_in(database_now(), 120))
    registration.force(gitrepo.pk)  # a request that waits with its remote
    polled(gitrepo, consecutive_failures=3, last_error="502", **Remote.due_in(database_now(), 120))


def missing_ref(name: str) -> None:
    gitrepo = register(name, url=url(name), branch="gone")
    answered(gitrepo.remote, {})
    adopt_all()
    polled(gitrepo)


def just_registered(name: str) -> None:
    register(name, url=url(name))


def just_answered(name: str) -> None:
    gitrepo = followed(name)
    answered(gitrepo.remote, {MAIN: B})


def just_edited(name: str) -> None:
    registration.edit(delivered(name).pk, {"paths": ["deploy"]})


def just_forced(name: str) -> None:
    registration.force(delivered(name).pk)


def paused(name: str) -> None:
    gitrepo = delivered(name)
    registration.edit(gitrepo.pk, {"paused": True})
    answered(gitrepo.remote, {MAIN: B})
    adopt_all()
    polled(gitrepo)


def disabled(name: str) -> None:
    """Shares its remote with one that polls, and stays behind on purpose."""
    gitrepo = delivered(name, disable_polling=True)
    register(f"{name}-polls", url=url(name))
    answered(gitrepo.remote, {MAIN: B})
    adopt_all()
    polled(gitrepo)


def disabled_alone(name: str) -> None:
    delivered(name, disable_polling=True)


def pinned(name: str) -> None:
    register(name, url=url(name), commit=B)


def rolled_back(name: str) -> None:
    gitrepo = delivered(name)
    Revision.objects.filter(gitrepo=gitrepo).update(reason=Revision.Reason.ROLLBACK, commit=B)


def superseded(name: str) -> None:
    gitrepo = followed(name)
    answered(gitrepo.remote, {MAIN: B})
    adopt_all()
    polled(gitrepo)


def running_job(name: str) -> None:
    followed(name)
    now = database_now()
    SyncJob.objects.filter(gitrepo__name=name).update(
        state="running",
        started_at=now,
        due_at=now - timedelta(seconds=500),
        lease_token="11111111-1111-4111-8111-111111111111",
        lease_until=now + timedelta(seconds=20),
        lease_owner="worker:1",
    )


def quarantined_job(name: str) -> None:
    """Claimed three times, its worker died each time, and the next try is set."""
    followed(name)
    now = database_now()
    SyncJob.objects.filter(gitrepo__name=name).update(
        state="running",
        failures=3,
        last_error="quarantined",
        crashes=3,
        lease_token="11111111-1111-4111-8111-111111111111",
        lease_until=now - timedelta(seconds=200),
        **SyncJob.due_in(now, 90),
    )


def unchanged(name: str) -> None:
    gitrepo = delivered(name)
    before = gitrepo.wanted_revision
    answered(gitrepo.remote, {MAIN: B})
    adopt_all()
    polled(gitrepo)
    now = database_now()
    job = SyncJob.objects.get(gitrepo=gitrepo, state__in=SyncJob.WAITING)
    assert before is not None
    Revision.objects.filter(pk=job.revision_id).update(outcome="unchanged", bundle=before.bundle, synced_at=now)
    GitRepo.objects.filter(pk=gitrepo.pk).update(wanted_revision=job.revision)
    SyncJob.objects.filter(pk=job.pk).update(state="succeeded", finished_at=now, **SyncJob.not_due())
    deliveries.record_unchanged(job.revision, deliveries.matched_clusters(fresh(gitrepo)), now)


def withdrawn(name: str) -> None:
    registration.edit(delivered(name).pk, {"targets": []})


def removed(name: str) -> None:
    withdrawn(name)
    deliver(GitRepo.objects.get(name=name))


def kept(name: str) -> None:
    gitrepo = delivered(name, keep_resources=True)
    registration.edit(gitrepo.pk, {"targets": []})


def tombstone(name: str) -> None:
    registration.delete(delivered(name).pk)


def relabelled(name: str) -> None:
    """Its cluster no longer matches, waits for its match, and a new revision is wanted elsewhere meanwhile."""
    blue = cluster(f"{name}-cluster", env=name)
    gitrepo = followed(name, targets=[{"cluster_selector": {"matchLabels": {"env": name}}}])
    sync(gitrepo)
    deliver(gitrepo)
    Cluster.objects.filter(pk=blue.pk).update(labels={}, **Cluster.due_in(database_now(), 0))
    answered(gitrepo.remote, {MAIN: B})
    adopt_all()
    polled(gitrepo)
    sync(gitrepo)


def moved_cluster(name: str) -> None:
    """Its cluster's settings changed: what was delivered is delivered again."""
    gitrepo = delivered(name)
    Delivery.objects.filter(gitrepo=gitrepo).update(
        sequence=2, state=State.WAITING, **Delivery.due_in(database_now(), 0)
    )


def no_target(name: str) -> None:
    sync(followed(name))


NORMAL: tuple[Callable[[str], object], ...] = (
    delivered, failed_delivery, held_delivery, failed_job, failing_remote, missing_ref, just_registered, just_answered,
    just_edited, just_forced, paused, disabled, disabled_alone, pinned, rolled_back, superseded, running_job,
    quarantined_job, unchanged, withdrawn, removed, kept, tombstone, relabelled, moved_cluster, no_target,
)  # fmt: skip


def errors() -> list[Finding]:
    return [finding for finding in asked(database_now()) if finding.severity == ERROR]


def kinds() -> set[str]:
    return {finding.kind for finding in errors()}
