from collections.abc import Mapping

from django.db import models
from django.db.models import F


class Counter(models.Model):
    """A number that only rises, kept where every worker can add to it and /metrics can read it."""

    name = models.CharField(max_length=80)
    # "" or one label and its value, as in `result=ok`.
    label = models.CharField(max_length=80, blank=True, default="")
    value = models.FloatField(default=0)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["name", "label"], name="counter_once")]

    def __str__(self) -> str:
        return f"{self.name}{{{self.label}}}"

    @staticmethod
    def add(amounts: Mapping[tuple[str, str], float]) -> None:
        """Add to several counters, in one order for all processes, so that two of them cannot wait for each other."""
        for (name, label), amount in sorted(amounts.items()):
            if amount and not Counter.objects.filter(name=name, label=label).update(value=F("value") + amount):
                Counter.objects.bulk_create([Counter(name=name, label=label)], ignore_conflicts=True)
                Counter.objects.filter(name=name, label=label).update(value=F("value") + amount)
