"""The scheduler of the few periodic entries (tick, resync, prune): django-celery-beat's, made to go on.

What the stock one lacks, and what is done about it here:

1. It compares wall clock readings, so a clock stepped back stops it. Here intervals are counted by a clock
   that only runs forward, and an entry that was missed for an hour fires once.
2. It ends when the database is away at a reload. Here it goes on with the entries that it knows.
3. It waits without end for a broker that is away. Here a doorbell that cannot be sent is dropped: the next
   second rings again.
4. It fills a queue that nobody serves. Here a queue that holds a few messages is left alone.
"""

import datetime as dt
import logging
import time
from typing import Any

from celery import schedules
from django.db import Error as DatabaseError
from django.db import close_old_connections, connection
from django.utils import timezone
from django_celery_beat.schedulers import DatabaseScheduler, ModelEntry

from fleetsync.alive import show_alive
from fleetsync.redis import redis_client

log = logging.getLogger(__name__)

# A queue that already holds this many doorbells gets no more: each of them finds whatever is due.
ENOUGH_QUEUED = 4
# Seconds between looks at whether the entries were edited, and after which they are read in any case.
LOOK_EVERY = 1.0
READ_EVERY = 300.0
# Seconds between lines about the same trouble.
COMPLAIN_EVERY = 60.0

_started = timezone.now()
_started_monotonic = time.monotonic()


def steady_now() -> dt.datetime:
    """An instant that only runs forward, at the wall clock's pace, and is near it until that is stepped."""
    return _started + dt.timedelta(seconds=time.monotonic() - _started_monotonic)


def drop_broken_connection() -> None:
    """Lets go of a connection that is broken or too old, as a request does at its end; none in a transaction."""
    if not connection.in_atomic_block:
        close_old_connections()


class SteadyEntry(ModelEntry):  # type: ignore[misc]
    """One PeriodicTask. Intervals are counted on the steady clock; a crontab means the wall clock."""

    def __init__(self, model: Any, app: Any = None) -> None:
        super().__init__(model, app=app)
        if self.is_interval:
            self.schedule.nowfun = steady_now

    @property
    def is_interval(self) -> bool:
        return isinstance(self.schedule, schedules.schedule)

    def _default_now(self) -> dt.datetime:
        return steady_now() if self.is_interval else super()._default_now()

    def save(self) -> None:
        """Writes when it ran last, by the wall clock, and touches nothing that somebody may be editing."""
        last_run_at = self.model.last_run_at
        if self.is_interval:
            last_run_at = timezone.now() - (steady_now() - last_run_at)
        type(self.model).objects.filter(pk=self.model.pk).update(
            last_run_at=last_run_at, total_run_count=self.model.total_run_count
        )


class Scheduler(DatabaseScheduler):  # type: ignore[misc]
    """See the module. Two of these at once send each entry twice: harmless, a doorbell carries nothing."""

    Entry = SteadyEntry
    # The stock property waits for the broker without end. Without one, Celery's own pool of producers is
    # used.
    producer = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._schedule: dict[str, SteadyEntry] = {}
        self._look_at = self._read_at = 0.0
        self._last_change: dt.datetime | None = None
        self._trouble: dict[str, float] = {}
        self._alive_at = 0.0
        super().__init__(*args, **kwargs)

    def setup_schedule(self) -> None:
        """The entries are rows that a migration makes; there is no result that would need a clean-up."""
        self._refresh()

    # -- the clock -------------------------------------------------------------------------------------------

    def _when(
        self,
        entry: SteadyEntry,  # noqa: ARG002 - as in the base
        next_time_to_run: float,
        mktime: object = None,  # noqa: ARG002 - as in the base
    ) -> float:
        """The place in the heap: seconds on the monotonic clock."""
        return time.monotonic() + float(self.adjust(next_time_to_run) or 0)

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """One pass; the seconds to sleep. Whatever goes wrong, another pass follows within a second."""
        try:
            self._refresh()
            self._show_alive()
            wait = float(super().tick(*args, **kwargs))
        except Exception:
            log.exception("beat's pass failed and is repeated in a second")
            self._heap = None
            return 1.0
        return min(wait, LOOK_EVERY)

    # -- the entries -----------------------------------------------------------------------------------------

    @property
    def schedule(self) -> dict[str, SteadyEntry]:
        """The entries as last read. Reading them is _refresh's, once in a pass."""
        return self._schedule

    def _refresh(self) -> None:
        """Reads the entries if they were edited, or are old; keeps the known ones if it cannot."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY
        try:
            drop_broken_connection()
            change = self.Changes.last_change()
            # Compared for inequality: an edit after the clock was stepped back is older than the last one.
            if change == self._last_change and now < self._read_at:
                return
            self.sync()
            fresh = self.all_as_schedule()
        except DatabaseError as error:
            self._complain("database", "beat goes on with the entries that it knows: the database is away", error)
            return
        self._last_change, self._read_at = change, now + READ_EVERY
        self._schedule = fresh
        self._heap = None
        self._recovered("database", "the database is back")

    def all_as_schedule(self) -> dict[str, SteadyEntry]:
        """The enabled rows as entries, each going on from when it ran last, which is never in the future."""
        fresh: dict[str, SteadyEntry] = super().all_as_schedule()
        for name, entry in fresh.items():
            if not entry.is_interval:
                continue
            known = self._schedule.get(name)
            if known is not None and known.is_interval:
                # What we remember is on this process's clock, the row is not.
                entry.model.last_run_at = known.model.last_run_at
            entry.last_run_at = entry.model.last_run_at = min(entry.model.last_run_at, steady_now())
        return fresh

    def sync(self) -> None:
        """Writes when the entries ran last. A database that is away costs the admin page that alone."""
        try:
            drop_broken_connection()
            while self._dirty:
                entry = self._schedule.get(self._dirty.pop())
                if entry is not None:
                    entry.save()
        except DatabaseError as error:
            self._complain("database", "beat could not write when its entries ran: the database is away", error)

    # -- sending ---------------------------------------------------------------------------------------------

    def apply_entry(self, entry: SteadyEntry, producer: Any = None) -> None:
        """Sends the entry's message unless its queue has enough. A broker that is away stops nothing."""
        queue = entry.options.get("queue") or self.app.conf.task_default_queue
        try:
            if int(redis_client().llen(queue)) >= ENOUGH_QUEUED:
                self._complain(
                    f"queue {queue}", f"queue {queue} is not being emptied: nothing more is sent to it", None
                )
                return
            self.apply_async(entry, producer=producer, advance=False)
        except Exception as error:  # noqa: BLE001 - redis-py's, kombu's and the operating system's, in several wrappers
            self._complain("broker", "beat could not send an entry: the broker is away", error)
            return
        self._recovered("broker", "the broker is back")
        self._recovered(f"queue {queue}", f"queue {queue} is being emptied again")

    # -- telling ---------------------------------------------------------------------------------------------

    def _complain(self, what: str, sentence: str, error: BaseException | None) -> None:
        """A warning when `what` begins to fail and once a minute while it does."""
        now = time.monotonic()
        if now >= self._trouble.get(what, 0.0):
            self._trouble[what] = now + COMPLAIN_EVERY
            log.warning("%s%s", sentence, f" ({error})" if error else "")

    def _recovered(self, what: str, sentence: str) -> None:
        if self._trouble.pop(what, None) is not None:
            log.warning(sentence)

    def _show_alive(self) -> None:
        now = time.monotonic()
        if now >= self._alive_at:
            self._alive_at = now + 5.0
            show_alive("beat")
