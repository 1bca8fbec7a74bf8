from django.db import models

from repos.models.gitrepo import GitRepo
from repos.models.remote import Remote


class Event(models.Model):
    """Something that happened, for people: as in Kubernetes, the same one again raises a count.

    What happened to a Remote concerns all of its GitRepos, and is kept once.
    """

    class Type(models.TextChoices):
        NORMAL = "Normal"
        WARNING = "Warning"

    gitrepo = models.ForeignKey(GitRepo, null=True, on_delete=models.CASCADE, related_name="events")
    remote = models.ForeignKey(Remote, null=True, on_delete=models.CASCADE, related_name="events")
    type = models.CharField(max_length=8, choices=Type.choices, default=Type.NORMAL)
    reason = models.CharField(max_length=64)
    message = models.CharField(max_length=1024, blank=True, default="")
    count = models.PositiveIntegerField(default=1)
    first_at = models.DateTimeField()
    last_at = models.DateTimeField(db_index=True)

    class Meta:
        ordering = ["-last_at", "-pk"]
        indexes = [
            models.Index(fields=["gitrepo", "-last_at"], name="event_of_gitrepo"),
            models.Index(fields=["remote", "-last_at"], name="event_of_remote"),
        ]

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"
