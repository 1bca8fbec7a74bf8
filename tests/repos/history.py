"""Rows as the pipeline leaves them, for the tests of the doors that show them."""

from datetime import UTC, datetime
from typing import Any

from repos import registration
from repos.models import Bundle, Cluster, Delivery, DeliveryRecord, GitRepo, Remote, Revision, SyncJob

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def a_gitrepo(name: str = "shop", **spec: Any) -> GitRepo:
    return registration.register({"name": name, "url": f"https://git.example.com/team/{name}.git", **spec})


def a_cluster(name: str = "prod-eu", **columns: Any) -> Cluster:
    return Cluster.objects.get_or_create(name=name, defaults=columns)[0]


def a_revision(
    gitrepo: GitRepo, *, job: str = "succeeded", outcome: str = "synced", failures: int = 0, **columns: Any
) -> Revision:
    """The GitRepo's next revision, with its job in the state `job` ("" for none)."""
    gitrepo.refresh_from_db()
    number = gitrepo.latest_revision + 1
    given = {"commit": f"{number:040x}", "generation": 1, "reason": "new head", "observed_at": NOW, "outcome": outcome}
    revision = Revision.objects.create(gitrepo=gitrepo, number=number, **{**given, **columns})
    if job:
        SyncJob.objects.create(gitrepo=gitrepo, revision=revision, state=job, created_at=NOW, failures=failures)
    GitRepo.objects.filter(pk=gitrepo.pk).update(latest_revision=number, handled=gitrepo.requested)
    return revision


def a_delivery(revision: Revision, cluster: Cluster, state: str = "applied", outcome: str = "delivered") -> Delivery:
    """The revision wanted at the cluster, with its line in the ledger; applied if that is its `state`."""
    bundle, _ = Bundle.objects.get_or_create(
        sha256="b" * 64, defaults={"size_bytes": 1, "files": 1, "last_used_at": NOW}
    )
    applied = {"applied_sequence": 1, "applied_revision": revision, "applied_at": NOW} if state == "applied" else {}
    GitRepo.objects.filter(pk=revision.gitrepo_id).update(wanted_revision=revision)
    DeliveryRecord.objects.create(revision=revision, cluster=cluster, outcome=outcome, wanted_at=NOW)
    return Delivery.objects.create(
        gitrepo_id=revision.gitrepo_id,
        cluster=cluster,
        state=state,
        sequence=1,
        wanted_revision=revision,
        wanted_bundle=bundle,
        wanted_at=NOW,
        **applied,
    )


def failing(gitrepo: GitRepo, error: str = "the server answered 502") -> None:
    Remote.objects.filter(pk=gitrepo.remote_id).update(last_error=error, consecutive_failures=3)
