import uuid

from django.db import models
from simple_history.models import HistoricalRecords

from repos.models.credential import Credential
from repos.models.remote import Remote
from repos.validators import (
    validate_ca_bundle,
    validate_commit,
    validate_name,
    validate_paths,
    validate_polling_interval,
    validate_ref,
    validate_semver_range,
    validate_targets,
    validate_url,
)

# What the pipeline writes: not part of the spec, and not of its history.
MACHINERY = [
    "remote",
    "interval_seconds",
    "requested",
    "handled",
    "handled_force",
    "follows_since",
    "adopted_remote",
    "adopted_change",
    "ref_failures",
    "ref_error",
    "observed_commit",
    "observed_at",
    "latest_revision",
    "wanted_revision",
]


class GitRepoQuerySet(models.QuerySet["GitRepo"]):
    def alive(self) -> "GitRepoQuerySet":
        """Without the tombstones of deleted ones whose removals have not ended."""
        return self.filter(deleted_at__isnull=True)


class GitRepo(models.Model):
    """What a user registers: a repository, the revision to follow, the paths, and the targets.

    The spec is changed through repos.registration alone, which keeps `generation` and wakes the remote. At most one of
    branch, tag, semver and commit is given; none follows the remote's HEAD.
    """

    uuid = models.UUIDField(default=uuid.uuid4, unique=True, editable=False)
    name = models.CharField(max_length=63, validators=[validate_name])
    url = models.CharField("URL", max_length=2048, validators=[validate_url])
    branch = models.CharField(max_length=255, blank=True, default="", validators=[validate_ref])
    tag = models.CharField(max_length=255, blank=True, default="", validators=[validate_ref])
    semver = models.CharField(max_length=255, blank=True, default="", validators=[validate_semver_range])
    commit = models.CharField(max_length=64, blank=True, default="", validators=[validate_commit])
    paths = models.JSONField(default=list, blank=True, validators=[validate_paths])
    polling_interval = models.CharField(
        max_length=64,
        blank=True,
        default="",
        validators=[validate_polling_interval],
        help_text="As in 15s or 1h30m.",
    )
    disable_polling = models.BooleanField(default=False)
    paused = models.BooleanField(default=False)
    credential = models.ForeignKey(Credential, null=True, blank=True, on_delete=models.PROTECT, related_name="gitrepos")
    ca_bundle = models.TextField(blank=True, default="", validators=[validate_ca_bundle])
    insecure_skip_tls_verify = models.BooleanField(default=False)
    targets = models.JSONField(default=list, blank=True, validators=[validate_targets])
    correct_drift = models.BooleanField(default=False)
    keep_resources = models.BooleanField(default=False)
    # As in Fleet: raising it asks for a sync of the newest commit even if nothing changed.
    force_sync_generation = models.PositiveBigIntegerField(default=0)
    # Rises with what shapes the content: the source and the paths.
    generation = models.PositiveBigIntegerField(default=1, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    # Set: a tombstone, which lives until its removals have ended.
    deleted_at = models.DateTimeField(null=True, editable=False, db_index=True)

    remote = models.ForeignKey(Remote, on_delete=models.PROTECT, related_name="gitrepos", editable=False)
    interval_seconds = models.FloatField(default=0, editable=False)
    # The sum of the remote's `wakes` at this GitRepo's last request, and the last one whose effect is stored.
    requested = models.PositiveBigIntegerField(default=0, editable=False)
    handled = models.PositiveBigIntegerField(default=0, editable=False)
    handled_force = models.PositiveBigIntegerField(default=0, editable=False)
    # The sum of the remote's `wakes` when the source was last edited: an answer to an older question is not for it.
    follows_since = models.PositiveBigIntegerField(default=0, editable=False)
    # The (remote, change) last adopted: compared for inequality alone.
    adopted_remote = models.BigIntegerField(null=True, editable=False)
    adopted_change = models.BigIntegerField(null=True, editable=False)
    # Polls in a row that found the remote well and the ref missing.
    ref_failures = models.PositiveIntegerField(default=0, editable=False)
    ref_error = models.CharField(max_length=1024, blank=True, default="", editable=False)
    observed_commit = models.CharField(max_length=64, blank=True, default="", editable=False)
    observed_at = models.DateTimeField(null=True, editable=False)
    latest_revision = models.PositiveBigIntegerField(default=0, editable=False)
    # The newest revision that was synced: what its deliveries want.
    wanted_revision = models.ForeignKey(
        "repos.Revision", null=True, on_delete=models.SET_NULL, related_name="+", editable=False
    )

    objects = GitRepoQuerySet.as_manager()
    history = HistoricalRecords(excluded_fields=MACHINERY)

    class Meta:
        verbose_name = "GitRepo"
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(
                fields=["name"],
                condition=models.Q(deleted_at__isnull=True),
                name="gitrepo_name_once",
                violation_error_message="A GitRepo with this name exists already.",
            ),
            models.CheckConstraint(condition=models.Q(interval_seconds__gt=0), name="gitrepo_interval_positive"),
        ]
        indexes = [models.Index(fields=["remote", "adopted_change"], name="gitrepo_to_adopt")]

    def __str__(self) -> str:
        return self.name
