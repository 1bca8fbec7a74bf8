"""When a remote is asked again. Pure: time and chance are given, nothing is read.

The jitter is Fleet's cure for pollers that march in step: an interval of 60 s becomes 60 to 66 s, never less.
"""

import random

LONGEST_DOUBLING = 30


def jittered(seconds: float, jitter: float, draw: float) -> float:
    """`seconds` lengthened by at most the part `jitter`; `draw` is a uniform number in [0, 1)."""
    return seconds * (1.0 + jitter * draw)


def backoff_seconds(interval_seconds: float, failures: int, cap_seconds: float) -> float:
    """interval × 2^failures, at most `cap_seconds`, but never below the interval itself."""
    doubled = interval_seconds * 2.0 ** min(failures, LONGEST_DOUBLING)
    return max(interval_seconds, min(doubled, cap_seconds))


def next_wait_seconds(
    interval_seconds: float, failures: int, *, cap_seconds: float, jitter: float, draw: float | None = None
) -> float:
    """Seconds from the start of one poll to the next one, after `failures` failed ones in a row."""
    if draw is None:
        draw = random.random()  # noqa: S311  (spreads load, keeps no secret)
    return jittered(backoff_seconds(interval_seconds, failures, cap_seconds), jitter, draw)
