"""The breaker's rule: what a poll says of its host, and when that is enough."""

import pytest

from repos.breaker import MOST_FAILURES, Word, closes, failures_after, heard, opens

YES, NO, MUTE = Word.ANSWER, Word.SILENCE, Word.NOTHING


@pytest.mark.parametrize(
    ("cause", "word"),
    [
        (None, YES),
        ("network", NO),
        ("timeout", NO),
        ("server", NO),
        ("authentication", YES),
        ("refused", YES),
        ("not-found", YES),
        ("rate-limit", YES),
        ("redirect", YES),
        ("host-key", YES),
        ("not-git", YES),
        ("limit", YES),
        ("tls", MUTE),
        ("credential", MUTE),
        ("address", MUTE),
        ("internal", MUTE),
        ("git-missing", MUTE),
        ("disk-full", MUTE),
        ("a cause of a newer version", MUTE),
    ],
)
def test_what_a_poll_says_of_its_host(cause: str | None, word: Word) -> None:
    assert heard(cause) == word


@pytest.mark.parametrize(
    ("before", "words", "after"),
    [
        (0, [], 0),
        (0, [YES], 0),
        (0, [NO], 1),
        (3, [NO, NO, MUTE], 5),
        (3, [MUTE], 3),
        (9, [NO, YES, NO], 0),
        (9, [YES], 0),
        (MOST_FAILURES, [NO], MOST_FAILURES),
    ],
)
def test_failures_in_a_row(before: int, words: list[Word], after: int) -> None:
    assert failures_after(before, words) == after


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (0, 9, ""),
        (9, 10, "opens"),
        (0, 30, "opens"),
        (10, 11, ""),
        (9, 0, ""),
        (10, 0, "closes"),
        (400, 0, "closes"),
    ],
)
def test_when_it_opens_and_closes(before: int, after: int, change: str) -> None:
    assert (opens(before, after, 10), closes(before, after, 10)) == (change == "opens", change == "closes")
