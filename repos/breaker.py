"""A breaker for each Git host: while a host gives no answer, it is asked by one poll at a time, over all workers.

A dead host whose polls run into their timeouts would otherwise hold slots that others need. Pure but for `is_open`.
"""

from collections.abc import Iterable
from enum import Enum

from django.conf import settings
from django.db.models import Q


class Word(Enum):
    """What one poll says of its host."""

    ANSWER = "the host lives, whatever it said"
    SILENCE = "the host was not reached, or said nothing sensible"
    NOTHING = "the poll says nothing of its host"


# By the causes of workers.git_errors and workers.poll.
SILENT = frozenset({"network", "timeout", "server"})
ANSWERS = frozenset(
    {
        *("authentication", "refused", "not-found", "commit-not-found", "redirect", "rate-limit", "host-key"),
        *("limit", "bad-objects", "not-git"),
    }
)
# Far beyond any threshold; the column has its own limit.
MOST_FAILURES = 1_000_000


def heard(cause: str | None) -> Word:
    """What a poll that ended with `cause` (None: with refs) says. A certificate that is not trusted may be the fault of
    one remote's CA bundle, and what failed on this machine is no host's.
    """
    if cause is None or cause in ANSWERS:
        return Word.ANSWER
    return Word.SILENCE if cause in SILENT else Word.NOTHING


def failures_after(failures: int, words: Iterable[Word]) -> int:
    """The host's failures in a row after a batch of polls, in no order: one answer is enough to believe in it."""
    words = list(words)
    if Word.ANSWER in words:
        return 0
    return min(failures + words.count(Word.SILENCE), MOST_FAILURES)


def opens(before: int, after: int, threshold: int) -> bool:
    """Whether the breaker opens as a host's failures in a row go from `before` to `after`."""
    return before < threshold <= after


def closes(before: int, after: int, threshold: int) -> bool:
    """Whether it closes."""
    return after < threshold <= before


def is_open() -> Q:
    """Hosts whose breaker is open."""
    return Q(failures__gte=settings.GIT_HOST_BREAKER)
