"""Waiting for a revision to end, in a request: by looking, and holding nothing meanwhile."""

import threading
import time
from typing import Any

from django.conf import settings
from rest_framework import exceptions, serializers, status

from fleetsync.durations import parse_duration
from repos.api.ledger import RecordSerializer
from repos.models import DeliveryRecord, GitRepo, Revision

LOOK_EVERY_SECONDS = 0.5
LONGEST_SECONDS = 60.0
DEFAULT_SECONDS = 30.0
LARGEST_REVISION = 2**63 - 1

# A request that waits holds a thread: half of them stay free for everybody else.
_places = threading.BoundedSemaphore(max(1, settings.WEB_THREADS // 2))


class TooManyWait(exceptions.APIException):
    status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    default_detail = "Too many requests are waiting already. Try again in a moment."
    default_code = "too_many"
    wait = 1


def timeout_seconds(text: str | None) -> float:
    """`30`, `30s` or nothing, in seconds; more than a minute is a minute."""
    if not text:
        return DEFAULT_SECONDS
    try:
        digits = len(text) <= 10 and text.isascii() and text.isdecimal()
        return min(float(text) if digits else parse_duration(text), LONGEST_SECONDS)
    except ValueError:
        sentence = "This is a number of seconds or a duration like 30s."
        raise serializers.ValidationError({"timeout": [sentence]}) from None


def revision_number(text: str | None) -> int | None:
    """The number asked for; None: the newest one, once everything that is asked for now is answered."""
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 19 and 1 <= int(text) <= LARGEST_REVISION):
        raise serializers.ValidationError({"revision": ["This is the number of a revision, from 1 upwards."]})
    return int(text)


def progress(pk: int, number: int | None) -> dict[str, Any]:
    """How far the revision has come. Raises GitRepo.DoesNotExist."""
    gitrepo = GitRepo.objects.alive().get(pk=pk)
    settled = gitrepo.requested <= gitrepo.handled and gitrepo.force_sync_generation <= gitrepo.handled_force
    wanted = number if number is not None else max(1, gitrepo.latest_revision)
    revision = Revision.objects.filter(gitrepo=pk, number=wanted).first()
    if revision is None:
        # Beyond the newest: it is still to come. Below it: it ended long ago, and its row was pruned.
        return {
            "ended": wanted <= gitrepo.latest_revision,
            "revision": wanted,
            "commit": "",
            "outcome": "",
            "records": [],
        }
    records = list(DeliveryRecord.objects.filter(revision=revision).select_related("cluster").order_by("cluster__name"))
    ended = revision.outcome != Revision.Outcome.OPEN and all(r.outcome not in DeliveryRecord.OPEN for r in records)
    return {
        "ended": ended and (number is not None or settled),
        "revision": wanted,
        "commit": revision.commit,
        "outcome": revision.outcome,
        "records": RecordSerializer(records, many=True).data,
    }


def wait_for(pk: int, number: int | None, seconds: float) -> dict[str, Any]:
    """`progress` as soon as the revision has ended, or after `seconds`. Raises GitRepo.DoesNotExist and TooManyWait."""
    deadline = time.monotonic() + seconds
    found = progress(pk, number)
    if found["ended"] or seconds <= 0:
        return found
    if not _places.acquire(blocking=False):
        raise TooManyWait
    try:
        while not found["ended"] and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(LOOK_EVERY_SECONDS, left))
            found = progress(pk, number)
        return found
    finally:
        _places.release()
