from django.db import models
from simple_history.models import HistoricalRecords

from repos.fields import EncryptedTextField
from repos.leases import RELEASED, Leased
from repos.validators import validate_labels, validate_name, validate_selector

LEASE_COLUMNS = [*RELEASED, "wait_seconds"]


class Cluster(Leased):
    """A downstream target. Its lease is the right to match it against the targets of all GitRepos."""

    DUE = "match_due_at"

    name = models.CharField(max_length=63, unique=True, validators=[validate_name])
    labels = models.JSONField(default=dict, blank=True, validators=[validate_labels])
    driver = models.CharField(max_length=32, default="directory")
    settings = models.JSONField(default=dict, blank=True)
    secrets = EncryptedTextField(null=True, blank=True, editable=False, help_text="JSON of the driver's secrets.")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    # Rises when the labels or a group change; a matching that read an older number leaves the row due.
    match_wanted = models.PositiveBigIntegerField(default=0, editable=False)
    match_due_at = models.DateTimeField(null=True, editable=False)

    history = HistoricalRecords(excluded_fields=["secrets", "match_wanted", "match_due_at", *LEASE_COLUMNS])

    class Meta:
        ordering = ["name"]
        indexes = [
            models.Index(
                fields=["match_due_at"],
                name="cluster_match_due",
                condition=models.Q(match_due_at__isnull=False),
            )
        ]

    def __str__(self) -> str:
        return self.name


class ClusterGroup(models.Model):
    """Clusters by label, under a name that targets can use."""

    name = models.CharField(max_length=63, unique=True, validators=[validate_name])
    selector = models.JSONField(default=dict, validators=[validate_selector])
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    history = HistoricalRecords()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name
