"""Pruning: what nothing needs any more, in bounded batches."""

from datetime import timedelta

from django.db import transaction
from django.db.models import Exists, OuterRef, ProtectedError

from repos import registration
from repos.deliveries import unapplied
from repos.leases import database_now
from repos.models import Delivery, GitRepo, HostNotBefore, Probe, Remote
from workers.bundle.store import BundleStore
from workers.git_environment import sweep_run_folder

BATCH = 200
# A bundle that nobody has written to for so long has no writer any more: longer than any job takes.
ABANDONED_SECONDS = 6 * 3600.0
PROBES_KEPT = timedelta(days=1)


def prune(limit: int = BATCH) -> dict[str, int]:
    """Remove tombstones whose removals have ended, then remotes that nobody follows, then what killed processes left
    on this machine's disk; how many of each.
    """
    HostNotBefore.objects.filter(until__lt=database_now()).delete()
    return {
        "gitrepos": prune_tombstones(limit),
        "remotes": prune_remotes(limit),
        "probes": prune_probes(limit),
        "folders": sweep_run_folder(limit=limit),
        "drafts": BundleStore().sweep(ABANDONED_SECONDS),
    }


def prune_probes(limit: int) -> int:
    """Questions of the doctor that nobody will read the answers of any more."""
    old = Probe.objects.filter(created_at__lt=database_now() - PROBES_KEPT).order_by("pk")
    return Probe.objects.filter(pk__in=list(old.values_list("pk", flat=True)[:limit])).delete()[0]


def prune_tombstones(limit: int) -> int:
    pruned = 0
    # Those with removals that fail again and again must not fill the batch.
    pending = Delivery.objects.filter(unapplied(), gitrepo=OuterRef("pk"))
    ended = GitRepo.objects.filter(~Exists(pending), deleted_at__isnull=False).order_by("pk")
    for pk in list(ended.values_list("pk", flat=True)[:limit]):
        with transaction.atomic():
            gitrepo = GitRepo.objects.select_for_update(of=("self",)).filter(pk=pk).first()
            pruned += int(gitrepo is not None and registration.purge(gitrepo))
    return pruned


def prune_remotes(limit: int) -> int:
    """Remotes go here alone, under the row's lock after another look: a registration may be joining."""
    pruned = 0
    alone = Remote.objects.filter(gitrepos__isnull=True, lease_token__isnull=True).order_by("pk")
    for pk in list(alone.values_list("pk", flat=True)[:limit]):
        try:
            with transaction.atomic():
                remote = Remote.objects.select_for_update(of=("self",)).filter(pk=pk, lease_token__isnull=True).first()
                if remote is not None and not remote.gitrepos.exists():
                    remote.delete()
                    pruned += 1
        except ProtectedError:
            continue
    return pruned
