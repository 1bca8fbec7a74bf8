"""A poll session: keep a number of requests in flight, claim only into free slots, write results a few times a second.

A server that hangs holds its own slot until its own deadline, and nobody else's.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from django.conf import settings

from fleetsync.failpoints import hit
from fleetsync.stopping import drain_seconds
from repos.fields import SecretUnreadable
from repos.leases import give_back
from workers.access import access_of
from workers.poll.claim import ClaimedRemote, claim_remotes, claim_suspect
from workers.poll.engine import Engine, PollError, PollRequest, PollResult
from workers.poll.results import store

log = structlog.get_logger(__name__)

FLUSH_SECONDS = 0.25
FLUSH_ROWS = 200
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
        self.polled = 0

    def run(self) -> SessionReport:
        """Poll until nothing is due or the budget is over, then until the last request in flight has ended."""
        while True:
            now = time.monotonic()
            if now >= self.next_claim and now < self.claim_until and not self.stopping():
                self._claim(now)
            if not self.claimed and not self.answers:
                return SessionReport(self.polled, time.monotonic() - self.started)
            for result in self.engine.wait(FLUSH_SECONDS / 2):
                self.answers.append((self.claimed.pop(result.key), result))
            self._flush_if_time()
            if self.claimed and self.stopping():
                self._give_up_if_time()

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
            return
        free = self.limit - len(self.claimed)
        batch = claim_remotes(free) if free > 0 else []
        for claimed in batch:
            self._start(claimed)
        # Nothing was due: look again with the next flush, unless everything ends before.
        self.next_claim = now if len(batch) == free and free else now + FLUSH_SECONDS

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
            # Leases were given back, and with them places at their hosts.
            self.next_claim = 0.0
