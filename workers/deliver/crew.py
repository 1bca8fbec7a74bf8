"""Threads that keep their connection to the database for as long as a session lasts: making one costs more than a delivery."""

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Self

from django.db import close_old_connections, connections

Work = tuple["Future[None]", Callable[[], None]]


class Crew:
    """Like a ThreadPoolExecutor of at most `size` threads, each of which closes its connections when the block ends.

    The caller has no more in hand than there are threads, so that what is handed over begins at once.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size, self._name = size, name
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._in_hand: set[Future[None]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()

    def submit(self, work: Callable[[], None]) -> "Future[None]":
        """Have `work` done, by a thread that is free or a new one."""
        future: Future[None] = Future()
        self._in_hand = {other for other in self._in_hand if not other.done()} | {future}
        if len(self._in_hand) > len(self._threads) < self._size:
            thread = Thread(target=self._run, name=f"{self._name}-{len(self._threads)}", daemon=True)
            thread.start()
            self._threads.append(thread)
        self._work.put((future, work))
        return future

    def _run(self) -> None:
        try:
            while (handed := self._work.get()) is not None:
                future, work = handed
                try:
                    # One that broke, or whose server went away meanwhile, is made again.
                    close_old_connections()
                    work()
                except BaseException as error:  # noqa: BLE001  (the caller asks the future)
                    future.set_exception(error)
                else:
                    future.set_result(None)
        finally:
            connections.close_all()
