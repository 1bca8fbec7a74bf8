"""The handful of entries that beat has: editable in the admin, and never one for each repository."""

from typing import Any

from django.db import migrations

# name, task, seconds
ENTRIES = [
    ("fleetsync: tick", "workers.tasks.tick", 1),
    ("fleetsync: resync", "workers.tasks.resync", 5),
    ("fleetsync: prune", "workers.tasks.prune", 60),
]


def add_entries(apps: Any, schema_editor: Any) -> None:
    schedules = apps.get_model("django_celery_beat", "IntervalSchedule")
    tasks = apps.get_model("django_celery_beat", "PeriodicTask")
    for name, task, seconds in ENTRIES:
        schedule, _ = schedules.objects.get_or_create(every=seconds, period="seconds")
        tasks.objects.get_or_create(name=name, defaults={"task": task, "interval": schedule, "queue": "control"})


def remove_entries(apps: Any, schema_editor: Any) -> None:
    apps.get_model("django_celery_beat", "PeriodicTask").objects.filter(name__in=[e[0] for e in ENTRIES]).delete()


class Migration(migrations.Migration):
    dependencies = [
        ("repos", "0001_initial"),
        ("django_celery_beat", "0019_alter_periodictasks_options"),
    ]
    operations = [migrations.RunPython(add_entries, remove_entries)]
