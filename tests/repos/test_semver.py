"""Semver ranges, and the tag that one means."""

import random

import pytest
from django.core.exceptions import ValidationError
from hypothesis import given
from hypothesis import strategies as st

from repos.semver import MAX_ALTERNATIVES, MAX_COMPARATORS, highest_tag, parse_semver_range

TAGS = ["1.0.0", "v1.2.0", "1.2.5", "v1.10.0", "2.0.0-rc.1", "2.0.0", "1.3.0-beta.2", "1.3.0-beta.11"]
TAGS += [
    "latest",
    "v3",
    "3.0",
    "01.0.0",
    "v",
    "",
    "1.2.3.4",
    "9.9.9-",
    "V9.9.9",
    "9.9.9\n",
    "\u0669.9.9",
    "9" * 5000 + ".0.0",
]


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("*", "2.0.0"),
        ("x", "2.0.0"),
        ("1.x", "v1.10.0"),
        ("1.2.x", "1.2.5"),
        ("^1.2", "v1.10.0"),
        ("~1.2.3", "1.2.5"),
        ("~> 1.2", "1.2.5"),
        (">=1.2 <1.10", "1.2.5"),
        (">= 1.2, < 2", "v1.10.0"),
        (">=1.2,<2", "v1.10.0"),
        ("=1.2.0", "v1.2.0"),
        ("v1.2.0", "v1.2.0"),
        ("1.0.0 - 1.4", "1.2.5"),
        ("1.0.0 || 1.2.x", "1.2.5"),
        ("<1.0.0", None),
        ("^4", None),
        (">=1.3.0-beta.1 <1.3.0", "1.3.0-beta.11"),
        ("2.0.0-rc.1", "2.0.0-rc.1"),
        (">=2.0.0-rc.0", "2.0.0"),
        ("<2.0.0", "v1.10.0"),
        ("<=2.0.0-rc.9", "2.0.0-rc.1"),
        ("^1.2 || 2.0.0-rc.1", "2.0.0-rc.1"),
        ("^1.2.5-a", "v1.10.0"),
        ("~1.3.0-beta.3", "1.3.0-beta.11"),
        ("1.2.5+build", "1.2.5"),
    ],
)
def test_a_range_means_its_highest_tag(text: str, tag: str | None) -> None:
    spec = parse_semver_range(text)
    assert highest_tag(spec, TAGS) == tag
    assert tag is None or spec.matches(tag)


@pytest.mark.parametrize("tags", [["1.0.0", "v1.0.0"], ["v1.0.0", "1.0.0"]])
def test_equal_versions_are_ordered_as_text(tags: list[str]) -> None:
    assert highest_tag(parse_semver_range("1"), tags) == "v1.0.0"


def test_build_metadata_is_ordered_as_text() -> None:
    assert highest_tag(parse_semver_range("1"), ["1.0.0+9", "1.0.0+10", "1.0.0"]) == "1.0.0+9"


def test_the_order_of_the_tags_does_not_matter() -> None:
    tags = [*TAGS, "v2.0.0", "2.0.0+a"]
    for seed in range(20):
        random.Random(seed).shuffle(tags)
        assert highest_tag(parse_semver_range("*"), tags) == "v2.0.0"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "||",
        "1 ||",
        "a",
        "1.2.3-",
        "1.2.3-..",
        "1.2.3-01",
        "01",
        ">*",
        "!=1",
        "=>1",
        "1,,2",
        "1,",
        ",1",
        "1 -",
        "- 1",
        "1 - 2 - 3",
        "^",
        "latest",
        "1.2.3.4",
        "^^1",
        ">=1 and <2",
        "1\n",
        "\n1",
        "1\u0661",
        "1\x00",
        "9999999999",
        "~*",
        "$1",
    ],
)
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        parse_semver_range(text)


@pytest.mark.parametrize("value", [None, 1, 1.2, True, [], {}])
def test_another_type_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        parse_semver_range(value)  # type: ignore[arg-type]


def test_a_range_is_bounded() -> None:
    """Structure, not time: nothing longer than this ever reaches the library."""
    assert parse_semver_range("||".join(["1"] * MAX_ALTERNATIVES))
    assert parse_semver_range(" ".join(["1"] * MAX_COMPARATORS))
    assert parse_semver_range("1".ljust(255))
    for text in (
        "||".join(["1"] * (MAX_ALTERNATIVES + 1)),
        " ".join(["1"] * (MAX_COMPARATORS + 1)),
        "1".ljust(256),
        "^1 " * 3400,
        "1.2.3-" + "a." * 5000,
        " " * 10_000,
    ):
        with pytest.raises(ValidationError, match=r"at most|Give"):
            parse_semver_range(text)


@given(st.one_of(st.text(max_size=40), st.text(alphabet="0123.xX*^~<>=|-+, vab", max_size=40)))
def test_any_text_is_a_range_or_a_validation_error(text: str) -> None:
    try:
        spec = parse_semver_range(text)
    except ValidationError:
        return
    assert highest_tag(spec, TAGS) in [*TAGS, None]


@given(st.lists(st.one_of(st.text(max_size=20), st.text(alphabet="0123.-+abv", max_size=20))))
def test_any_tags_can_be_asked_about(tags: list[str]) -> None:
    assert highest_tag(parse_semver_range(">=0.0.0-0"), tags) in [*tags, None]
