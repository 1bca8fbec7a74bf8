"""A small supervisor of child processes: starts them, starts again what ends, and leaves none behind.

Not honcho, which it resembles: honcho ends everything when one process ends. The rules:

1. Each child is the leader of a session of its own, so a Ctrl-C in the terminal reaches the supervisor alone.
2. A child that ends is started again after 1 s, 2 s, … 30 s; one that ran for a minute begins at 1 s anew.
3. SIGTERM or SIGINT stops the children by their `stop_order`, SIGTERM first, SIGKILL for the whole group
   after their grace; another SIGTERM or SIGINT, a second later or more, goes to SIGKILL at once.
4. A supervisor that is killed takes its children along (PR_SET_PDEATHSIG), and it adopts
   (PR_SET_CHILD_SUBREAPER) and ends what they leave behind.

One thread, so that forking is safe and the thread whose death signals the children is the process.
"""

import contextlib
import ctypes
import errno
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

BACKOFF_FIRST = 1.0
BACKOFF_CAP = 30.0
# Seconds after which a child counts as having started well.
SETTLED = 60.0
# Seconds until another signal to stop is meant as one: make, timeout and terminals send the first one twice.
IMPATIENT = 1.0
# Bytes of one line without an end that are kept before it is passed on in pieces.
MAX_LINE = 64 * 1024
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Child:
    """One command to keep running. `grace` is in seconds between SIGTERM and SIGKILL."""

    name: str
    argv: list[str]
    env: Mapping[str, str] | None = None
    grace: float = 10.0
    stop_order: int = 0
    restart: bool = True
    die_with_parent: Literal["TERM", "KILL"] = "TERM"
    pass_fds: tuple[int, ...] = ()


@dataclass
class _Running:
    child: Child
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    start_at: float | None = None
    failures: int = 0
    exit_code: int | None = None
    tail: bytes = field(default=b"", repr=False)


def die_with_parent(number: int, parent: int) -> None:
    """Has the kernel send signal `number` to this process when its parent ends (on Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # it ended before we asked
            os.kill(os.getpid(), number)


class Supervisor:
    """Runs children until it is told to stop. Use from the main thread.

    `heartbeat`: called a few times a second while every child is up. `each_turn`: as often, whoever is up, until
    everything is stopped.
    """

    def __init__(self, heartbeat: Callable[[], None] | None = None, output: IO[str] | None = None) -> None:
        self._running: dict[str, _Running] = {}
        self._selector = selectors.DefaultSelector()
        self._heartbeat = heartbeat
        self.each_turn: Callable[[], None] | None = None
        self._output = output if output is not None else sys.stdout
        self._signals: list[float] = []
        self._width = 0
        # A signal only writes a byte here, which wakes the selector; everything else happens in the loop.
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._stopping = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # nohup ignores SIGHUP, and is to have its way.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    # -- what a caller uses ----------------------------------------------------------------------------------

    @property
    def asked_to_stop(self) -> bool:
        return bool(self._signals)

    def add(self, child: Child) -> None:
        """Starts `child` now. Names are unique."""
        if child.name in self._running:
            raise ValueError(f"a child named {child.name} is there already")
        self._width = max(self._width, len(child.name))
        running = self._running[child.name] = _Running(child)
        self._start(running)

    def say(self, text: str, name: str = "run") -> None:
        """Prints `text` like a child's lines. A closed pipe does not stop us, a lost terminal does."""
        try:
            for line in text.splitlines() or [""]:
                print(f"{name:<{self._width}} | {line}", file=self._output, flush=True)
        except OSError as error:
            if error.errno == errno.EIO and not self.asked_to_stop:
                self._on_signal()

    @property
    def _leaving(self) -> bool:
        return self._stopping or self.asked_to_stop

    def alive(self, name: str) -> bool:
        return self._running[name].process is not None

    def pid(self, name: str) -> int | None:
        """The child's process id, or None while it is down."""
        process = self._running[name].process
        return process.pid if process else None

    def kill(self, name: str, why: str) -> None:
        """Ends the child with its whole group, whatever it does; it is started again like any that ends."""
        self.say(f"{why}, and is ended", name)
        self._kill_group(self._running[name], tell=False)

    def exit_code(self, name: str) -> int | None:
        """How the child last ended, or None if it never did; below 0 is a signal's number."""
        return self._running[name].exit_code

    def run_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Supervises until `condition` holds: True; False after `timeout` s or a signal to stop."""
        deadline = time.monotonic() + timeout
        while not self.asked_to_stop:
            if condition():
                return True
            if time.monotonic() >= deadline:
                return False
            self._step(0.1)
        return False

    def run(self) -> None:
        """Supervises until a signal asks to stop, then stops everything."""
        try:
            while not self.asked_to_stop:
                self._step(1.0)
        finally:
            self.stop()

    def stop(self) -> None:
        """Ends every child, in the order of stop_order, then whatever they left behind."""
        self._stopping = True
        for order in sorted({running.child.stop_order for running in self._running.values()}):
            stage = [r for r in self._running.values() if r.child.stop_order == order]
            for running in stage:
                running.start_at = None
                self._signal(running, signal.SIGTERM)
            began, killed = time.monotonic(), set[str]()
            while any(running.process for running in stage):
                hurry = self._signals and self._signals[-1] - self._signals[0] > IMPATIENT
                for running in stage:
                    if hurry or time.monotonic() - began > running.child.grace:
                        self._kill_group(running, tell=running.child.name not in killed)
                        killed.add(running.child.name)
                self._step(0.1)
        self._end_orphans()

    # -- the loop --------------------------------------------------------------------------------------------

    def _on_signal(self, *_: object) -> None:
        self._signals.append(time.monotonic())

    def _step(self, timeout: float) -> None:
        """One turn: wait for output or a signal, pass output on, reap, start what is due."""
        now = time.monotonic()
        due = [running.start_at for running in self._running.values() if running.start_at is not None]
        if due:
            timeout = max(0.0, min(timeout, min(due) - now))
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
            else:
                self._pass_on(key.data, key.fd)
        self._reap()
        for running in self._running.values():
            if running.start_at is not None and time.monotonic() >= running.start_at and not self._leaving:
                self._start(running)
        if self.each_turn and not self._leaving:
            self.each_turn()
        if self._heartbeat and all(r.process for r in self._running.values() if r.child.restart):
            self._heartbeat()

    def _start(self, running: _Running) -> None:
        child, parent = running.child, os.getpid()
        number = signal.SIGKILL if child.die_with_parent == "KILL" else signal.SIGTERM
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(child.env or {})}
        running.started = time.monotonic()
        try:
            running.process = subprocess.Popen(
                child.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=child.pass_fds,
                preexec_fn=lambda: die_with_parent(number, parent),  # noqa: PLW1509 - there is one thread
            )
        except OSError as error:
            self.say(f"cannot be started: {error}", child.name)
            self._plan_restart(running)
            return
        running.start_at = None
        assert running.process.stdout is not None  # noqa: S101 - for the type checker
        os.set_blocking(running.process.stdout.fileno(), False)
        self._selector.register(running.process.stdout, selectors.EVENT_READ, running)

    def _pass_on(self, running: _Running, descriptor: int) -> bool:
        """Prints the whole lines there are; False if there was nothing to read, now or for ever."""
        try:
            data = os.read(descriptor, MAX_LINE)
        except BlockingIOError:
            return False
        *lines, running.tail = (running.tail + data).split(b"\n")
        if len(running.tail) >= MAX_LINE or (not data and running.tail):
            lines.append(running.tail)
            running.tail = b""
        for line in lines:
            self.say(line.decode(errors="replace").rstrip("\r"), running.child.name)
        if not data:
            self._selector.unregister(descriptor)
        return bool(data)

    def _reap(self) -> None:
        """Notes children that ended, and takes the exit status of orphans that came to us."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            for running in self._running.values():
                if running.process is not None and running.process.pid == found.si_pid:
                    self._ended(running)
                    break
            else:
                os.waitpid(found.si_pid, 0)

    def _ended(self, running: _Running) -> None:
        process = running.process
        assert process is not None and process.stdout is not None  # noqa: S101 - for the type checker
        running.exit_code = process.wait()
        # Its group goes with it: what it left running would work beside the one that is started next.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        descriptor = process.stdout.fileno()
        if descriptor in self._selector.get_map():
            while self._pass_on(running, descriptor):
                pass
            # Somebody who outlived it may hold the other end: its last words are not waited for.
            if descriptor in self._selector.get_map():
                self._selector.unregister(descriptor)
        if running.tail:
            self.say(running.tail.decode(errors="replace"), running.child.name)
            running.tail = b""
        process.stdout.close()
        running.process = None
        if not self._leaving:
            self._plan_restart(running)

    def _plan_restart(self, running: _Running) -> None:
        if not running.child.restart:
            running.start_at = None
            return
        if time.monotonic() - running.started >= SETTLED:
            running.failures = 0
        wait = min(BACKOFF_FIRST * 2**running.failures, BACKOFF_CAP)
        running.failures += 1
        running.start_at = time.monotonic() + wait
        self.say(f"ended with status {running.exit_code}, is started again in {wait:g} s", running.child.name)

    # -- ending ----------------------------------------------------------------------------------------------

    def _signal(self, running: _Running, number: signal.Signals) -> None:
        # The leader alone: Celery's and gunicorn's parents tell their children themselves, and better.
        if running.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.process.pid, number)

    def _kill_group(self, running: _Running, *, tell: bool) -> None:
        if running.process is not None:
            if tell:
                self.say("does not end and is killed", running.child.name)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(running.process.pid, signal.SIGKILL)

    def _end_orphans(self) -> None:
        """Kills what was left to us by children that ended: a grandchild in a session of its own."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            orphans = [pid for pid in _children_of(os.getpid()) if pid not in self._ours()]
            if not orphans:
                return
            for pid in orphans:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            self._reap()
            time.sleep(0.02)

    def _ours(self) -> set[int]:
        return {r.process.pid for r in self._running.values() if r.process is not None}


def _children_of(pid: int) -> list[int]:
    """The living and zombie children of `pid`, from /proc; empty where there is none (not Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name in parentheses may hold anything, so the fields are counted from its end.
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(stat.parent.name))
    return found
