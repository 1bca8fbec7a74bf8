"""Telling people what happened."""

from datetime import datetime, timedelta

from django.db.models import F, Q, QuerySet

from repos.models import Event, GitRepo, Remote

MESSAGE_LENGTH = 1024
# The same event again within this time raises a count instead of making a row.
SAME_WITHIN = timedelta(hours=1)


def cut(text: str, length: int = MESSAGE_LENGTH) -> str:
    """`text` at most `length` characters long, without what no database stores: NUL and halves of characters."""
    text = text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    return text if len(text) <= length else text[: length - 1] + "…"


def record_event(
    about: GitRepo | Remote | None, reason: str, message: str, now: datetime, *, warning: bool = False
) -> None:
    """Add an event about a GitRepo, a Remote or the installation, or raise the count of the same one if it is recent."""
    what = {
        "gitrepo_id": about.pk if isinstance(about, GitRepo) else None,
        "remote_id": about.pk if isinstance(about, Remote) else None,
        "type": Event.Type.WARNING if warning else Event.Type.NORMAL,
        "reason": reason,
        "message": cut(message),
    }
    same = Event.objects.filter(**what, last_at__gt=now - SAME_WITHIN).order_by("-last_at")
    pk = same.values_list("pk", flat=True).first()
    if pk is None or not Event.objects.filter(pk=pk).update(count=F("count") + 1, last_at=now):
        Event.objects.create(**what, first_at=now, last_at=now)


def events_of(gitrepo: GitRepo) -> QuerySet[Event]:
    """What happened to the GitRepo and, since it follows it, to its Remote; the newest first."""
    return Event.objects.filter(Q(gitrepo=gitrepo) | Q(remote=gitrepo.remote_id)).order_by("-last_at", "-pk")
