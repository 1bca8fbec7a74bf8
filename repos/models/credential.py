from django.db import models
from simple_history.models import HistoricalRecords

from repos.fields import EncryptedTextField
from repos.validators import validate_name


class Credential(models.Model):
    """What a remote wants to see before it answers. The secret is written, never read back."""

    class Kind(models.TextChoices):
        BASIC = "basic", "user name and password"
        TOKEN = "token", "token"
        SSH = "ssh", "SSH private key"

    name = models.CharField(max_length=63, unique=True, validators=[validate_name])
    kind = models.CharField(max_length=8, choices=Kind.choices)
    username = models.CharField(max_length=255, blank=True, default="")
    secret = EncryptedTextField(help_text="The password, the token, or the private key in PEM or OpenSSH form.")
    known_hosts = models.TextField(
        blank=True, default="", max_length=65536, help_text="For SSH: lines as ssh-keyscan prints them."
    )
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    history = HistoricalRecords(excluded_fields=["secret"])

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name
