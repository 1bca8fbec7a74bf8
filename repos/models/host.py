from django.db import models


class Host(models.Model):
    """One Git host. Its polls in flight are counted from live leases, never stored."""

    name = models.CharField(max_length=255)
    port = models.PositiveIntegerField()
    # Polls in a row, of all its remotes together, that did not reach the host or got no answer from it: its breaker.
    failures = models.PositiveIntegerField(default=0, db_default=0)
    failing_since = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["name", "port"], name="host_once")]

    def __str__(self) -> str:
        return f"{self.name}:{self.port}" if self.port else self.name


class HostNotBefore(models.Model):
    """The host asked not to be polled with this credential before an instant (429, Retry-After)."""

    host = models.ForeignKey(Host, on_delete=models.CASCADE, related_name="not_before")
    # The Credential's primary key, 0 without one.
    credential_key = models.BigIntegerField(default=0)
    until = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["host", "credential_key"], name="host_not_before_once")]

    def __str__(self) -> str:
        return f"{self.host} not before {self.until}"
