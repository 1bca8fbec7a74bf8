"""An engine for questions that are coroutines: one asyncio loop, which turns only while somebody waits for results."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from workers.poll.engine import PollRequest, PollResult

RESOLVERS = 64
# For what was cancelled to end its process or close its channel.
ABANDONED_SECONDS = 5.0


class LoopEngine:
    """Asks with `ask`, a coroutine that never raises for what a remote does. Not thread-safe: one session uses it at a time."""

    def __init__(self, ask: Callable[[PollRequest], Awaitable[PollResult]]) -> None:
        self._ask = ask
        self.loop = asyncio.new_event_loop()
        # Names are resolved in threads: so many that a resolver which says nothing holds up only those who ask it.
        self._resolvers = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="resolve")
        self.loop.set_default_executor(self._resolvers)
        self._running: set[asyncio.Future[PollResult]] = set()

    @property
    def in_flight(self) -> int:
        return len(self._running)

    def start(self, request: PollRequest) -> None:
        self._running.add(asyncio.ensure_future(self._ask(request), loop=self.loop))

    def wait(self, timeout_seconds: float, *, readable: int | None = None) -> list[PollResult]:
        """The results that are there, waiting for the first one, or until the descriptor `readable` has something to read,
        for at most `timeout_seconds`.
        """
        if not self._running:
            return []
        return self.loop.run_until_complete(self._wait(timeout_seconds, readable))

    async def _wait(self, timeout_seconds: float, readable: int | None) -> list[PollResult]:
        if readable is None:
            done, _ = await asyncio.wait(self._running, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        else:
            done = await self._wait_for_either(timeout_seconds, readable)
        self._running -= done
        return [task.result() for task in done]

    async def _wait_for_either(self, timeout_seconds: float, readable: int) -> set[asyncio.Future[PollResult]]:
        ready: asyncio.Future[None] = self.loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        self.loop.add_reader(readable, wake)
        try:
            waited: set[asyncio.Future[Any]] = {*self._running, ready}
            await asyncio.wait(waited, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.loop.remove_reader(readable)
        return {task for task in self._running if task.done()}

    def run(self, work: Awaitable[object], timeout_seconds: float) -> None:
        """Do something else in the loop, for at most so long."""
        with suppress(TimeoutError):
            self.loop.run_until_complete(asyncio.wait_for(asyncio.ensure_future(work, loop=self.loop), timeout_seconds))

    def abandon(self) -> None:
        for task in self._running:
            task.cancel()
        if self._running:
            self.loop.run_until_complete(asyncio.wait(self._running, timeout=ABANDONED_SECONDS))
        self._running = set()

    def close(self) -> None:
        self.abandon()
        self._resolvers.shutdown(wait=False, cancel_futures=True)
        self.loop.close()
