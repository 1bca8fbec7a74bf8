"""What the tests of polls over ssh share: a server with one repository and one key that may read it, and two ways to ask."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.git_servers import Repository
from tests.ssh_servers import SshServer, make_key
from workers.git_environment import RemoteAccess
from workers.poll.engine import PollRequest, PollResult
from workers.poll.loop import LoopEngine
from workers.poll.plain import ask_git
from workers.poll.ssh import SshAsker
from workers.poll.ssh_connections import SshConnections

MAIN = "refs/heads/main"


@dataclass
class Asking:
    """Questions to one server, over `engine`, with what is registered unless a test says otherwise."""

    engine: LoopEngine
    server: SshServer
    repository: Repository
    key: str

    def access(self, **more: str) -> RemoteAccess:
        registered = {
            "url": self.server.url(self.repository),
            "kind": "ssh",
            "secret": self.key,
            "known_hosts": self.server.known_hosts(),
        }
        return RemoteAccess(**{**registered, **more})  # type: ignore[arg-type]

    def start(
        self, *refs: str, number: int = 1, timeout: float = 30.0, max_refs: int = 1000, **more: str
    ) -> PollRequest:
        request = PollRequest(number, self.access(**more), refs or (MAIN,), timeout, max_refs)
        self.engine.start(request)
        return request

    def collect(self, *, seconds: float = 90.0) -> dict[int, PollResult]:
        results: dict[int, PollResult] = {}
        end = time.monotonic() + seconds
        while self.engine.in_flight and time.monotonic() < end:
            results.update({result.key: result for result in self.engine.wait(0.5)})
        assert not self.engine.in_flight
        return results

    def __call__(self, *refs: str, timeout: float = 30.0, max_refs: int = 1000, **more: str) -> PollResult:
        self.start(*refs, number=1, timeout=timeout, max_refs=max_refs, **more)
        return self.collect()[1]

    def cause(self, *, timeout: float = 30.0, max_refs: int = 1000, **more: str) -> str:
        """Why there is no answer."""
        result = self(timeout=timeout, max_refs=max_refs, **more)
        assert result.error is not None and result.refs == {}, result
        assert result.error.message
        return result.error.cause


@contextmanager
def ssh_engine(connections: SshConnections | None = None) -> Iterator[LoopEngine]:
    asker = SshAsker(connections)
    engine = LoopEngine(asker.ask)
    try:
        yield engine
    finally:
        engine.abandon()
        engine.run(asker.close(), 10.0)
        engine.close()


@contextmanager
def git_engine() -> Iterator[LoopEngine]:
    engine = LoopEngine(ask_git)
    try:
        yield engine
    finally:
        engine.close()


def registered(engine: LoopEngine, server: SshServer, folder: Path) -> Asking:
    """A repository with one commit, and a key that the server takes."""
    repository = Repository.make(folder / "served" / "shop.git")
    repository.commit({"a": "a"})
    key = make_key(folder / "key")
    server.allow(folder / "key")
    return Asking(engine, server, repository, key)
