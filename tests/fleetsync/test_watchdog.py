"""The watchdog: who is ended and who is not, as a table and with real workers and a real broker."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from fleetsync.watchdog import BOOT_SECONDS, Look, Sign, Watched, watch
from tests.fleetsync.conftest import RedisServer
from tests.fleetsync.work import Work, holds

SECONDS = 60.0
PID = 7
beats = count(1)


def look(at: float, *, began: int = 5, active: int = 0, queued: int | None = 3, pid: int = PID) -> Look:
    return Look(at, pid, Sign(pid, next(beats), began, active), queued)


def frozen(at: float, *, queued: int | None = 0) -> Look:
    return Look(at, PID, Sign(PID, 0, 5, 0), queued)


def booting(at: float, *, queued: int | None = 0) -> Look:
    return Look(at, PID, None, queued)


def over(kind: Callable[..., Look], until: float, **more: int | None) -> list[Look]:
    """A look every five seconds, up to the instant `until`."""
    return [kind(float(at), **more) for at in range(0, int(until) + 1, 5)]


def verdict(looks: list[Look]) -> str:
    """The first reason to end a worker with two processes that is seen like this; "" if there is none."""
    watched: Watched | None = None
    for one in looks:
        watched, reason = watch(watched, one, processes=2, seconds=SECONDS)
        if reason:
            return f"{reason} (at {one.at:g})"
    return ""


NEVER: list[tuple[str, list[Look]]] = [
    ("idle for ever", over(look, 600, queued=0)),
    ("every process is at work while much waits", over(look, 600, active=2)),
    ("it takes one now and then", [look(float(at), began=at // 30) for at in range(0, 600, 5)]),
    ("the queue is empty now and then", [look(float(at), queued=int(at % 30 != 0)) for at in range(0, 600, 5)]),
    ("a process is busy now and then", [look(float(at), active=2 if at % 30 == 0 else 1) for at in range(0, 600, 5)]),
    ("not yet", over(look, 55)),
    ("frozen, not yet", over(frozen, 55)),
    ("the broker is away, and no sign comes", over(frozen, 600, queued=None)),
    ("the broker was away in between", [*over(frozen, 50), frozen(55, queued=None), *map(frozen, range(60, 110, 5))]),
    ("the watchdog itself stood still", [*over(frozen, 30), frozen(500), frozen(505)]),
    ("another process since", [*over(look, 40), *(look(float(at), pid=8) for at in range(45, 95, 5))]),
    ("it boots", over(booting, SECONDS + BOOT_SECONDS - 5)),
]
ENDED: list[tuple[str, list[Look], str]] = [
    ("deaf", over(look, 90), "took no message for 60 s while 3 waited and a process was free (at 65)"),
    ("deaf with one at work", over(look, 90, active=1), "took no message for 60 s while 3 waited"),
    ("frozen and nothing waits", over(frozen, 90), "gave no sign of life for 60 s (at 60)"),
    ("frozen and much waits", over(frozen, 90, queued=9), "gave no sign of life for 60 s (at 60)"),
    ("never booted", over(booting, 120), "gave no sign of life for 90 s (at 90)"),
    ("deaf once it had worked", [look(0.0, began=1), look(5.0, began=2), *map(look, range(10, 90, 5))], "(at 75)"),
]


@pytest.mark.parametrize("looks", [case[1] for case in NEVER], ids=[case[0] for case in NEVER])
def test_who_is_never_ended(looks: list[Look]) -> None:
    assert verdict(looks) == ""


@pytest.mark.parametrize(("looks", "reason"), [case[1:] for case in ENDED], ids=[case[0] for case in ENDED])
def test_who_is_ended(looks: list[Look], reason: str) -> None:
    assert reason in verdict(looks)


# -- real workers --------------------------------------------------------------------------------------------------

WATCHDOG = 3.0


@pytest.fixture
def work(tmp_path: Path, redis_server: RedisServer) -> Iterator[Work]:
    with Work(tmp_path, redis_server, WATCHDOG=f"{WATCHDOG:g}s") as work:
        yield work


def test_a_worker_that_is_deaf_and_one_that_is_frozen_are_replaced(work: Work) -> None:
    deaf, idle = work.pid("poll"), work.pid("control")
    assert deaf and idle

    work.arm("worker.deaf", action="raise", about="poll")
    assert holds(lambda: work.was_hit("worker.deaf"))
    work.send("poll", "poll")
    started = time.monotonic()
    assert holds(lambda: bool(work.ended()), WATCHDOG + 6)
    assert time.monotonic() - started > WATCHDOG - 1.5
    assert holds(lambda: work.pid("poll") not in (0, deaf) and work.waiting("poll") == 0)

    replaced = work.pid("poll")
    os.kill(replaced, signal.SIGSTOP)
    assert holds(lambda: len(work.ended()) == 2, WATCHDOG + 6)
    assert holds(lambda: work.pid("poll") not in (0, replaced) and work.serves("poll"))

    first, second = work.ended()
    assert first.startswith("poll: took no message") and second.startswith("poll: gave no sign of life")
    assert work.pid("control") == idle  # with nothing to do for longer than the time


def test_a_worker_that_is_busy_or_has_lost_its_broker_is_left_alone(work: Work) -> None:
    busy, other = work.pid("control"), work.pid("poll")
    work.arm("tick", action="sleep", seconds=WATCHDOG * 2.5)
    work.send("tick", "control")
    assert holds(lambda: work.was_hit("tick"))
    work.send("tick", "control")
    time.sleep(WATCHDOG * 2)
    assert work.waiting("control") == 1 and work.ended() == []
    assert holds(lambda: work.waiting("control") == 0)

    work.server.stop()
    time.sleep(WATCHDOG * 2)
    assert work.ended() == []
    assert (work.pid("control"), work.pid("poll")) == (busy, other)
