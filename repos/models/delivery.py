from django.db import models

from repos.leases import Leased
from repos.models.bundle import Bundle
from repos.models.cluster import Cluster
from repos.models.gitrepo import GitRepo
from repos.models.revision import Revision


class Delivery(Leased):
    """One GitRepo at one Cluster: what is wanted there and what is applied.

    `sequence` rises whenever what is wanted changes; (epoch, sequence) orders everything that a target ever sees.
    """

    class State(models.TextChoices):
        WAITING = "waiting", "waiting"
        APPLIED = "applied", "applied"
        FAILED = "failed", "failed, will be retried"
        HELD = "held", "held until approved"
        REMOVED = "removed", "removed"
        KEPT = "kept", "no longer a target, content kept"

    gitrepo = models.ForeignKey(GitRepo, on_delete=models.CASCADE, related_name="deliveries")
    cluster = models.ForeignKey(Cluster, on_delete=models.CASCADE, related_name="deliveries")
    state = models.CharField(max_length=8, choices=State.choices, default=State.WAITING)

    sequence = models.PositiveBigIntegerField(default=0)
    epoch = models.PositiveBigIntegerField(default=0)
    # Nothing is wanted there any more: the content is to be removed.
    removal = models.BooleanField(default=False)
    wanted_revision = models.ForeignKey(Revision, null=True, on_delete=models.SET_NULL, related_name="+")
    wanted_bundle = models.ForeignKey(Bundle, null=True, on_delete=models.PROTECT, related_name="+")
    wanted_at = models.DateTimeField(null=True)
    # The sequence that somebody approved although it removes much.
    approved_sequence = models.PositiveBigIntegerField(default=0)

    applied_sequence = models.PositiveBigIntegerField(default=0)
    applied_epoch = models.PositiveBigIntegerField(default=0)
    applied_revision = models.ForeignKey(Revision, null=True, on_delete=models.SET_NULL, related_name="+")
    applied_bundle = models.ForeignKey(Bundle, null=True, on_delete=models.PROTECT, related_name="+")
    applied_at = models.DateTimeField(null=True)

    # null: nothing to do here, or the GitRepo is paused.
    due_at = models.DateTimeField(null=True)
    failures = models.PositiveIntegerField(default=0)
    last_error = models.CharField(max_length=1024, blank=True, default="")

    class Meta:
        verbose_name_plural = "deliveries"
        constraints = [
            models.UniqueConstraint(fields=["gitrepo", "cluster"], name="one_delivery_per_gitrepo_and_cluster")
        ]
        indexes = [
            models.Index(fields=["due_at"], name="delivery_due", condition=models.Q(due_at__isnull=False)),
            models.Index(fields=["cluster"], name="delivery_leased", condition=models.Q(lease_until__isnull=False)),
        ]

    def __str__(self) -> str:
        return f"{self.gitrepo} at {self.cluster}"


class DeliveryRecord(models.Model):
    """The ledger's line for one Revision at one Cluster, with exactly one outcome once it has ended."""

    class Outcome(models.TextChoices):
        PENDING = "pending", "pending"
        DELIVERED = "delivered", "delivered"
        SUPERSEDED = "superseded", "superseded by a newer revision"
        UNCHANGED = "unchanged", "nothing changed below the paths"
        HELD = "held", "held until approved"
        WITHDRAWN = "withdrawn", "the cluster is no longer a target"
        FAILED = "failed", "failed, will be retried"

    # Outcomes that may still change.
    OPEN = (Outcome.PENDING, Outcome.HELD, Outcome.FAILED)

    revision = models.ForeignKey(Revision, on_delete=models.CASCADE, related_name="records")
    cluster = models.ForeignKey(Cluster, on_delete=models.CASCADE, related_name="records")
    outcome = models.CharField(max_length=10, choices=Outcome.choices, default=Outcome.PENDING)
    error = models.CharField(max_length=1024, blank=True, default="")
    wanted_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["revision", "cluster"], name="one_record_per_revision_and_cluster")
        ]

    def __str__(self) -> str:
        return f"{self.revision} at {self.cluster}: {self.outcome}"
