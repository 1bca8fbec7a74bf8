"""Registering, editing, forcing, pausing and deleting GitRepos: the one door to their spec.

Each function is one transaction, which stores the change together with what it asks for: the generation, the wake of
the remote, the request, the new match. Doorbells ring after the commit. Lock order: Remote, GitRepo, SyncJob, Delivery.
"""

from collections.abc import Callable, Mapping
from copy import copy
from datetime import datetime
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from fleetsync.durations import parse_duration
from repos import deliveries
from repos.doorbells import ring_on_commit
from repos.events import record_event
from repos.leases import database_now
from repos.models import GitRepo, Remote, SyncJob
from repos.refs import Head
from repos.remotes import refresh_interval, remote_for, wake
from repos.revisions import observe, supersede_waiting
from repos.urls import parse_git_url

SOURCE = ("url", "branch", "tag", "semver", "commit")
# What shapes the content: a change raises the generation and makes a revision.
CONTENT = (*SOURCE, "paths")
ACCESS = ("credential", "ca_bundle", "insecure_skip_tls_verify")
SPEC = (
    *CONTENT, *ACCESS, "name", "polling_interval", "disable_polling", "paused", "targets", "correct_drift",
    "keep_resources", "force_sync_generation",
)  # fmt: skip


def interval_seconds(text: str) -> float:
    """The interval that a `polling_interval` means, in seconds; empty and 0 mean GITREPO_POLLING_INTERVAL."""
    return (parse_duration(text) if text else 0.0) or settings.GITREPO_POLLING_INTERVAL


def check_spec(spec: GitRepo, before: GitRepo | None = None) -> None:
    """The rules that look at more than one field. Raises ValidationError with a sentence for each field."""
    chosen = [name for name in ("branch", "tag", "semver", "commit") if getattr(spec, name)]
    if len(chosen) > 1:
        raise ValidationError({chosen[1]: f"give one of branch, tag, semver and commit: {chosen[0]} is given already"})
    if before is not None:
        if spec.name != before.name:
            raise ValidationError({"name": "a GitRepo keeps its name: register a new one and delete this one"})
        if spec.force_sync_generation < before.force_sync_generation:
            raise ValidationError({"force_sync_generation": "this number only rises"})
        if spec.credential_id is not None and spec.credential_id == before.credential_id:
            old, new = parse_git_url(before.url), parse_git_url(spec.url)
            if old.host_key != new.host_key:
                raise ValidationError(
                    {"credential": "the url names another host: remove the credential, then attach it anew"}
                )


P = ParamSpec("P")
R = TypeVar("R")
TRIES = 5
# Found by other means than full_clean: the Remote follows from the spec, the seconds from the text.
DERIVED = ("remote", "interval_seconds")


class _Moved(Exception):
    """What was looked at without a lock was another one under the lock."""


def _one_transaction(work: Callable[P, R]) -> Callable[P, R]:
    """Run `work` in a transaction of its own, and again if somebody else's change came between its look and its lock."""

    @wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        for left in reversed(range(TRIES)):
            try:
                with transaction.atomic():
                    return work(*args, **kwargs)
            except (_Moved, IntegrityError):
                if not left:
                    raise
        raise AssertionError("unreachable")

    return run


@_one_transaction
def register(spec: Mapping[str, Any]) -> GitRepo:
    """Create a GitRepo from `spec` ({field: value}) and make its remote due. Raises ValidationError."""
    gitrepo = GitRepo(**spec)
    gitrepo.full_clean(exclude=DERIVED)
    check_spec(gitrepo)
    gitrepo.interval_seconds = interval_seconds(gitrepo.polling_interval)
    wanted = remote_for(gitrepo).pk
    remotes = _locked_remotes({wanted})
    if wanted not in remotes:
        raise _Moved  # it had no follower, and was pruned meanwhile
    gitrepo.remote = remotes[wanted]
    gitrepo.handled_force = gitrepo.force_sync_generation
    now = database_now()
    if not gitrepo.commit:
        request(gitrepo, gitrepo.remote, now, anew=True)
    gitrepo.save()
    if gitrepo.commit:
        observe(gitrepo, Head("", gitrepo.commit), now)
    refresh_interval(gitrepo.remote)
    record_event(gitrepo, "Registered", f"follows {gitrepo.url}", now)
    return gitrepo


@_one_transaction
def edit(pk: int, changes: Mapping[str, Any]) -> GitRepo:
    """Apply `changes` ({field: new value}) to one GitRepo. Raises ValidationError and GitRepo.DoesNotExist.

    The changes are laid on the row as it is under the lock, so that two edits of different fields both hold.
    """
    unknown = set(changes) - set(SPEC)
    if unknown:
        raise ValidationError(dict.fromkeys(unknown, "not a field of the spec"))
    gitrepo, remotes = _locked(pk, changes)
    before = copy(gitrepo)
    for name, value in changes.items():
        setattr(gitrepo, name, value)
    changed = {name for name in SPEC if getattr(gitrepo, name) != getattr(before, name)}
    if not changed:
        return gitrepo
    gitrepo.full_clean(exclude=DERIVED)
    check_spec(gitrepo, before)
    gitrepo.interval_seconds = interval_seconds(gitrepo.polling_interval)
    gitrepo.generation += int(bool(changed & set(CONTENT)))
    _follow(gitrepo, before, changed, remotes)
    gitrepo.save()
    now = database_now()
    if gitrepo.commit and changed & {*CONTENT, "force_sync_generation"}:
        observe(gitrepo, Head("", gitrepo.commit), now)
    for remote in Remote.objects.filter(pk__in={before.remote_id, gitrepo.remote_id}).order_by("pk"):
        refresh_interval(remote)
    if "paused" in changed:
        _pause(gitrepo) if gitrepo.paused else _resume(gitrepo)
    if changed & {"targets", "keep_resources"}:
        deliveries.rematch(gitrepo, now)
    record_event(gitrepo, "Edited", "changed: " + ", ".join(sorted(changed)), now)
    return gitrepo


def _locked_remotes(keys: set[int]) -> dict[int, Remote]:
    """Those of these Remotes that exist, locked in the order of their keys."""
    return {remote.pk: remote for remote in Remote.objects.select_for_update().filter(pk__in=keys).order_by("pk")}


def _locked(pk: int, changes: Mapping[str, Any]) -> tuple[GitRepo, dict[int, Remote]]:
    """The living GitRepo, locked after the Remote that it follows and the one that it will follow with `changes`.

    Which Remotes those are is known for sure only under the lock of the GitRepo, which comes last. Raises _Moved.
    """
    # Of one whose access stays as it is, its Remote is all that is looked for.
    looked_at = GitRepo.objects.all() if {"url", *ACCESS} & set(changes) else GitRepo.objects.only("remote")
    look = looked_at.get(pk=pk, deleted_at__isnull=True)
    remotes = _locked_remotes({look.remote_id, _remote_after(look, changes)})
    gitrepo = GitRepo.objects.select_for_update().get(pk=pk, deleted_at__isnull=True)
    # The look may be spoilt by what it is asked for, and the locked row is not to be.
    again = copy(gitrepo)
    if not {again.remote_id, _remote_after(again, changes)} <= set(remotes):
        raise _Moved
    return gitrepo, remotes


def _remote_after(draft: GitRepo, changes: Mapping[str, Any]) -> int:
    """The key of the Remote that `draft`, which this overwrites, follows with `changes`."""
    access = {name: changes[name] for name in ("url", *ACCESS) if name in changes}
    if not access:
        return draft.remote_id
    for name, value in access.items():
        setattr(draft, name, value)
    return remote_for(draft).pk


def _follow(gitrepo: GitRepo, before: GitRepo, changed: set[str], remotes: Mapping[int, Remote]) -> None:
    """Move to the Remote that the spec names, one of the locked `remotes`, and ask it for what the edit needs."""
    if changed & {"url", *ACCESS}:
        gitrepo.remote = remotes[remote_for(gitrepo).pk]
    remote = remotes[gitrepo.remote_id]
    moved = remote.pk != before.remote_id
    pending = gitrepo.requested > gitrepo.handled
    anew = bool(changed & set(CONTENT))
    if moved:
        # Numbers of another remote mean nothing here; a request that is not handled takes a new one below.
        gitrepo.requested = gitrepo.handled = gitrepo.follows_since = 0
    if moved or anew:
        gitrepo.ref_failures, gitrepo.ref_error = 0, ""
    if gitrepo.commit:
        gitrepo.handled = gitrepo.requested
    elif anew or "force_sync_generation" in changed or (moved and pending):
        request(gitrepo, remote, database_now(), anew=anew or moved)
    elif moved or changed & {"polling_interval", "disable_polling"}:
        wake(remote, database_now())
        gitrepo.follows_since = remote.wakes if moved else gitrepo.follows_since


# What request() sets.
REQUEST = ("requested", "follows_since")


def request(gitrepo: GitRepo, remote: Remote, now: datetime, *, anew: bool = False) -> None:
    """Ask the locked `remote` for a poll on behalf of the locked GitRepo, which the caller saves, and remember its number.

    `anew`: it follows something else than before, so that answers to older questions are not for it.
    """
    wake(remote, now)
    gitrepo.requested = remote.wakes
    gitrepo.follows_since = remote.wakes if anew else gitrepo.follows_since


@_one_transaction
def ask(pk: int) -> bool:
    """Ask the GitRepo's remote for a poll on its behalf; False if it is deleted, or pinned and never polled."""
    if not GitRepo.objects.filter(pk=pk, deleted_at__isnull=True, commit="").exists():
        return False
    gitrepo, remotes = _locked(pk, {})
    if gitrepo.commit:
        return False
    remote = remotes[gitrepo.remote_id]
    request(gitrepo, remote, database_now())
    GitRepo.objects.filter(pk=pk).update(requested=gitrepo.requested)
    refresh_interval(remote)
    return True


@_one_transaction
def force(pk: int) -> GitRepo:
    """Sync the newest commit even if nothing changed: a poll first, then a job of its own. Two of them count as two.

    Raises GitRepo.DoesNotExist. An edit of the number alone, without the checks of a spec that is as it was.
    """
    gitrepo, remotes = _locked(pk, {})
    remote, now = remotes[gitrepo.remote_id], database_now()
    gitrepo.force_sync_generation += 1
    if gitrepo.commit:
        gitrepo.handled = gitrepo.requested
    else:
        request(gitrepo, remote, now)
    gitrepo.save(update_fields=["force_sync_generation", "handled", *REQUEST])
    if gitrepo.commit:
        observe(gitrepo, Head("", gitrepo.commit), now)
    if gitrepo.disable_polling:
        refresh_interval(remote)
    record_event(gitrepo, "Edited", "changed: force_sync_generation", now)
    return gitrepo


def _pause(gitrepo: GitRepo) -> None:
    SyncJob.objects.filter(gitrepo=gitrepo, state__in=SyncJob.WAITING).update(**SyncJob.not_due())
    deliveries.hold_all(gitrepo)


def _resume(gitrepo: GitRepo) -> None:
    now = database_now()
    SyncJob.objects.filter(gitrepo=gitrepo, state__in=SyncJob.WAITING).update(**SyncJob.due_in(now, 0))
    deliveries.resume_all(gitrepo, now)
    ring_on_commit("sync")


def approve(pk: int) -> int:
    """Let the held deliveries of one GitRepo go on; how many there were. Raises GitRepo.DoesNotExist."""
    with transaction.atomic():
        now = database_now()
        gitrepo = GitRepo.objects.select_for_update(of=("self",)).get(pk=pk, deleted_at__isnull=True)
        count = deliveries.approve(gitrepo, now)
        if count:
            record_event(gitrepo, "Approved", f"{count} held deliveries may remove what they would remove", now)
    return count


@_one_transaction
def delete(pk: int) -> None:
    """Delete a GitRepo: at once if nothing is delivered, else as soon as its removals have ended.

    Meanwhile it is a tombstone without a name: the name is free for a new GitRepo, which targets know by another UUID.
    """
    gitrepo, remotes = _locked(pk, {})
    now = database_now()
    gitrepo.deleted_at, gitrepo.paused = now, False
    gitrepo.save(update_fields=["deleted_at", "paused"])
    supersede_waiting(gitrepo, now)
    deliveries.rematch(gitrepo, now)
    # Removals that a pause has taken off the queue are no longer paused.
    deliveries.resume_all(gitrepo, now)
    refresh_interval(remotes[gitrepo.remote_id])
    purge(gitrepo)


def purge(gitrepo: GitRepo) -> bool:
    """Remove the tombstone of a deleted GitRepo whose removals have ended; False if some have not."""
    if gitrepo.deleted_at is None or gitrepo.deliveries.filter(deliveries.unapplied()).exists():
        return False
    gitrepo.delete()
    return True
