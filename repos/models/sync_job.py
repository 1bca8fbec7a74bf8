from django.db import models
from django.db.models import Q

from repos.leases import Leased
from repos.models.gitrepo import GitRepo
from repos.models.revision import Revision


class SyncJob(Leased):
    """One run of bringing one GitRepo to one revision: fetch, bundle, make deliveries."""

    class State(models.TextChoices):
        PENDING = "pending"
        RUNNING = "running"
        FAILED = "failed", "failed, will be retried"
        SUCCEEDED = "succeeded"
        SUPERSEDED = "superseded"

    WAITING = (State.PENDING, State.FAILED)

    gitrepo = models.ForeignKey(GitRepo, on_delete=models.CASCADE, related_name="jobs")
    revision = models.OneToOneField(Revision, on_delete=models.CASCADE, related_name="job")
    state = models.CharField(max_length=10, choices=State.choices, default=State.PENDING)
    # null: ended, or the GitRepo is paused.
    due_at = models.DateTimeField(null=True)
    failures = models.PositiveIntegerField(default=0)
    last_error = models.CharField(max_length=1024, blank=True, default="")
    created_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["gitrepo"], condition=Q(state="running"), name="one_running_job_per_gitrepo"
            ),
            models.UniqueConstraint(
                fields=["gitrepo"],
                condition=Q(state__in=["pending", "failed"]),
                name="one_waiting_job_per_gitrepo",
            ),
        ]
        indexes = [models.Index(fields=["due_at"], name="sync_job_due", condition=Q(due_at__isnull=False))]

    def __str__(self) -> str:
        return f"{self.revision}: {self.state}"
