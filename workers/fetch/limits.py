"""What one fetch may write, and the errors that name the limit."""

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from workers.fetch import layout
from workers.fetch.git import GitCall, GitFailed
from workers.git_errors import GitError, HostPatience, LimitExceeded

TOO_BIG = re.compile(rf"died of signal {signal.SIGXFSZ.value}\b|file too large", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """`max_bytes` of pack for one fetch (GIT_FETCH_MAX_BYTES), and for how long the host is still to be left alone: whoever
    would have to ask it meanwhile raises HostPatience.
    """

    max_bytes: int = 2 * 1024**3
    patience_seconds: float = 0.0

    def check_patience(self) -> None:
        if self.patience_seconds > 0:
            raise HostPatience(self.patience_seconds)


def too_big(max_bytes: int) -> LimitExceeded:
    return LimitExceeded(
        "GIT_FETCH_MAX_BYTES",
        f"The commit needs more than {max_bytes} bytes, the limit GIT_FETCH_MAX_BYTES. Make the repository smaller, or "
        "have the limit raised.",
    )


def pack_bound(max_bytes: int, files: int, limits: FetchLimits) -> tuple[int, LimitExceeded]:
    """How big the packs of so many files may be that have `max_bytes` together, and what is wrong if they are bigger. Pure.

    A pack is bigger than what is in it by some bytes a file and a file's block at most, so a bigger one means bigger files.
    """
    most = max_bytes + max_bytes // 1000 + 64 * files + 4096
    if most >= limits.max_bytes:
        return limits.max_bytes, too_big(limits.max_bytes)
    return most, LimitExceeded(
        "BUNDLE_MAX_BYTES",
        f"The selected files have more than {max_bytes} bytes, the limit BUNDLE_MAX_BYTES. Name fewer folders, or have "
        "the limit raised.",
    )


@contextmanager
def bounded(call: GitCall, refusal: LimitExceeded) -> Iterator[Callable[[], None]]:
    """Yields what is to be called while git writes into the mirror. What a failed git leaves is removed; one that wrote
    more than `call.max_file_bytes` raises `refusal`.
    """
    objects = call.git_dir / "objects"
    before = layout.size_bytes(objects)

    def watch() -> None:
        # The size of each file is held by the kernel (ulimit); this holds the sum of them.
        if layout.size_bytes(objects) - before > call.max_file_bytes:
            raise refusal

    try:
        yield watch
    except GitFailed as failed:
        layout.tidy(call.git_dir)
        if TOO_BIG.search(failed.stderr.decode("utf-8", "replace")):
            raise refusal from failed
        raise
    except GitError:
        layout.tidy(call.git_dir)
        raise
