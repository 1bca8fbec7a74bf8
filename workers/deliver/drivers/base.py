"""What the delivery worker asks of a driver, and what a driver answers.

Every call gets a deadline in seconds and either ends before it or raises. A driver keeps the order at the
target itself: it compares (epoch, sequence) with what the target has and switches under one lock there, so
that a worker that was frozen can't take back what a newer one delivered.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from workers.content import Bundle


@dataclass(frozen=True, slots=True, order=True)
class Order:
    """The place of one delivery among all of a GitRepo to a cluster; the higher one is newer."""

    epoch: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Target:
    """One GitRepo at one cluster."""

    gitrepo_uuid: str
    gitrepo_name: str
    gitrepo_created: float
    """Seconds since 1970 when the GitRepo was registered: of two with one name, the later is meant."""
    cluster: str
    """The cluster's name, for messages."""
    settings: Mapping[str, Any]
    """The cluster's driver settings, as saved."""
    secrets: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """What an apply would do to the files and links that the target has now."""

    added: int
    changed: int
    removed: int
    kept: int

    @property
    def removed_part(self) -> float:
        """The removed part of what the target has now, 0.0 to 1.0; 0.0 if it has nothing."""
        present = self.changed + self.removed + self.kept
        return self.removed / present if present else 0.0


@dataclass(frozen=True, slots=True)
class Applied:
    """What the target says that it has."""

    order: Order
    bundle: str
    """The bundle's SHA-256; "" after a removal."""
    complete: bool = True
    """False if the last apply or remove was interrupted; the same one, asked for again, completes it."""


class DriverError(Exception):
    """A delivery that failed and is retried.

    ``cause`` is a stable identifier; the text is for the user, says what to do next, and holds no secret.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class TargetAhead(DriverError):
    """The target has a newer order, or the same one with something else; nothing was changed."""

    def __init__(self, order: Order, message: str) -> None:
        super().__init__("target_ahead", message)
        self.order = order


class Deadline:
    """Seconds left, by the monotonic clock, which goes on while the process is stopped."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self._end - time.monotonic())

    def check(self) -> None:
        """Raise DriverError "timeout" when no time is left."""
        if not self.left():
            raise DriverError(
                "timeout",
                f"The delivery was not done after {self.seconds:g} seconds and left the target as it was. "
                "It is retried; if this happens again, look at how fast and how busy the target is.",
            )


class Driver(Protocol):
    """One way to bring content to a cluster. ``deadline`` is in seconds from now."""

    name: str

    def plan(self, target: Target, bundle: Bundle, *, deadline: float) -> Plan:
        """What ``apply`` would change; changes nothing."""
        ...

    def apply(self, target: Target, bundle: Bundle, order: Order, *, deadline: float) -> None:
        """Make the bundle the target's content, whole or not at all; raises TargetAhead."""
        ...

    def verify(self, target: Target, bundle: Bundle, *, deadline: float) -> bool:
        """Whether the target's content is the bundle, byte for byte, nothing missing and nothing more."""
        ...

    def remove(self, target: Target, order: Order, *, deadline: float) -> None:
        """Take the content away and keep the order; raises TargetAhead."""
        ...

    def applied(self, target: Target, *, deadline: float) -> Applied | None:
        """What the target says that it has; None if it never had anything."""
        ...
