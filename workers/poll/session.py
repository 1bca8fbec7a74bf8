"""A poll session: keep a number of requests in flight, claim only into free slots, write results a few times a second.

A server that hangs holds its own slot until its own deadline, and nobody else's. Claims and writes cost the database and
this process nearly the same for one row as for fifty, so both wait, for a fraction of a second, for company.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

import structlog
from django.conf import settings

from fleetsync.failpoints import hit
from fleetsync.stopping import drain_seconds
from repos.fields import SecretUnreadable
from repos.leases import give_back
from workers.access import access_of
from workers.poll.claim import ClaimedRemote, claim_remotes, claim_suspect, is_any_due
from workers.poll.engine import Engine, PollError, PollRequest, PollResult
from workers.poll.results import store

log = structlog.get_logger(__name__)

FLUSH_SECONDS = 0.25
FLUSH_ROWS = 200
# What has been in flight for longer is no longer counted among the slots that come back soon.
SLOW_SECONDS = 1.0
# The part of a session's budget in which it tries suspects, one at a time with nothing beside it. Then come the others:
# suspects that answer slowly must not keep them waiting.
PROBATION_PART = 0.25


@dataclass(frozen=True, slots=True)
class SessionReport:
    polled: int
    seconds: float


class Session:
    """One run of `limit` requests in flight over `engine`, which outlives it and is empty again at its end."""

    def __init__(self, engine: Engine, *, limit: int, budget_seconds: float, stopping: Callable[[], bool]) -> None:
        self.engine, self.limit, self.stopping = engine, limit, stopping
        self.started = time.monotonic()
        self.claim_until = self.started + budget_seconds
        self.probation_until = self.started + budget_seconds * PROBATION_PART
        self.holds_suspect = False
        self.give_up_at: float | None = None
        self.claimed: dict[int, ClaimedRemote] = {}
        self.answers: list[tuple[ClaimedRemote, PollResult]] = []
        self.next_claim = self.next_flush = 0.0
        # Whether something was due or was polled since the last claim, whether that found as much as there was room for, and
        # whether more was due than hosts had room for.
        self.found_work = self.found_more = self.hosts_are_full = False
        self.polled = 0

    def run(self) -> SessionReport:
        """Poll until nothing is due or the budget is over, then until the last request in flight has ended."""
        while True:
            now = time.monotonic()
            may_claim = now < self.claim_until and not self.stopping()
            if may_claim and (now >= self.next_claim or self._has_room(now)):
                self._claim(now)
            if not self.claimed and not self.answers:
                if not may_claim or not self.found_work:
                    return SessionReport(self.polled, time.monotonic() - self.started)
                # Where something was due, something will be: another session would begin at the next tick.
                time.sleep(max(0.0, self.next_claim - now))
                continue
            for result in self.engine.wait(FLUSH_SECONDS / 2):
                self.answers.append((self.claimed.pop(result.key), result))
            self._flush_if_time()
            if self.claimed and self.stopping():
                self._give_up_if_time()

    def _has_room(self, now: float) -> bool:
        """Whether more is due, and half of the slots that come back soon are free."""
        if not self.found_more or len(self.claimed) == self.limit:
            return False
        # In the order of their claims, the oldest first.
        slow = sum(1 for _ in takewhile(lambda claimed: claimed.begun < now - SLOW_SECONDS, self.claimed.values()))
        return 2 * (self.limit - len(self.claimed)) >= self.limit - slow

    def _give_up_if_time(self) -> None:
        """Give back what is still in flight a while after the process was asked to stop. It stays due, so that another
        worker asks at once, and does not wait for the lease of one that was killed.
        """
        now = time.monotonic()
        self.give_up_at = self.give_up_at or now + drain_seconds()
        if now < self.give_up_at:
            return
        claims, self.claimed = list(self.claimed.values()), {}
        for claimed in claims:
            give_back(claimed.remote)
        log.warning("polls given back, because the worker stops", polls=len(claims))
        self.engine.abandon()

    def _claim(self, now: float) -> None:
        if not self.claimed and not self.answers:
            batch = claim_suspect() if now < self.probation_until else []
            self.holds_suspect = bool(batch)
            for claimed in batch:
                self._start(claimed)
        if self.holds_suspect:
            self.found_work, self.next_claim = True, now
            return
        free = self.limit - len(self.claimed)
        batch = claim_remotes(free) if free > 0 else []
        for claimed in batch:
            self._start(claimed)
        if free > 0:
            self.found_work, self.found_more = bool(batch), len(batch) == free
            self.hosts_are_full = len(batch) < free and bool(self.claimed or self.answers) and is_any_due()
        self.next_claim = now + FLUSH_SECONDS

    def _start(self, claimed: ClaimedRemote) -> None:
        if not claimed.follows:
            # The last follower went away after the row was due: nothing is to be asked, and the answer is empty.
            self.answers.append((claimed, PollResult(claimed.remote.pk, 0.0)))
            return
        try:
            access = access_of(claimed.remote)
        except SecretUnreadable as error:
            self.answers.append(
                (claimed, PollResult(claimed.remote.pk, 0.0, error=PollError("credential", str(error))))
            )
            return
        hit("poll.ask", claimed.remote.url)
        self.claimed[claimed.remote.pk] = claimed
        self.engine.start(
            PollRequest(
                key=claimed.remote.pk,
                access=access,
                refs=tuple(claimed.asked),
                timeout_seconds=settings.GIT_TIMEOUT,
                max_refs=settings.GIT_MAX_REFS,
            )
        )

    def _flush_if_time(self) -> None:
        now = time.monotonic()
        if self.answers and (now >= self.next_flush or not self.claimed or len(self.answers) >= FLUSH_ROWS):
            answers, self.answers = self.answers, []
            self.polled += len(answers)
            hit("poll.store", " ".join(claimed.remote.url for claimed, _ in answers))
            store(answers)
            self.next_flush = time.monotonic() + FLUSH_SECONDS
            # What was woken meanwhile is due again.
            self.found_work = True
            if self.hosts_are_full:
                # Leases were given back, and with them places at their hosts.
                self.next_claim = 0.0
