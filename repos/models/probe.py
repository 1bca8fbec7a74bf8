from django.db import models

from repos.leases import Leased
from repos.models.delivery import Delivery
from repos.models.remote import Remote


class Probe(Leased):
    """A question of `doctor --deep` that only a worker can answer: it is leased like all other work, and changes nothing."""

    class Kind(models.TextChoices):
        REMOTE = "remote", "which commits does the remote have?"
        TARGET = "target", "what does the target have?"
        MACHINE = "machine", "what lies about on the worker's machine?"

    kind = models.CharField(max_length=8, choices=Kind.choices)
    remote = models.ForeignKey(Remote, null=True, on_delete=models.CASCADE, related_name="probes")
    delivery = models.ForeignKey(Delivery, null=True, on_delete=models.CASCADE, related_name="probes")
    # For a machine: the WORKER_HOST whose worker is to look.
    worker_host = models.CharField(max_length=255, blank=True, default="")
    # Joins the probes of one examination.
    examination = models.UUIDField(db_index=True)
    created_at = models.DateTimeField()
    # null: answered.
    due_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    # What was found, in the shape of its kind (workers/probes.py), or why nothing was.
    answer = models.JSONField(default=dict)
    error = models.CharField(max_length=1024, blank=True, default="")

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(kind="remote", remote__isnull=False, delivery__isnull=True)
                | models.Q(kind="target", delivery__isnull=False, remote__isnull=True)
                | (models.Q(kind="machine", delivery__isnull=True, remote__isnull=True) & ~models.Q(worker_host="")),
                name="probe_asks_one_thing",
            )
        ]
        indexes = [models.Index(fields=["due_at"], name="probe_due", condition=models.Q(due_at__isnull=False))]

    def __str__(self) -> str:
        return f"{self.kind} probe {self.pk}"
