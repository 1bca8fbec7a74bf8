"""A poll session: keep a number of requests in flight, claim what their slots will soon have room for, write results a few
times a second.

A server that hangs holds its own slot until its own deadline, and nobody else's. Claims and writes cost nearly the same for
one row as for fifty, so what nobody waits for waits a moment for company: a second to be claimed, half of one to be written;
and a claim takes more than there are free slots, as much as slots came back lately. What then has to wait, because the slots
do not come back, is given back.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import structlog
from django.conf import settings
from django.db import DatabaseError

from fleetsync.failpoints import hit
from fleetsync.stopping import drain_seconds
from repos.fields import SecretUnreadable
from repos.leases import give_back_many
from workers.access import access_of
from workers.poll.claim import ClaimedRemote, claim_remotes, claim_suspect, due_and_awaited, full_hosts
from workers.poll.engine import Engine, PollError, PollRequest, PollResult
from workers.poll.results import store

log = structlog.get_logger(__name__)

CLAIM_SECONDS = 1.0
FLUSH_SECONDS = 0.5
FLUSH_ROWS = 200
# Between two looks whether somebody waits for a poll, or for the answer to one.
LOOK_SECONDS = 0.25
URGENT_SECONDS = 0.1
WAIT_SECONDS = 0.125
# What has been in flight for longer is no longer counted among the slots that come back soon.
SLOW_SECONDS = 1.0
# Servers that answer faster have emptied all slots before the next claim is done: then a claim waits for nearly all of them.
FAST_SECONDS = 0.05
ROOM, ROOM_FAST = 0.5, 0.9
# A claim takes as many more as slots came back in so long a time, for at most so many rounds; what has waited for a slot for
# longer is given back.
AHEAD_SECONDS = 0.5
AHEAD_ROUNDS = 3
LONGEST_WAIT_SECONDS = 1.0
# The weight of one answer in what answers typically take.
ANSWER_WEIGHT = 0.1
# After a claim of so many rows a session goes on for so long: another one would begin at the next tick, or at once, to find
# as little. What comes after smaller ones is left to it.
BUSY_ROWS = 8
BUSY_SECONDS = 2.0
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
        # Claimed, and waiting for a slot.
        self.waiting: deque[ClaimedRemote] = deque()
        self.answers: list[tuple[ClaimedRemote, PollResult]] = []
        self.next_claim = self.next_look = 0.0
        self.last_flush = self.last_claim = self.started
        self.answered_since_claim = 0
        # Whether something was due at the last claim or was written since, and whether that claim found as much as there was
        # room for.
        self.found_work = self.found_more = False
        # Of which more was due at that claim than they have places.
        self.full_hosts: set[int] = set()
        # An answer that is there holds a place at one of them until it is written.
        self.holds_a_place = False
        # Until when the session goes on though nothing is due.
        self.busy_until = 0.0
        self.typical_seconds = FAST_SECONDS
        # Somebody waits for an answer that is there.
        self.is_urgent = False
        self.polled = 0

    def run(self) -> SessionReport:
        """Poll until nothing is due or the budget is over, then until the last request in flight has ended."""
        while True:
            now = time.monotonic()
            may_claim = self._may_claim()
            if may_claim and self._is_time_to_claim(now):
                self._claim(now)
            if not self.claimed and not self.answers:
                now = time.monotonic()
                is_busy = now < self.busy_until
                if not may_claim or not (self.found_work or is_busy):
                    return SessionReport(self.polled, now - self.started)
                if is_busy:
                    # Where much was due, more will be.
                    time.sleep(max(0.0, min(self.next_claim, self.next_look, self.busy_until) - now))
                else:
                    self.next_claim = 0.0
                continue
            for result in self.engine.wait(WAIT_SECONDS):
                self._collect(result)
            if self.waiting and self.stopping():
                self._give_back_waiting()
            self._fill_slots()
            self._flush_if_time()
            if self.claimed and self.stopping():
                self._give_up_if_time()

    def _collect(self, result: PollResult) -> None:
        claimed = self.claimed.pop(result.key)
        self.answers.append((claimed, result))
        self.answered_since_claim += 1
        self.is_urgent = self.is_urgent or claimed.is_awaited
        self.holds_a_place = self.holds_a_place or claimed.remote.host_id in self.full_hosts
        self.typical_seconds += ANSWER_WEIGHT * (result.seconds - self.typical_seconds)

    def _may_claim(self) -> bool:
        return time.monotonic() < self.claim_until and not self.stopping()

    def _is_time_to_claim(self, now: float) -> bool:
        if now >= self.next_claim or self._has_room(now):
            return True
        free = self.limit - len(self.claimed)
        if now < self.next_look or self.holds_suspect or not free:
            return False
        self.next_look = now + LOOK_SECONDS
        awaited = due_and_awaited(free)
        return len(awaited) == free or any(awaited)

    def _has_room(self, now: float) -> bool:
        """Whether more is due, and enough of the slots that come back soon are free."""
        if not self.found_more or len(self.claimed) == self.limit:
            return False
        # In the order of their claims, the oldest first.
        slow = sum(1 for _ in takewhile(lambda claimed: claimed.begun < now - SLOW_SECONDS, self.claimed.values()))
        room = ROOM_FAST if self.typical_seconds < FAST_SECONDS else ROOM
        return self.limit - len(self.claimed) >= room * (self.limit - slow)

    def _give_up_if_time(self) -> None:
        """Give back what is still in flight a while after the process was asked to stop. It stays due, so that another
        worker asks at once, and does not wait for the lease of one that was killed.
        """
        now = time.monotonic()
        self.give_up_at = self.give_up_at or now + drain_seconds()
        if now < self.give_up_at:
            return
        claims, self.claimed = list(self.claimed.values()), {}
        self._give_back(claims)
        log.warning("polls given back, because the worker stops", polls=len(claims))
        self.engine.abandon()

    def _claim(self, now: float) -> None:
        if not self.claimed and not self.answers:
            batch = claim_suspect() if now < self.probation_until else []
            self.holds_suspect = bool(batch)
            for claimed in batch:
                self._start(claimed)
        if self.holds_suspect:
            self.found_work, self.found_more, self.next_claim = True, False, now
            return
        room = self.limit - len(self.claimed) + self._ahead() - len(self.waiting)
        if room > 0:
            batch = claim_remotes(room)
            self.last_claim, self.answered_since_claim = time.monotonic(), 0
            self._let_go_of_what_is_claimed_anew(batch)
            # Those whom somebody waits for first.
            self.waiting.extendleft(claimed for claimed in batch if claimed.is_awaited)
            self.waiting.extend(claimed for claimed in batch if not claimed.is_awaited)
            self._fill_slots()
            self.found_work, self.found_more = bool(batch), len(batch) == room
            if len(batch) >= BUSY_ROWS:
                self.busy_until = time.monotonic() + BUSY_SECONDS
            self._look_for_full_hosts(len(batch) < room)
        self.next_claim, self.next_look = now + CLAIM_SECONDS, now + LOOK_SECONDS

    def _look_for_full_hosts(self, has_room: bool) -> None:
        """After a claim. A session can make room at those hosts alone at which it holds places."""
        answered = {claimed.remote.host_id for claimed, _ in self.answers}
        held = answered.union(claimed.remote.host_id for claimed in self.claimed.values())
        self.full_hosts = full_hosts(held) if has_room and held else set()
        self.holds_a_place = not answered.isdisjoint(self.full_hosts)

    def _ahead(self) -> int:
        """How many slots will come back soon, as they did since the last claim."""
        since = max(time.monotonic() - self.last_claim, 1e-3)
        return min(int(self.answered_since_claim / since * AHEAD_SECONDS), AHEAD_ROUNDS * self.limit)

    def _let_go_of_what_is_claimed_anew(self, batch: Sequence[ClaimedRemote]) -> None:
        """Who was frozen for longer than a lease before a claim may find his own remotes in it: what waited for a slot is
        asked under the new lease alone, and of what is in flight the answer under the old one hits no row.
        """
        anew = {claimed.remote.pk for claimed in batch}
        self.waiting = deque(claimed for claimed in self.waiting if claimed.remote.pk not in anew)

    def _fill_slots(self) -> None:
        """Ask what waits for a slot, as far as there are free ones; what waits in vain goes back, for others to ask.

        That is looked at first: somebody who was frozen meanwhile would ask what is no longer his.
        """
        if self.waiting and time.monotonic() > min(w.begun for w in self.waiting) + LONGEST_WAIT_SECONDS:
            self._give_back_waiting()
        while self.waiting and len(self.claimed) < self.limit:
            claimed = self.waiting.popleft()
            if claimed.remote.pk in self.claimed:
                self._give_back([claimed])
            else:
                self._start(claimed.in_turn())

    def _give_back_waiting(self) -> None:
        self._give_back(self.waiting)
        self.waiting.clear()

    @staticmethod
    def _give_back(claims: Iterable[ClaimedRemote]) -> None:
        try:
            give_back_many([claimed.remote for claimed in claims])
        except DatabaseError as error:
            # Their leases run out, and they are polled again.
            log.warning("polls could not be given back", error=str(error)[:200])

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
        if not self.answers:
            return
        waited = time.monotonic() - self.last_flush
        if (
            (not self.claimed and not (self.found_more and self._may_claim()))
            # Until it is written an answer keeps its place at its host.
            or waited >= (URGENT_SECONDS if self.is_urgent or self.holds_a_place else FLUSH_SECONDS)
            or len(self.answers) >= FLUSH_ROWS
        ):
            answers, self.answers, self.is_urgent = self.answers, [], False
            self.polled += len(answers)
            hit("poll.store", " ".join(claimed.remote.url for claimed, _ in answers))
            store(answers)
            self.last_flush = time.monotonic()
            # What was woken meanwhile is due again.
            self.found_work = True
            if self.holds_a_place:
                # Others wait for it.
                self.holds_a_place, self.next_claim = False, 0.0
