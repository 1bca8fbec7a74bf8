"""How libcurl's transfers are driven: two ways, of which each is the cheaper one for its number of transfers in flight.

Measured for each poll of client CPU, the engine's own work included: with 50 in flight against a fast server
44 µs with `perform` and 58 µs with `socket_action`; the first looks at every transfer at each turn, so that with a thousand
in flight against a slow one it costs several times the second.
"""

import select
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Protocol

import pycurl

# Up to so many in flight `perform` is the cheaper one; and select(), which it waits with, knows 1024 descriptors.
FEW = 100
# Connections that are kept, over all hosts, at least. With fewer than are in flight each poll would open its own.
KEPT_CONNECTIONS = 500


class Multi(Protocol):
    def add(self, curl: Any) -> None:
        """Begin a transfer."""

    def remove(self, curl: Any) -> None:
        """Take a transfer out, ended or not."""

    def turn(self, timeout_seconds: float) -> Iterator[tuple[Any, int]]:
        """Wait for the next thing that happens, at most so long; the transfers that ended, with libcurl's code (0: well)."""

    def patience_seconds(self) -> float:
        """How long turn() may be left alone while nothing can be read from fileno()."""

    def fileno(self) -> int | None:
        """Readable when turn() has something to do; None if there is no such descriptor."""

    def close(self) -> None: ...


def multi_for(limit: int) -> Multi:
    """The cheaper one for `limit` transfers in flight."""
    kept = max(KEPT_CONNECTIONS, 2 * limit)
    return FewTransfers(kept) if limit <= FEW else ManyTransfers(kept)


def _ended(multi: Any) -> Iterator[tuple[Any, int]]:
    waiting = 1
    while waiting:
        waiting, done, failed = multi.info_read()
        for curl in done:
            yield curl, 0
        for curl, code, _ in failed:
            yield curl, code


class FewTransfers:
    """Driven by `perform`, waited for with select()."""

    # Where there is no descriptor to wait for, one looks in again so soon.
    LOOK_SECONDS = 0.01

    def __init__(self, kept_connections: int) -> None:
        self._multi: Any = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, kept_connections)
        self.add = self._multi.add_handle
        self.remove = self._multi.remove_handle
        self.close = self._multi.close

    def turn(self, timeout_seconds: float) -> Iterator[tuple[Any, int]]:
        self._multi.perform()
        waiting, done, failed = self._multi.info_read()
        if not done and not failed and timeout_seconds > 0:
            self._wait(timeout_seconds)
            self._multi.perform()
            waiting, done, failed = self._multi.info_read()
        yield from ((curl, 0) for curl in done)
        yield from ((curl, code) for curl, code, _ in failed)
        if waiting:
            yield from _ended(self._multi)

    def _wait(self, timeout_seconds: float) -> None:
        timer = self._multi.timeout()
        seconds = timeout_seconds if timer < 0 else min(timeout_seconds, timer / 1000)
        before = time.monotonic()
        if self._multi.select(seconds) == 0 and time.monotonic() - before < seconds / 2:
            # No transfer has a socket yet: names are being resolved, and select() waits for nothing.
            time.sleep(min(seconds, self.LOOK_SECONDS))

    def patience_seconds(self) -> float:
        return self.LOOK_SECONDS

    def fileno(self) -> int | None:
        return None


class ManyTransfers:
    """Driven by `socket_action`: libcurl says which sockets and which timer it waits for, and one epoll has them all."""

    def __init__(self, kept_connections: int) -> None:
        self._timer_at: float | None = None
        self._epoll = select.epoll()
        self._multi: Any = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, kept_connections)
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        self.add = self._multi.add_handle
        self.remove = self._multi.remove_handle

    def _watch(self, what: int, descriptor: int, _multi: object, _data: object) -> None:
        if what == pycurl.POLL_REMOVE:
            # It may be closed already, and gone with that.
            with suppress(OSError, ValueError):
                self._epoll.unregister(descriptor)
            return
        events = (select.EPOLLIN if what & pycurl.POLL_IN else 0) | (select.EPOLLOUT if what & pycurl.POLL_OUT else 0)
        try:
            self._epoll.register(descriptor, events)
        except FileExistsError:
            self._epoll.modify(descriptor, events)

    def _set_timer(self, milliseconds: int) -> None:
        self._timer_at = None if milliseconds < 0 else time.monotonic() + milliseconds / 1000

    def turn(self, timeout_seconds: float) -> Iterator[tuple[Any, int]]:
        events = self._epoll.poll(min(timeout_seconds, self.patience_seconds()))
        act = self._multi.socket_action
        for descriptor, event in events:
            act(
                descriptor,
                (pycurl.CSELECT_IN if event & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR) else 0)
                | (pycurl.CSELECT_OUT if event & select.EPOLLOUT else 0),
            )
        if self._timer_at is not None and self._timer_at <= time.monotonic():
            self._timer_at = None
            act(pycurl.SOCKET_TIMEOUT, 0)
        yield from _ended(self._multi)

    def patience_seconds(self) -> float:
        return 1.0 if self._timer_at is None else max(0.0, self._timer_at - time.monotonic())

    def fileno(self) -> int | None:
        return self._epoll.fileno()

    def close(self) -> None:
        self._multi.close()
        self._epoll.close()
