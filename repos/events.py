"""Telling people what happened."""

from datetime import datetime, timedelta

from django.db.models import F

from repos.models import Event, GitRepo

MESSAGE_LENGTH = 1024
# The same event again within this time raises a count instead of making a row.
SAME_WITHIN = timedelta(hours=1)


def cut(text: str, length: int = MESSAGE_LENGTH) -> str:
    """`text` at most `length` characters long."""
    return text if len(text) <= length else text[: length - 1] + "…"


def record_event(gitrepo: GitRepo | None, reason: str, message: str, now: datetime, *, warning: bool = False) -> None:
    """Add an event, or raise the count of the same one if it happened lately."""
    kind = Event.Type.WARNING if warning else Event.Type.NORMAL
    message = cut(message)
    same = Event.objects.filter(
        gitrepo=gitrepo, reason=reason, message=message, type=kind, last_at__gt=now - SAME_WITHIN
    ).order_by("-last_at")
    pk = same.values_list("pk", flat=True).first()
    if pk is None or not Event.objects.filter(pk=pk).update(count=F("count") + 1, last_at=now):
        Event.objects.create(gitrepo=gitrepo, reason=reason, message=message, type=kind, first_at=now, last_at=now)
