"""The engine that speaks all that a Remote's URL can name: http(s) over libcurl, ssh over kept connections, and what is left
(files, and web servers that know nothing of Git) by git itself.
"""

import time
from typing import TYPE_CHECKING

from workers.git_environment import AccessError
from workers.poll.curl import CurlEngine
from workers.poll.engine import PollError, PollRequest, PollResult
from workers.poll.loop import LoopEngine
from workers.poll.plain import ask_git

if TYPE_CHECKING:
    from workers.poll.ssh import SshAsker

# For ssh connections to end.
CLOSE_SECONDS = 5.0


class RemoteEngine:
    """Made for `limit` requests in flight. Not thread-safe: one session uses it at a time."""

    def __init__(self, limit: int) -> None:
        self._ssh: SshAsker | None = None
        self._loop = LoopEngine(self._ask)
        self._curl = CurlEngine(limit, left_to_git=self._loop.start)
        self._refused: list[PollResult] = []

    async def _ask(self, request: PollRequest) -> PollResult:
        if request.access.scheme == "ssh":
            return await self._over_ssh().ask(request)
        result = await ask_git(request)
        if result.error is not None:
            # It may speak more by now.
            self._curl.forget(request.access.url)
        return result

    def _over_ssh(self) -> "SshAsker":
        if self._ssh is None:
            # Here, because it takes 20 MB that a process without such remotes does not need.
            from workers.poll.ssh import SshAsker

            self._ssh = SshAsker()
        return self._ssh

    @property
    def in_flight(self) -> int:
        return self._curl.in_flight + self._loop.in_flight + len(self._refused)

    def start(self, request: PollRequest) -> None:
        try:
            over_http = request.access.scheme in ("https", "http")
        except AccessError as error:
            self._refused.append(PollResult(request.key, 0.0, error=PollError(error.cause, str(error))))
            return
        if over_http:
            self._curl.start(request)
        else:
            self._loop.start(request)

    def wait(self, timeout_seconds: float) -> list[PollResult]:
        """The results that are there, waiting for the first one for at most `timeout_seconds`."""
        ends_at = time.monotonic() + timeout_seconds
        results, self._refused = self._refused, []
        while not results and self.in_flight:
            left = max(0.0, ends_at - time.monotonic())
            if not self._loop.in_flight:
                results += self._curl.wait(left)
            elif not self._curl.in_flight:
                results += self._loop.wait(left)
            else:
                waiting = min(left, self._curl.patience_seconds())
                results += self._loop.wait(waiting, readable=self._curl.fileno())
                results += self._curl.step(0.0)
            if time.monotonic() >= ends_at:
                break
        return results

    def abandon(self) -> None:
        self._curl.abandon()
        self._loop.abandon()
        self._refused.clear()

    def close(self) -> None:
        self.abandon()
        self._curl.close()
        if self._ssh is not None:
            self._loop.run(self._ssh.close(), CLOSE_SECONDS)
        self._loop.close()
