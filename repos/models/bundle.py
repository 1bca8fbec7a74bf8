from django.db import models


class Bundle(models.Model):
    """The content below a GitRepo's paths at some commit, named by the SHA-256 of its deterministic tar."""

    sha256 = models.CharField(max_length=64, unique=True)
    size_bytes = models.BigIntegerField()
    files = models.PositiveIntegerField()
    created_at = models.DateTimeField(auto_now_add=True)
    # When it was last made, opened, or found to be needed. Collection goes by this, with a grace longer than any job.
    last_used_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return self.sha256[:12]
