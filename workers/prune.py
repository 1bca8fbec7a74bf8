"""Pruning: what nothing needs any more, in bounded batches."""

from django.db import transaction
from django.db.models import ProtectedError

from repos import registration
from repos.models import GitRepo, Remote

BATCH = 200


def prune(limit: int = BATCH) -> dict[str, int]:
    """Remove tombstones whose removals have ended, then remotes that nobody follows; how many of each."""
    return {"gitrepos": prune_tombstones(limit), "remotes": prune_remotes(limit)}


def prune_tombstones(limit: int) -> int:
    pruned = 0
    for pk in list(GitRepo.objects.filter(deleted_at__isnull=False).values_list("pk", flat=True)[:limit]):
        with transaction.atomic():
            gitrepo = GitRepo.objects.select_for_update(of=("self",)).filter(pk=pk).first()
            pruned += int(gitrepo is not None and registration.purge(gitrepo))
    return pruned


def prune_remotes(limit: int) -> int:
    """Remotes go here alone, under the row's lock after another look: a registration may be joining."""
    pruned = 0
    for pk in list(Remote.objects.filter(gitrepos__isnull=True).values_list("pk", flat=True)[:limit]):
        try:
            with transaction.atomic():
                remote = Remote.objects.select_for_update(of=("self",)).filter(pk=pk, lease_token__isnull=True).first()
                if remote is not None and not remote.gitrepos.exists():
                    remote.delete()
                    pruned += 1
        except ProtectedError:
            continue
    return pruned
