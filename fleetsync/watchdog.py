"""A watchdog over Celery workers: one that has work waiting and consumes nothing is ended, and the supervisor starts it anew.

The parent of each worker signs a few bytes of memory that it shares with its supervisor, from its own event loop: that
it goes round, how many tasks its children began, and how many run. Memory and not a file, because a full disk must not make
every worker look dead. The supervisor reads that and asks the broker how long the queues are; it needs no database.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import redis
import structlog
from django.conf import settings

from fleetsync.celery import app, private_queue
from fleetsync.processes import OWN_QUEUE
from fleetsync.redis import redis_client
from fleetsync.supervisor import Child, Supervisor

log = structlog.get_logger(__name__)

# Names the descriptor of that memory to the worker.
VARIABLE = "FLEETSYNC_SIGN_FD"
SIGN_BYTES = 256
# A letter that nobody takes: its worker is gone for good.
LETTER_KEPT_SECONDS = 3600
# Seconds that a new worker may take until its first sign, besides WATCHDOG: it imports everything first.
BOOT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Sign:
    """What a worker's parent says of itself. `beat` changes with each; `began` counts tasks since its start."""

    pid: int
    beat: int
    began: int
    active: int


@dataclass(frozen=True, slots=True)
class Look:
    """What the watchdog sees of one worker at the monotonic instant `at`. `sign` is None before the process's first one.

    `queued`: how many messages wait for it; None if the broker does not say.
    """

    at: float
    pid: int
    sign: Sign | None
    queued: int | None


@dataclass(frozen=True, slots=True)
class Watched:
    """What is remembered from look to look: since when the sign is as it is, and since when work waits in vain."""

    last: Look
    same_since: float
    waiting_since: float | None = None


def watch(before: Watched | None, look: Look, *, processes: int, seconds: float) -> tuple[Watched, str]:
    """What is to be remembered after this look, and why the worker must be ended, "" if it need not. Pure.

    It starts anew with a new process, while the broker is away (a worker that waits for it gives no sign), and after a
    pause in which the watchdog itself did not run: nothing is known of that time.
    """
    if (
        before is None
        or look.queued is None
        or look.pid != before.last.pid
        or look.at - before.last.at > max(seconds / 2, 3 * look_every(seconds))
    ):
        return Watched(look, look.at), ""
    same = look.sign == before.last.sign
    watched = Watched(look, before.same_since if same else look.at, _waiting_since(before, look, processes))
    patience = seconds if look.sign is not None else seconds + BOOT_SECONDS
    if look.at - watched.same_since >= patience:
        return watched, f"gave no sign of life for {patience:g} s"
    if watched.waiting_since is not None and look.at - watched.waiting_since >= seconds:
        return watched, f"took no message for {seconds:g} s while {look.queued} waited and a process was free"
    return watched, ""


def _waiting_since(before: Watched, look: Look, processes: int) -> float | None:
    """Since when messages wait and the worker, with a process free, begins none of them."""
    sign, last = look.sign, before.last.sign
    in_vain = bool(look.queued) and sign is not None and sign.active < processes
    began = sign is not None and last is not None and sign.began != last.began
    if not in_vain or began:
        return None
    return look.at if before.waiting_since is None else before.waiting_since


def look_every(seconds: float) -> float:
    """Seconds between two signs, and between two looks."""
    return min(5.0, seconds / 6)


def queue_lengths(queues: Sequence[str]) -> Mapping[str, int | None]:
    """How many messages wait in each queue; None where the broker does not say in time."""
    try:
        pipeline = redis_client().pipeline(transaction=False)
        for queue in queues:
            pipeline.llen(queue)
        return dict(zip(queues, map(int, pipeline.execute()), strict=True))
    except (redis.RedisError, OSError):
        return dict.fromkeys(queues)


def send_letter(queue: str) -> None:
    """Put a task that does nothing into a worker's own queue; forgotten by the broker if nobody ever takes it."""
    try:
        # Celery takes a Queue here as well as a name; its stubs do not say so.
        app.send_task("workers.tasks.letter", queue=private_queue(queue), ignore_result=True)  # type: ignore[arg-type]
        redis_client().expire(queue, LETTER_KEPT_SECONDS)
    except Exception as error:  # noqa: BLE001 (the broker's and Celery's, in several wrappers: the next look sends it)
        log.warning("letter not sent", queue=queue, error=str(error)[:200])


class Watchdog:
    """Looks after the workers that a supervisor runs, each named after its queue.

    Each worker has a queue of its own besides, into which a letter is put now and then: where several workers serve a queue,
    the others empty it, and one that is deaf would never be seen (celery 5.7.0: an acknowledgement that fails while the broker
    goes away leaves a worker that is connected and consumes nothing).
    """

    def __init__(
        self, supervisor: Supervisor, lengths: Callable[[Sequence[str]], Mapping[str, int | None]] = queue_lengths
    ) -> None:
        self._supervisor, self._lengths = supervisor, lengths
        self._signs: dict[str, int] = {}
        self._watched: dict[str, Watched] = {}
        self._own: dict[str, str] = {}
        self._letters: dict[str, float] = {}
        self._next_look = 0.0
        supervisor.each_turn = self.look

    def add(self, child: Child) -> None:
        """Have the supervisor run the worker `child`, and look after it."""
        descriptor = self._signs[child.name] = _shared_memory(f"sign of {child.name}")
        self._own[child.name] = (child.env or {}).get(OWN_QUEUE, "")
        environment = {**(child.env or {}), VARIABLE: str(descriptor)}
        self._supervisor.add(replace(child, env=environment, pass_fds=(descriptor,)))

    def look(self) -> None:
        """Look at each worker if it is time to, and end those that must be."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + look_every(settings.WATCHDOG)
        lengths = self._lengths([*self._signs, *filter(None, self._own.values())])
        for name, descriptor in self._signs.items():
            pid = self._supervisor.pid(name)
            if pid is None:
                self._watched.pop(name, None)
                continue
            look = Look(time.monotonic(), pid, read_sign(descriptor, pid), self._queued(name, lengths))
            self._watched[name], reason = watch(
                self._watched.get(name),
                look,
                processes=getattr(settings, f"{name.upper()}_PROCESSES"),
                seconds=settings.WATCHDOG,
            )
            if reason:
                self._supervisor.kill(name, reason)
                del self._watched[name]

    def _queued(self, name: str, lengths: Mapping[str, int | None]) -> int | None:
        """How many messages wait for the worker; a letter is sent to one whose own queue is empty."""
        shared, own = lengths[name], self._own[name]
        mine = lengths[own] if own else 0
        if shared is None or mine is None:
            return None
        now = time.monotonic()
        if own and not mine and now >= self._letters.get(name, 0.0):
            self._letters[name] = now + settings.WATCHDOG / 2
            send_letter(own)
        return shared + mine


def _shared_memory(name: str) -> int:
    """A descriptor of a few bytes that two processes share; on a disk only where there is no other way (not Linux)."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def read_sign(descriptor: int, pid: int) -> Sign | None:
    """The last sign of the process `pid`; None if it gave none yet."""
    try:
        sign = Sign(**json.loads(os.pread(descriptor, SIGN_BYTES, 0)))
    except (ValueError, TypeError):
        return None
    return sign if sign.pid == pid else None


def write_sign(descriptor: int, sign: Sign) -> None:
    fields: dict[str, Any] = {name: getattr(sign, name) for name in Sign.__slots__}
    os.pwrite(descriptor, json.dumps(fields).encode().ljust(SIGN_BYTES), 0)
