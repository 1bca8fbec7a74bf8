"""When a remote is asked again: P1's pure half, E1's backoff."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repos.schedule import backoff_seconds, jittered, next_wait_seconds

draws = st.floats(0, 1, exclude_max=True)
intervals = st.floats(1, 366 * 24 * 3600)


def test_ten_thousand_waits_of_a_minute_are_never_early_and_at_most_ten_percent_late() -> None:
    waits = [next_wait_seconds(60, 0, cap_seconds=300, jitter=0.10) for _ in range(10_000)]

    assert min(waits) >= 60
    assert max(waits) <= 66
    assert len({round(wait, 3) for wait in waits}) > 1000
    assert 62 < sum(waits) / len(waits) < 64


@given(intervals, st.floats(0, 1), draws)
def test_jitter_only_lengthens(seconds: float, jitter: float, draw: float) -> None:
    assert seconds <= jittered(seconds, jitter, draw) <= seconds * (1 + jitter)


@pytest.mark.parametrize(
    ("interval", "failures", "cap", "expected"),
    [
        (15, 0, 300, 15),
        (15, 1, 300, 30),
        (15, 2, 300, 60),
        (15, 4, 300, 240),
        (15, 5, 300, 300),
        (15, 10_000, 300, 300),
        # The cap is never below the interval.
        (600, 0, 300, 600),
        (600, 7, 300, 600),
    ],
)
def test_backoff_doubles_up_to_its_cap(interval: float, failures: int, cap: float, expected: float) -> None:
    assert backoff_seconds(interval, failures, cap) == expected


@given(intervals, st.integers(0, 10**9), st.floats(1, 10**6), draws)
def test_a_wait_is_never_below_the_interval_and_never_above_the_jittered_cap(
    interval: float, failures: int, cap: float, draw: float
) -> None:
    wait = next_wait_seconds(interval, failures, cap_seconds=cap, jitter=0.10, draw=draw)

    assert interval <= wait <= max(interval, cap) * 1.1 + 1e-6


@given(intervals, st.integers(0, 100), st.floats(1, 10**6))
def test_more_failures_never_wait_less(interval: float, failures: int, cap: float) -> None:
    assert backoff_seconds(interval, failures, cap) <= backoff_seconds(interval, failures + 1, cap)
