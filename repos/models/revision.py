from django.db import models

from repos.models.bundle import Bundle
from repos.models.gitrepo import GitRepo


class Revision(models.Model):
    """One decision about one GitRepo: (commit, generation, reason), numbered upwards."""

    class Reason(models.TextChoices):
        NEW_HEAD = "new head"
        SPEC = "spec"
        FORCE = "force"
        ROLLBACK = "rollback"

    class Outcome(models.TextChoices):
        OPEN = "", "open"
        SUPERSEDED = "superseded", "superseded before it was synced"
        UNCHANGED = "unchanged", "nothing changed below the paths"
        NO_TARGET = "no target", "no cluster matches"
        SYNCED = "synced", "handed to its clusters"

    gitrepo = models.ForeignKey(GitRepo, on_delete=models.CASCADE, related_name="revisions")
    number = models.PositiveBigIntegerField()
    commit = models.CharField(max_length=64)
    ref = models.CharField(max_length=1024, blank=True, default="")
    generation = models.PositiveBigIntegerField()
    reason = models.CharField(max_length=10, choices=Reason.choices)
    outcome = models.CharField(max_length=10, blank=True, choices=Outcome.choices, default=Outcome.OPEN)
    pushed_at = models.DateTimeField(null=True)
    observed_at = models.DateTimeField()
    synced_at = models.DateTimeField(null=True)
    bundle = models.ForeignKey(Bundle, null=True, on_delete=models.PROTECT, related_name="revisions")
    # Names what the paths select in the commit's tree: the same one says that nothing changed.
    selection_key = models.CharField(max_length=64, blank=True, default="")

    class Meta:
        ordering = ["-number"]
        constraints = [models.UniqueConstraint(fields=["gitrepo", "number"], name="revision_number_once")]

    def __str__(self) -> str:
        return f"{self.gitrepo_id}#{self.number} {self.commit[:8]}"
