"""Durations as Go and Fleet write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetsync.durations import MAX_SECONDS, format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("5s", 5),
        ("250ms", 0.25),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("90m", 5400),
        ("1m1s1ms", 61.001),
        ("8784h", MAX_SECONDS),
    ],
)
def test_it_reads_what_go_writes(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "1d",
        "-5s",
        "+5s",
        "5",
        "1e9",
        "NaN",
        "nan",
        "inf",
        "Infinity",
        "5 s",
        " 5s",
        "5s ",
        "5S",
        "s",
        ".5s",
        "5.s",
        "1us",
        "1ns",
        "8784h1s",
        "999999999h",
        "1s" * 33,
        "5s\n",
        "5s\x00",
    ],
)
def test_it_refuses_everything_else(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@given(st.text(max_size=80))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert 0 <= seconds <= MAX_SECONDS


@given(st.integers(min_value=0, max_value=int(MAX_SECONDS * 1000)))
def test_what_it_formats_it_reads_back(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, abs=1e-4)
