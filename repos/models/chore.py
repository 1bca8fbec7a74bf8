from django.db import models

from repos.leases import Leased


class Chore(Leased):
    """Work that there is one of: the resync, the pruning. Leased like all other work, with its place kept."""

    RESYNC = "resync"
    PRUNE = "prune"
    HEAL = "heal"

    name = models.CharField(max_length=32, unique=True)
    due_at = models.DateTimeField(null=True)
    # The last primary key that this round has seen, and when the round began.
    cursor = models.BigIntegerField(default=0)
    round_started_at = models.DateTimeField(null=True)
    rounds = models.PositiveIntegerField(default=0)

    def __str__(self) -> str:
        return self.name
