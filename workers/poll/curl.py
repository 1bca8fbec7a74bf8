"""Polls over http(s): one event loop over libcurl, with connections, TLS sessions and what each remote speaks kept from one
session to the next. Nothing here blocks on one server.
"""

import os
import resource
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pycurl
import structlog

from workers.git_environment import AccessError, check_access
from workers.poll.conversation import Conclusion, Conversation, Known, LeftToGit, Refs
from workers.poll.engine import PollError, PollRequest, PollResult
from workers.poll.multi import multi_for
from workers.poll.transfer import Transfer

log = structlog.get_logger(__name__)

INTERNAL = PollError("internal", "the poll failed inside fleetsync: see the worker's log")

# Remotes whose protocol is remembered, some 200 bytes each; the oldest go first.
REMEMBERED = 200_000
# How long it is believed that a redirect leads on, the end of which its target would not tell, and that a server speaks no
# smart protocol, which nobody would ask again.
BELIEVED_SECONDS = 300.0
# Descriptors that the process asks for: requests in flight and kept connections at their largest.
DESCRIPTORS = 8192
DEBIAN_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"


class CurlEngine:
    """Asks http(s) remotes, `limit` of them at a time. What only git can read is handed to `left_to_git`, with the time that
    is left for it.

    Not thread-safe: one session uses it at a time.
    """

    def __init__(self, limit: int, left_to_git: Callable[[PollRequest], None]) -> None:
        self._left_to_git = left_to_git
        self._known: dict[str, Known] = {}
        # Until when, of what is not believed for good.
        self._believed_until: dict[str, float] = {}
        self._free: list[Transfer] = []
        self._working: set[Transfer] = set()
        self._early: list[PollResult] = []
        self._authorities = _authorities()
        self._multi = multi_for(limit)
        _allow_descriptors()

    def fileno(self) -> int | None:
        """Readable when step() has something to do, its patience apart; None if there is no such descriptor."""
        return self._multi.fileno()

    def patience_seconds(self) -> float:
        """How long step() may be left alone."""
        return 0.0 if self._early else self._multi.patience_seconds()

    @property
    def in_flight(self) -> int:
        return len(self._working) + len(self._early)

    def start(self, request: PollRequest) -> None:
        now = time.monotonic()
        known = self._known.get(request.access.url)
        if self._believed_until.get(request.access.url, now) < now:
            known = None
        if known is not None and known.dumb:
            self._left_to_git(request)
            return
        try:
            check_access(request.access)
        except AccessError as error:
            self._early.append(PollResult(request.key, 0.0, error=PollError(error.cause, str(error))))
            return
        transfer = self._free.pop() if self._free else Transfer(self._authorities)
        transfer.begin(Conversation(request, known), now)
        self._send(transfer, now, self._early)

    def _send(self, transfer: Transfer, now: float, results: list[PollResult]) -> None:
        request = transfer.request
        try:
            transfer.prepare(now)
            self._multi.add(transfer.curl)
        except Exception:  # (what libcurl will not be told, whoever stored it, must not end the session)
            log.exception("a poll could not be sent", repository=request.access.url)
            self._working.discard(transfer)
            transfer.curl.close()
            results.append(PollResult(request.key, now - transfer.started, error=INTERNAL))
        else:
            self._working.add(transfer)

    def wait(self, timeout_seconds: float) -> list[PollResult]:
        """The results that are there, waiting for the first one for at most `timeout_seconds`."""
        ends_at = time.monotonic() + timeout_seconds
        while True:
            results = self.step(max(0.0, ends_at - time.monotonic()))
            if results or not self._working or time.monotonic() >= ends_at:
                return results

    def step(self, timeout_seconds: float) -> list[PollResult]:
        """Wait for the next thing that happens, at most so long, and do what follows from it."""
        results, self._early = self._early, []
        for curl, code in self._multi.turn(0.0 if results else timeout_seconds):
            self._end(curl.transfer, code, time.monotonic(), results)
        return results

    def _end(self, transfer: Transfer, code: int, now: float, results: list[PollResult]) -> None:
        self._multi.remove(transfer.curl)
        conversation = transfer.conversation
        conclusion: Conclusion | None
        try:
            if code == 0:
                conclusion = conversation.take(transfer.answer())
            else:
                conclusion = transfer.error(code)
                # It may be the question that the server does not bear any more.
                conversation.known = None
        except Exception:  # (one poll's fault must not end the session, which holds the leases of fifty)
            log.exception("a poll failed in a way that is not known", repository=conversation.request.access.url)
            conclusion = INTERNAL
            conversation.known = None
        if conclusion is None:
            self._send(transfer, now, results)
            return
        self._working.discard(transfer)
        transfer.end()
        self._free.append(transfer)
        self._remember(conversation, now)
        request, seconds = conversation.request, now - transfer.started
        match conclusion:
            case Refs(refs):
                results.append(PollResult(request.key, seconds, refs, redirected_to=conversation.redirected_to))
            case PollError():
                results.append(PollResult(request.key, seconds, error=conclusion))
            case LeftToGit():
                log.info("speaks no smart protocol: its polls are left to git", repository=request.access.url)
                self._left_to_git(request.within(transfer.ends_at - now))

    def _remember(self, conversation: Conversation, now: float) -> None:
        url, known = conversation.request.access.url, conversation.known
        if known is None:
            self.forget(url)
        elif self._known.get(url) is not known:
            self.forget(url)
            self._known[url] = known
            if conversation.redirected_to or known.dumb:
                self._believed_until[url] = now + BELIEVED_SECONDS
            if len(self._known) > REMEMBERED:
                self.forget(next(iter(self._known)))

    def forget(self, url: str) -> None:
        """Ask this remote anew what it speaks, and where it is."""
        self._known.pop(url, None)
        self._believed_until.pop(url, None)

    def abandon(self) -> None:
        for transfer in self._working:
            self._multi.remove(transfer.curl)
            transfer.curl.close()
        self._working.clear()
        self._early.clear()

    def close(self) -> None:
        self.abandon()
        for transfer in self._free:
            transfer.curl.close()
        self._free.clear()
        self._multi.close()


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
