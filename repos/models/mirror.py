from django.db import models

from repos.leases import Leased
from repos.models.remote import Remote


class Mirror(Leased):
    """The kept copy of one Remote on one worker machine. Fetching into it is leased."""

    remote = models.ForeignKey(Remote, on_delete=models.CASCADE, related_name="mirrors")
    worker_host = models.CharField(max_length=255)
    due_at = models.DateTimeField(null=True)
    size_bytes = models.BigIntegerField(default=0)
    last_fetch_at = models.DateTimeField(null=True)
    last_used_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["remote", "worker_host"], name="one_mirror_per_remote_and_host")]

    def __str__(self) -> str:
        return f"{self.remote} on {self.worker_host}"
