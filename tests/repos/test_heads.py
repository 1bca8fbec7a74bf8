"""What an answer changes of the stored refs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repos.heads import REMEMBERED, Heads, digest_of, only_asked, take_in

A, B, C = "a" * 40, "b" * 40, "c" * 40
MAIN, TAG = "refs/heads/main", "refs/tags/v2"

refs = st.dictionaries(st.sampled_from([MAIN, "refs/heads/x", "HEAD", TAG]), st.sampled_from([A, B, C]))


def test_a_new_ref_is_stored() -> None:
    assert take_in({}, {}, {}, {MAIN: A}) == Heads({MAIN: A}, {}, {})


def test_a_moved_ref_is_stored_and_its_old_head_remembered() -> None:
    assert take_in({MAIN: A}, {}, {}, {MAIN: B}) == Heads({MAIN: B}, {MAIN: [A]}, {})


def test_a_head_that_returns_waits_for_a_second_word() -> None:
    first = take_in({MAIN: B}, {MAIN: [A]}, {}, {MAIN: A})
    assert first == Heads({MAIN: B}, {MAIN: [A]}, {MAIN: A})

    second = take_in(first.refs, first.recent, first.returning, {MAIN: A})
    assert second == Heads({MAIN: A}, {MAIN: [A, B]}, {})


def test_a_lagging_replica_is_not_a_revert() -> None:
    lagging = take_in({MAIN: B}, {MAIN: [A]}, {}, {MAIN: A})

    assert take_in(lagging.refs, lagging.recent, lagging.returning, {MAIN: B}) == Heads({MAIN: B}, {MAIN: [A]}, {})


def test_a_newer_head_after_a_returning_one_is_stored_at_once() -> None:
    lagging = take_in({MAIN: B}, {MAIN: [A]}, {}, {MAIN: A})

    assert take_in(lagging.refs, lagging.recent, lagging.returning, {MAIN: C}).refs == {MAIN: C}


def test_a_deleted_ref_is_gone_and_a_recreated_one_is_back_at_once() -> None:
    gone = take_in({MAIN: A}, {}, {}, {})
    assert gone.refs == {}

    assert take_in(gone.refs, gone.recent, gone.returning, {MAIN: A}).refs == {MAIN: A}


def test_a_tag_that_one_answer_lacks_stays_and_one_that_two_lack_is_gone() -> None:
    stored = {MAIN: B, TAG: B}
    lagging = take_in(stored, {}, {}, {MAIN: B})
    assert (lagging.refs, lagging.returning) == (stored, {TAG: ""})

    assert take_in(lagging.refs, lagging.recent, lagging.returning, stored) == Heads(stored, {}, {})
    assert take_in(lagging.refs, lagging.recent, lagging.returning, {MAIN: B}).refs == {MAIN: B}


def test_an_absence_does_not_let_an_earlier_head_in() -> None:
    gone = take_in({MAIN: B}, {MAIN: [A]}, {}, {})
    lagging = take_in(gone.refs, gone.recent, gone.returning, {MAIN: A})
    assert (lagging.refs, lagging.returning) == ({}, {MAIN: A})

    assert take_in(lagging.refs, lagging.recent, lagging.returning, {MAIN: B}).refs == {MAIN: B}
    assert take_in(lagging.refs, lagging.recent, lagging.returning, {MAIN: A}).refs == {MAIN: A}


@given(st.lists(refs, max_size=40))
def test_an_answer_given_twice_is_what_is_stored(answers: list[dict[str, str]]) -> None:
    heads = Heads({}, {}, {})
    for answer in answers:
        for _ in range(2):
            heads = take_in(heads.refs, heads.recent, heads.returning, answer)
        assert heads.refs == answer
        assert not heads.returning
    assert all(len(recent) <= REMEMBERED for recent in heads.recent.values())


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (["refs/heads/main"], {"refs/heads/main": A}),
        (["refs/heads/main", "HEAD"], {"refs/heads/main": A, "HEAD": A}),
        (["refs/tags/*"], {"refs/tags/v1": C}),
        ([], {}),
    ],
)
def test_only_what_was_asked_counts(asked: list[str], expected: dict[str, str]) -> None:
    answer = {"refs/heads/main": A, "refs/heads/main2": B, "HEAD": A, "refs/tags/v1": C}

    assert only_asked(answer, asked) == expected


def test_the_digest_names_the_question_too() -> None:
    assert digest_of({MAIN: A}, [MAIN]) == digest_of({MAIN: A}, [MAIN])
    assert digest_of({MAIN: A}, [MAIN]) != digest_of({MAIN: A}, [MAIN, "HEAD"])
    assert digest_of({MAIN: A}, [MAIN]) != digest_of({MAIN: B}, [MAIN])
