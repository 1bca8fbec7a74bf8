"""The door of a poll engine: requests in, results out, never blocking on one server.

A session gives an engine requests and collects results; what protocol is spoken, and how, is the engine's own matter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from workers.git_environment import RemoteAccess


@dataclass(frozen=True, slots=True)
class PollRequest:
    """One question: which commits do these refs of this remote stand for?

    `key` comes back with the result. `refs` are full names, `HEAD`, or a prefix that ends in `*`.
    """

    key: int
    access: RemoteAccess
    refs: tuple[str, ...]
    timeout_seconds: float
    max_refs: int

    def within(self, seconds: float) -> "PollRequest":
        """The same with less time for it."""
        return replace(self, timeout_seconds=max(0.1, seconds))


@dataclass(frozen=True, slots=True)
class PollError:
    """Why a poll has no answer: a short stable `cause`, a sentence for the user, and the patience that was asked for."""

    cause: str
    message: str
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class PollResult:
    """The answer to one request: `refs` ({full name: commit, tags peeled}) or an `error`. `seconds` is what it took.

    `redirected_to` is the URL that the host redirected to, "" where it did not.
    """

    key: int
    seconds: float
    refs: Mapping[str, str] = field(default_factory=dict)
    error: PollError | None = None
    redirected_to: str = ""


def timed_out(request: PollRequest) -> PollError:
    seconds = f"{request.timeout_seconds:g}"
    return PollError("timeout", f"the server did not answer within {seconds} s: check it, or raise GIT_TIMEOUT")


class Engine(Protocol):
    @property
    def in_flight(self) -> int:
        """Requests that have been started and whose results have not been collected."""

    def start(self, request: PollRequest) -> None:
        """Begin to ask. Never blocks, never raises for what a remote does."""

    def wait(self, timeout_seconds: float) -> list[PollResult]:
        """The results that are there, waiting for the first one for at most `timeout_seconds`."""

    def abandon(self) -> None:
        """End everything in flight, without results. The engine can be used again."""

    def close(self) -> None:
        """The same, and let go of all that the engine keeps."""
