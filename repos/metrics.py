"""Counters that workers keep in the database for /metrics."""

PUSH_TO_APPLIED = "push_to_applied_seconds"
# Upper bounds in seconds, as Prometheus wants them: each bucket counts what is at most its bound.
BUCKETS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)


def push_to_applied(seconds: float) -> dict[tuple[str, str], float]:
    """What is counted for one revision that reached one cluster `seconds` after it was pushed, or first seen if that is not
    known; for Counter.add().
    """
    seconds = max(0.0, seconds)
    amounts = {(PUSH_TO_APPLIED, f"le={bound:g}"): 1.0 for bound in BUCKETS if seconds <= bound}
    return {**amounts, (PUSH_TO_APPLIED, "count"): 1.0, (PUSH_TO_APPLIED, "sum"): seconds}
