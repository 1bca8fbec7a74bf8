"""Questions that only workers can answer: made in pages, taken under leases, and waited for."""

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Q, QuerySet

from repos.doctor.waiting import waits
from repos.doorbells import ring_probe
from repos.leases import database_now, leased
from repos.models import Delivery, Mirror, Probe, Remote
from repos.statements import in_pages

LOOK_SECONDS = 0.5
# The queue whose workers answer each kind.
QUEUES = {Probe.Kind.REMOTE: "poll", Probe.Kind.TARGET: "deliver", Probe.Kind.MACHINE: "sync"}
# A machine whose mirrors nobody has used for so long has no worker any more.
MACHINE_USED = timedelta(days=1)

Progress = Callable[[str], None]


def queues_to_ask(now: datetime) -> list[str]:
    """The queues whose workers have questions to answer, and none that does so already: the doctor takes one process of
    each queue at most.
    """
    waiting = set(Probe.objects.filter(waits(Probe, now)).order_by().values_list("kind", flat=True).distinct())
    if not waiting:
        return []
    answering = set(Probe.objects.filter(leased(now)).order_by().values_list("kind", flat=True).distinct())
    return [QUEUES[Probe.Kind(kind)] for kind in sorted(waiting - answering)]


def make(examination: uuid.UUID, probes: Sequence[Probe]) -> int:
    """Store these questions, due at once; how many there are."""
    for page in in_pages(probes):
        now = database_now()
        for probe in page:
            probe.examination, probe.created_at, probe.due_at = examination, now, now
        Probe.objects.bulk_create(page)
    return len(probes)


def remote_probes(only: Iterable[int] | None = None) -> list[Probe]:
    """One for each remote that is polled, or for `only` these."""
    remotes = Remote.objects.filter(next_poll_at__isnull=False)
    return [Probe(kind=Probe.Kind.REMOTE, remote_id=pk) for pk in _keys(remotes, only)]


def target_probes(only: Iterable[int] | None = None) -> list[Probe]:
    """One for each delivery that has ended, in content or in a removal, or for `only` these."""
    ended = Delivery.objects.filter(state__in=(Delivery.State.APPLIED, Delivery.State.REMOVED))
    return [Probe(kind=Probe.Kind.TARGET, delivery_id=pk) for pk in _keys(ended, only)]


def _keys(rows: QuerySet[Any], only: Iterable[int] | None) -> list[int]:
    """The keys of `rows` in their order, or of `only` these among them."""
    found = rows.order_by("pk").values_list("pk", flat=True)
    if only is None:
        return list(found)
    return [pk for page in in_pages(sorted(set(only))) for pk in found.filter(pk__in=page)]


def machine_probes(now: datetime) -> list[Probe]:
    """One for each machine that a worker fetched on."""
    used = Mirror.objects.filter(Q(last_used_at__gt=now - MACHINE_USED) | leased(now))
    hosts = sorted(set(used.values_list("worker_host", flat=True)))
    return [Probe(kind=Probe.Kind.MACHINE, worker_host=host) for host in hosts]


def wait(examination: uuid.UUID, until: float, progress: Progress) -> bool:
    """Whether all questions of the `examination` are answered before `until`, on the monotonic clock."""
    before = -1
    ring_at = 0.0
    while True:
        left = Probe.objects.filter(examination=examination, due_at__isnull=False).count()
        if left != before:
            progress(f"{left} questions are open" if left else "all questions are answered")
            before = left
        now = time.monotonic()
        if not left or now >= until:
            return not left
        if now >= ring_at:
            ring_at = now + 1.0
            for queue in queues_to_ask(database_now()):
                ring_probe(queue)
        time.sleep(min(LOOK_SECONDS, max(0.0, until - now)))
