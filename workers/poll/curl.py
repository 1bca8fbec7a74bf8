"""Polls over http(s): one event loop over libcurl, with connections, TLS sessions and what each remote speaks kept from one
session to the next.

Nothing here blocks on one server. libcurl calls back when a socket or its timer changes; both are kept in one epoll, which
the loops of other protocols can wait for too (fileno()).
"""

import os
import resource
import select
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pycurl
import structlog

from workers.git_environment import AccessError, check_access
from workers.poll.conversation import Conclusion, Conversation, Known, LeftToGit, Refs
from workers.poll.engine import PollError, PollRequest, PollResult
from workers.poll.transfer import Transfer

log = structlog.get_logger(__name__)

# Remotes whose protocol is remembered, some 200 bytes each; the oldest go first.
REMEMBERED = 200_000
# Connections that are kept, over all hosts.
KEPT_CONNECTIONS = 500
# Descriptors that the process asks for: requests in flight and kept connections at their largest.
DESCRIPTORS = 8192
DEBIAN_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"


class CurlEngine:
    """Asks http(s) remotes. What only git can read is handed to `left_to_git`, with the time that is left for it.

    Not thread-safe: one session uses it at a time.
    """

    def __init__(self, left_to_git: Callable[[PollRequest], None]) -> None:
        self._left_to_git = left_to_git
        self._known: dict[str, Known] = {}
        self._free: list[Transfer] = []
        self._working: set[Transfer] = set()
        self._early: list[PollResult] = []
        self._authorities = _authorities()
        self._timer_at: float | None = None
        self._epoll = select.epoll()
        self._multi: Any = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, KEPT_CONNECTIONS)
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        _allow_descriptors()

    # -- what libcurl asks for ----------------------------------------------------------------------------------------

    def _watch(self, what: int, descriptor: int, _multi: object, _data: object) -> None:
        if what == pycurl.POLL_REMOVE:
            # It may be closed already, and gone with that.
            with suppress(OSError, ValueError):
                self._epoll.unregister(descriptor)
            return
        events = (select.EPOLLIN if what & pycurl.POLL_IN else 0) | (select.EPOLLOUT if what & pycurl.POLL_OUT else 0)
        try:
            self._epoll.modify(descriptor, events)
        except FileNotFoundError:
            self._epoll.register(descriptor, events)

    def _set_timer(self, milliseconds: int) -> None:
        self._timer_at = None if milliseconds < 0 else time.monotonic() + milliseconds / 1000

    # -- the engine ---------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Readable when step() has something to do, the timer apart (timer_seconds())."""
        return self._epoll.fileno()

    def timer_seconds(self) -> float | None:
        """How long step() may be left alone."""
        if self._early:
            return 0.0
        return None if self._timer_at is None else max(0.0, self._timer_at - time.monotonic())

    @property
    def in_flight(self) -> int:
        return len(self._working) + len(self._early)

    def start(self, request: PollRequest) -> None:
        known = self._known.get(request.access.url)
        if known is not None and known.dumb:
            self._left_to_git(request)
            return
        try:
            check_access(request.access)
        except AccessError as error:
            self._early.append(PollResult(request.key, 0.0, error=PollError(error.cause, str(error))))
            return
        transfer = self._free.pop() if self._free else Transfer(self._authorities)
        now = time.monotonic()
        transfer.begin(Conversation(request, known), now)
        self._working.add(transfer)
        self._send(transfer, now)

    def _send(self, transfer: Transfer, now: float) -> None:
        transfer.prepare(now)
        self._multi.add_handle(transfer.curl)

    def wait(self, timeout_seconds: float) -> list[PollResult]:
        """The results that are there, waiting for the first one for at most `timeout_seconds`."""
        ends_at = time.monotonic() + timeout_seconds
        while True:
            results = self.step(max(0.0, ends_at - time.monotonic()))
            if results or not self._working or time.monotonic() >= ends_at:
                return results

    def step(self, timeout_seconds: float) -> list[PollResult]:
        """Wait for the next thing that happens, at most so long, and do what follows from it."""
        left = self.timer_seconds()
        events = self._epoll.poll(timeout_seconds if left is None else min(timeout_seconds, left))
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
        results, self._early = self._early, []
        self._collect(results)
        return results

    def _collect(self, results: list[PollResult]) -> None:
        while True:
            waiting, done, failed = self._multi.info_read()
            now = time.monotonic()
            for curl in done:
                self._end(curl.transfer, None, now, results)
            for curl, code, _ in failed:
                self._end(curl.transfer, code, now, results)
            if not waiting:
                return

    def _end(self, transfer: Transfer, code: int | None, now: float, results: list[PollResult]) -> None:
        self._multi.remove_handle(transfer.curl)
        conversation = transfer.conversation
        conclusion: Conclusion | None
        try:
            conclusion = conversation.take(transfer.answer()) if code is None else transfer.error(code)
        except Exception:  # (one poll's fault must not end the session, which holds the leases of fifty)
            log.exception("a poll failed in a way that is not known", repository=conversation.request.access.url)
            conclusion = PollError("internal", "the poll failed inside fleetsync: see the worker's log")
        if conclusion is None:
            self._send(transfer, now)
            return
        self._working.discard(transfer)
        transfer.end()
        self._free.append(transfer)
        self._remember(conversation)
        request, seconds = conversation.request, now - transfer.started
        match conclusion:
            case Refs(refs):
                results.append(PollResult(request.key, seconds, refs, redirected_to=conversation.redirected_to))
            case PollError():
                results.append(PollResult(request.key, seconds, error=conclusion))
            case LeftToGit():
                log.info("speaks no smart protocol: its polls are left to git", repository=request.access.url)
                self._left_to_git(request.within(transfer.ends_at - now))

    def _remember(self, conversation: Conversation) -> None:
        url, known = conversation.request.access.url, conversation.known
        if known is None:
            self._known.pop(url, None)
        elif self._known.get(url) != known:
            self._known[url] = known
            if len(self._known) > REMEMBERED:
                del self._known[next(iter(self._known))]

    def forget(self, url: str) -> None:
        """Ask this remote anew what it speaks."""
        self._known.pop(url, None)

    def abandon(self) -> None:
        for transfer in self._working:
            self._multi.remove_handle(transfer.curl)
            transfer.curl.close()
        self._working.clear()
        self._early.clear()

    def close(self) -> None:
        self.abandon()
        for transfer in self._free:
            transfer.curl.close()
        self._free.clear()
        self._multi.close()
        self._epoll.close()


def _authorities() -> dict[int, str]:
    """The system's certificate authorities: libcurl comes in a wheel, which may look for them where they are not."""
    paths = ssl.get_default_verify_paths()
    file = os.environ.get(paths.openssl_cafile_env) or paths.cafile
    if not file and Path(DEBIAN_AUTHORITIES).exists():
        file = DEBIAN_AUTHORITIES
    found = {pycurl.CAINFO: file, pycurl.CAPATH: paths.capath}
    return {option: path for option, path in found.items() if path}


def _allow_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
