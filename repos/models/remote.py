import hashlib

from django.db import models

from repos.leases import Leased
from repos.models.credential import Credential
from repos.models.host import Host


class Remote(Leased):
    """One (normalised URL, credential, TLS settings): the thing that is polled. Many GitRepos share one."""

    DUE = "next_poll_at"

    identity = models.CharField(max_length=64, editable=False)
    url = models.CharField("URL", max_length=2048)
    host = models.ForeignKey(Host, on_delete=models.PROTECT, related_name="remotes")
    credential = models.ForeignKey(
        Credential, null=True, on_delete=models.PROTECT, related_name="remotes", db_index=False
    )
    ca_bundle = models.TextField(blank=True, default="")
    insecure_skip_tls_verify = models.BooleanField(default=False)
    # Where the host led the last successful poll, "" where it answered itself.
    redirected_to = models.CharField(max_length=2048, blank=True, default="", db_default="")
    created_at = models.DateTimeField(auto_now_add=True)

    # null only when no follower polls, has a request that is not handled, or never synced.
    next_poll_at = models.DateTimeField(null=True)
    # The shortest effective interval of the polling followers, their own backoff included; null when none polls.
    interval_seconds = models.FloatField(null=True)
    # Counts what should make a poll come sooner; a claim reads it, a release compares it.
    wakes = models.PositiveBigIntegerField(default=0)
    # The wakes that the last successful poll had read.
    answered = models.PositiveBigIntegerField(default=0)

    # What the last polls said: {full ref name: commit}, for what was asked; `change` counts its changes.
    refs = models.JSONField(default=dict)
    asked = models.JSONField(default=list)
    digest = models.CharField(max_length=64, blank=True, default="")
    change = models.PositiveBigIntegerField(default=0)
    # {ref: its last heads, newest last}, and heads that came back and want a second poll's word.
    recent = models.JSONField(default=dict)
    returning = models.JSONField(default=dict)

    last_poll_at = models.DateTimeField(null=True)
    last_success_at = models.DateTimeField(null=True)
    # When consecutive_failures last left or reached 0.
    health_changed_at = models.DateTimeField(null=True)
    last_poll_seconds = models.FloatField(null=True)
    # How late the last poll was against its schedule, in seconds.
    last_lag_seconds = models.FloatField(null=True)
    consecutive_failures = models.PositiveIntegerField(default=0)
    last_error = models.CharField(max_length=1024, blank=True, default="")

    class Meta:
        # Each poll writes its row twice, and each index of the row with it: there is none that can be spared (Django makes two
        # for a unique text, one of them for LIKE).
        constraints = [models.UniqueConstraint(fields=["identity"], name="remote_identity")]
        indexes = [
            models.Index(fields=["credential"], name="remote_credential", condition=models.Q(credential__isnull=False)),
            models.Index(fields=["next_poll_at"], name="remote_due", condition=models.Q(next_poll_at__isnull=False)),
            models.Index(fields=["host"], name="remote_leased", condition=models.Q(lease_until__isnull=False)),
        ]

    def __str__(self) -> str:
        return self.url

    @staticmethod
    def identity_of(url: str, credential_id: int | None, ca_bundle: str, insecure_skip_tls_verify: bool) -> str:
        """The name under which GitRepos with the same normalised `url` and access share a Remote."""
        parts = (url, str(credential_id or 0), ca_bundle, str(int(insecure_skip_tls_verify)))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class Adoption(Leased):
    """The stage between a Remote's answer and its followers' revisions: due after an answer that may concern them."""

    remote = models.OneToOneField(Remote, on_delete=models.CASCADE, related_name="adoption")
    due_at = models.DateTimeField(null=True)
    # Counts the answers; an adoption that read an older number leaves the row due.
    wanted = models.PositiveBigIntegerField(default=0)
    # Tries in a row that ended with a follower which could not take in the answer.
    failures = models.PositiveIntegerField(default=0, db_default=0)

    class Meta:
        indexes = [models.Index(fields=["due_at"], name="adoption_due", condition=models.Q(due_at__isnull=False))]

    def __str__(self) -> str:
        return f"adoption of {self.remote}"
