"""Durations as Go and Fleet write them: `15s`, `1h30m`, `250ms`."""

import re

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h)")
MAX_SECONDS = 366 * 24 * 3600.0


def parse_duration(text: str) -> float:
    """Seconds in `text`, which is `0` or one or more parts of a decimal number and `ms`, `s`, `m` or `h`.

    A subset of Go's time.ParseDuration, which Fleet uses for pollingInterval: no sign, no `us` and `ns`, and
    no `d`, which Go does not know either. Raises ValueError for everything else and for more than 366 days.
    """
    if text == "0":
        return 0.0
    total, position = 0.0, 0
    if not text or len(text) > 64:
        raise ValueError("a duration is written like 15s or 1h30m")
    while position < len(text):
        part = _PART.match(text, position)
        if part is None:
            raise ValueError("a duration is written like 15s or 1h30m, with the units h, m, s and ms")
        total += float(part[1]) * _UNITS[part[2]]
        position = part.end()
    if total > MAX_SECONDS:
        raise ValueError("a duration is at most 366 days (8784h)")
    return total


def format_duration(seconds: float) -> str:
    """`seconds` in the shortest exact form that parse_duration reads, to the millisecond."""
    left = round(seconds * 1000)
    if left == 0:
        return "0s"
    text = ""
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, size)
        if count:
            text += f"{count}{unit}"
    return text
