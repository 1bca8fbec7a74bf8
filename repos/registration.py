"""Registering, editing, forcing, pausing and deleting GitRepos: the one door to their spec.

Each function is one transaction, which stores the change together with what it asks for: the generation, the wake of
the remote, the request, the new match. Doorbells ring after the commit. Lock order: Remote, GitRepo, SyncJob, Delivery.
"""

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction

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


def register(spec: Mapping[str, Any]) -> GitRepo:
    """Create a GitRepo from `spec` ({field: value}, validated) and make its remote due. Raises ValidationError."""
    gitrepo = GitRepo(**spec)
    gitrepo.interval_seconds = interval_seconds(gitrepo.polling_interval)
    check_spec(gitrepo)
    with transaction.atomic():
        now = database_now()
        gitrepo.remote = _locked(remote_for(gitrepo).pk)
        gitrepo.handled_force = gitrepo.force_sync_generation
        gitrepo.full_clean(exclude=["remote"])
        gitrepo.save()
        if gitrepo.commit:
            observe(gitrepo, Head("", gitrepo.commit), now)
        else:
            request(gitrepo, gitrepo.remote)
        refresh_interval(gitrepo.remote)
        record_event(gitrepo, "Registered", f"follows {gitrepo.url}", now)
    return gitrepo


def edit(pk: int, changes: Mapping[str, Any], *, force: bool = False) -> GitRepo:
    """Apply `changes` ({field: new value}, validated) to one GitRepo. Raises ValidationError and GitRepo.DoesNotExist.

    The changes are laid on the row as it is under the lock, so that two edits of different fields both hold, and two
    that `force` a sync count as two.
    """
    unknown = set(changes) - set(SPEC)
    if unknown:
        raise ValidationError(dict.fromkeys(unknown, "not a field of the spec"))
    with transaction.atomic():
        now = database_now()
        _lock_remotes(pk, changes)
        gitrepo = GitRepo.objects.select_for_update(of=("self",)).get(pk=pk, deleted_at__isnull=True)
        before = GitRepo.objects.get(pk=pk)
        for name, value in changes.items():
            setattr(gitrepo, name, value)
        gitrepo.force_sync_generation += int(force)
        changed = {name for name in SPEC if getattr(gitrepo, name) != getattr(before, name)}
        if not changed:
            return gitrepo
        check_spec(gitrepo, before)
        gitrepo.interval_seconds = interval_seconds(gitrepo.polling_interval)
        gitrepo.generation += int(bool(changed & set(CONTENT)))
        _follow(gitrepo, before, changed)
        gitrepo.full_clean(exclude=["remote"])
        gitrepo.save()
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


def _locked(remote_id: int) -> Remote:
    return Remote.objects.select_for_update(of=("self",)).get(pk=remote_id)


def _lock_remotes(pk: int, changes: Mapping[str, Any]) -> None:
    """Lock the Remote that the GitRepo follows and the one that it will follow, in the order of their keys."""
    draft = GitRepo.objects.get(pk=pk, deleted_at__isnull=True)
    old_id = draft.remote_id
    for name in ("url", *ACCESS):
        if name in changes:
            setattr(draft, name, changes[name])
    wanted = {old_id, remote_for(draft).pk}
    list(Remote.objects.select_for_update(of=("self",)).filter(pk__in=wanted).order_by("pk"))


def _follow(gitrepo: GitRepo, before: GitRepo, changed: set[str]) -> None:
    """Move to the Remote that the spec names, and ask it for what the edit needs."""
    gitrepo.remote = _locked(remote_for(gitrepo).pk)
    moved = gitrepo.remote_id != before.remote_id
    pending = gitrepo.requested > gitrepo.handled
    if moved:
        # Numbers of another remote mean nothing here; a request that is not handled takes a new one below.
        gitrepo.requested = gitrepo.handled = 0
        gitrepo.ref_failures, gitrepo.ref_error = 0, ""
    if gitrepo.commit:
        gitrepo.handled = gitrepo.requested
    elif changed & {*CONTENT, "force_sync_generation"} or (moved and pending):
        request(gitrepo, gitrepo.remote)
    elif moved or changed & {"polling_interval", "disable_polling"}:
        wake(gitrepo.remote, database_now())
    if changed & set(CONTENT):
        gitrepo.ref_failures, gitrepo.ref_error = 0, ""


def request(gitrepo: GitRepo, remote: Remote) -> None:
    """Ask the locked `remote` for a poll on behalf of the locked GitRepo, and remember its number."""
    wake(remote, database_now())
    if gitrepo.handled >= remote.wakes:
        gitrepo.handled = remote.wakes - 1
    gitrepo.requested = remote.wakes
    if gitrepo.pk:
        GitRepo.objects.filter(pk=gitrepo.pk).update(requested=gitrepo.requested, handled=gitrepo.handled)


def force(pk: int) -> GitRepo:
    """Sync the newest commit even if nothing changed: a poll first, then a job of its own."""
    return edit(pk, {}, force=True)


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


def delete(pk: int) -> None:
    """Delete a GitRepo: at once if nothing is delivered, else as soon as its removals have ended.

    Meanwhile it is a tombstone without a name: the name is free for a new GitRepo, which targets know by another UUID.
    """
    with transaction.atomic():
        now = database_now()
        remote_id = GitRepo.objects.values_list("remote_id", flat=True).get(pk=pk, deleted_at__isnull=True)
        remote = _locked(remote_id)
        gitrepo = GitRepo.objects.select_for_update(of=("self",)).get(pk=pk, deleted_at__isnull=True)
        gitrepo.deleted_at, gitrepo.paused = now, False
        gitrepo.save(update_fields=["deleted_at", "paused"])
        supersede_waiting(gitrepo, now)
        deliveries.rematch(gitrepo, now)
        refresh_interval(remote)
        purge(gitrepo)


def purge(gitrepo: GitRepo) -> bool:
    """Remove the tombstone of a deleted GitRepo whose removals have ended; False if some have not."""
    if gitrepo.deleted_at is None or gitrepo.deliveries.filter(deliveries.unapplied()).exists():
        return False
    gitrepo.delete()
    return True
