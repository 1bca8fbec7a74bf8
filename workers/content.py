"""What passes between the stages that make content and those that deliver it.

The stages do not import each other; both import these shapes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

#: The mode of an Entry that is a symbolic link.
LINK_MODE = 0o120000


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or symbolic link of a bundle; folders are implied by the paths."""

    path: str
    """Relative and divided by "/"; validated: no "..", no ".git", not absolute."""
    mode: int
    """0o644 or 0o755 for a file, 0o120000 for a symbolic link."""
    size: int
    """Bytes of the file; 0 for a link."""
    link_target: str
    """Where a link points, relative and inside the bundle; "" for a file."""


class BundleUnavailable(Exception):
    """The bundle is gone or damaged, and has to be made again."""


class Bundle(Protocol):
    """Content that can be read as often as needed."""

    @property
    def sha256(self) -> str:
        """The hash of the tar, 64 lower-case hex digits: the bundle's name."""
        ...

    def entries(self) -> Iterator[tuple[Entry, BinaryIO | None]]:
        """In path order; a file's stream is to be read at once, a link has none."""
        ...
