"""GitRepos, remotes and clusters for tests, made through the doors that users and workers come through."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import count
from typing import Any

from django.db import connection

from repos import registration
from repos.adoption import adopt
from repos.leases import claim, database_now, finish
from repos.models import Adoption, Bundle, Cluster, Delivery, GitRepo, Remote, Revision, SyncJob
from repos.refs import followed_ref

URL = "https://git.example.com/team/shop.git"
MAIN = "refs/heads/main"
A, B, C, D = ("a" * 40, "b" * 40, "c" * 40, "d" * 40)

_numbers = count(1)


def register(name: str = "shop", url: str = URL, **spec: Any) -> GitRepo:
    """A GitRepo that follows main at `url`, unless `spec` says something else."""
    if not {"branch", "tag", "semver", "commit"} & set(spec):
        spec["branch"] = "main"
    return registration.register({"name": name, "url": url, **spec})


def cluster(name: str = "prod-eu", **labels: str) -> Cluster:
    return Cluster.objects.create(name=name, labels=labels, settings={"path": f"/srv/{name}"})


def fresh(row: Any) -> Any:
    """The row as the database has it."""
    return type(row)._default_manager.get(pk=row.pk)


def answered(remote: Remote, refs: Mapping[str, str], *, wakes: int | None = None) -> None:
    """The Remote after a good poll that found `refs`, claimed when `wakes` were read (all of them, if None)."""
    remote = fresh(remote)
    followers = GitRepo.objects.alive().filter(remote=remote, commit="")
    Remote.objects.filter(pk=remote.pk).update(
        refs=dict(refs),
        asked=sorted({followed_ref(gitrepo) for gitrepo in followers}),
        change=remote.change + 1,
        answered=remote.wakes if wakes is None else wakes,
    )
    Adoption.objects.filter(remote=remote).update(wanted=remote.change + 1, **Adoption.due_in(database_now(), 0))


def adopt_all() -> int:
    """Run every adoption that is due, as the worker does; how many followers failed."""
    failed = 0
    for adoption in claim(Adoption, limit=100, seconds=30):
        failed += adopt(adoption)
        finish(adoption, **Adoption.not_due())
    return failed


def observed(gitrepo: GitRepo, commit: str, ref: str = MAIN) -> None:
    """The GitRepo after its remote was polled with this head, and that was adopted."""
    answered(fresh(gitrepo).remote, {ref: commit})
    adopt_all()


def bundle(name: str = "") -> Bundle:
    sha256 = (name or f"{next(_numbers):x}").ljust(64, "0")
    found, _ = Bundle.objects.get_or_create(
        sha256=sha256, defaults={"size_bytes": 1, "files": 1, "last_used_at": database_now()}
    )
    return found


def synced(gitrepo: GitRepo, commit: str = A) -> Revision:
    """A synced revision of the GitRepo with a bundle of its own, which its deliveries do not want yet."""
    gitrepo = fresh(gitrepo)
    now = database_now()
    revision = Revision.objects.create(
        gitrepo=gitrepo,
        number=gitrepo.latest_revision + 1,
        commit=commit,
        generation=gitrepo.generation,
        reason=Revision.Reason.NEW_HEAD,
        outcome=Revision.Outcome.SYNCED,
        observed_at=now,
        synced_at=now,
        bundle=bundle(),
    )
    SyncJob.objects.create(
        gitrepo=gitrepo, revision=revision, state=SyncJob.State.SUCCEEDED, created_at=now, finished_at=now
    )
    GitRepo.objects.filter(pk=gitrepo.pk).update(latest_revision=revision.number, wanted_revision=revision)
    return revision


def is_now_due(due_at: datetime | None) -> bool:
    """Whether a row with this due instant is work by now."""
    return due_at is not None and due_at <= database_now()


def open_job(gitrepo: GitRepo) -> SyncJob:
    """The GitRepo's one waiting job."""
    return SyncJob.objects.get(gitrepo=gitrepo, state__in=SyncJob.WAITING)


def delivery_of(gitrepo: GitRepo) -> Delivery:
    """The GitRepo's one delivery."""
    return Delivery.objects.get(gitrepo=gitrepo)


def expire(row: Any) -> None:
    """Let the row's lease run out."""
    type(row)._default_manager.filter(pk=row.pk).update(lease_until=database_now() - timedelta(seconds=1))


def later(seconds: float) -> datetime:
    return database_now() + timedelta(seconds=seconds)


def is_postgresql() -> bool:
    return connection.vendor == "postgresql"


def is_due(row: Any) -> bool:
    """Whether the row has an instant, and it has come."""
    due = getattr(row, type(row).DUE)
    return due is not None and due <= database_now()
