"""Which of a repository's tags a semver range means: npm's ranges, with the spellings of Masterminds that Go
tools use.

The range is cut into tokens here, and only what is made of known tokens reaches the library, in npm's
spelling.
"""

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn

from django.core.exceptions import ValidationError
from semantic_version import NpmSpec, Version

MAX_RANGE_LENGTH = 255
MAX_ALTERNATIVES = 16  # joined by ||
MAX_COMPARATORS = 16  # in each of them
MAX_TAG_LENGTH = 255

_NUMBER = r"(?:0|[1-9][0-9]{0,8}|[xX*])"
_VERSION = rf"{_NUMBER}(?:\.{_NUMBER}){{0,2}}(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?"
_COMPARATOR = re.compile(rf"(?P<operator><=|>=|~>|[<>=~^]?)[ ]*[vV]?(?P<version>{_VERSION})(?=[ ,]|$)")
_HYPHEN = re.compile(rf"[vV]?(?P<low>{_VERSION}) +- +[vV]?(?P<high>{_VERSION})")
_SEPARATOR = re.compile(r" *,? *")
# ASCII only, and bounded: semver.org's grammar is checked by the library, on what this lets through.
_TAG = re.compile(r"v?([0-9]{1,18}\.[0-9]{1,18}\.[0-9]{1,18}(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?)")


_COMPARE: dict[str, Callable[[Version, Version], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    ">=": operator.ge,
    ">": operator.gt,
}


@dataclass(frozen=True, slots=True)
class SemverRange:
    """A range that was read. Made by `parse_semver_range`."""

    text: str  # as it was given
    alternatives: tuple[tuple[tuple[str, Version], ...], ...]  # of comparators: (operator, version)

    def matches(self, tag: str) -> bool:
        version = tag_version(tag)
        return version is not None and self.includes(version)

    def includes(self, version: Version) -> bool:
        """npm's rule: all comparators of an alternative hold, and if `version` is a pre-release, one of them
        names a pre-release of the same major.minor.patch. Build metadata does not count.

        Not NpmSpec.match, which takes 2.0.0-rc.1 for `<2.0.0` and 2.0.0 for `2.0.0-rc.1` (semantic_version
        2.10).
        """
        plain = version.truncate("prerelease")
        return any(
            all(_COMPARE[sign](plain, target) for sign, target in comparators)
            and (not plain.prerelease or any(_names_one_of(plain, target) for _, target in comparators))
            for comparators in self.alternatives
        )


def parse_semver_range(text: str) -> SemverRange:
    """The range in `text`: `^1.2`, `~1.2.3`, `1.x`, `>=1.2, <2`, `1.2 - 1.4`, `1.2 || >=2`, `*`.

    Comparators joined by a space or a comma must all hold. Raises ValidationError for everything else, for
    more than 255 characters, and for more than 16 alternatives or comparators.
    """
    if not isinstance(text, str) or not text.strip(" "):
        _refuse("Give a semver range, like ^1.2 or >=1.2 <2.0.")
    if len(text) > MAX_RANGE_LENGTH:
        _refuse(f"A semver range has at most {MAX_RANGE_LENGTH} characters.")
    alternatives = text.split("||")
    if len(alternatives) > MAX_ALTERNATIVES:
        _refuse(f"A semver range has at most {MAX_ALTERNATIVES} alternatives joined by ||.")
    try:
        return SemverRange(text, tuple(_comparators(part.strip(" ")) for part in alternatives))
    except ValueError:
        _not_understood()


def highest_tag(spec: SemverRange, tags: Iterable[str]) -> str | None:
    """The tag with the highest version in the range, or None.

    A tag may begin with `v`; one that is no full version (`1.2`, `latest`) is passed over. Of equal versions
    (`1.0.0` and `v1.0.0`, or build metadata) the last by plain string comparison wins, so that the order of
    `tags` does not matter.
    """
    best: tuple[Version, str] | None = None
    for tag in tags:
        version = tag_version(tag)
        if version is None or not spec.includes(version):
            continue
        candidate = (version.truncate("prerelease"), tag)
        if best is None or candidate > best:
            best = candidate
    return None if best is None else best[1]


def tag_version(tag: str) -> Version | None:
    """The version that `tag` names, or None."""
    match = _TAG.fullmatch(tag) if len(tag) <= MAX_TAG_LENGTH else None
    if match is None:
        return None
    try:
        return Version(match[1])
    except ValueError:
        return None


def _names_one_of(version: Version, target: Version) -> bool:
    return bool(target.prerelease) and target.truncate() == version.truncate()


def _comparators(alternative: str) -> tuple[tuple[str, Version], ...]:
    """The plain comparators (operator, version) that `alternative` stands for. Raises ValueError or
    ValidationError."""
    return tuple(
        (clause.operator, clause.target.truncate("prerelease"))
        for block in _blocks(alternative)
        for clause in NpmSpec.Parser.parse_simple(block)
    )


def _blocks(alternative: str) -> list[str]:
    """What stands between the spaces and commas, in npm's spelling."""
    hyphen = _HYPHEN.fullmatch(alternative)
    if hyphen is not None:
        return [f">={hyphen['low']}", f"<={hyphen['high']}"]
    blocks: list[str] = []
    position = 0
    while position < len(alternative):
        block = _COMPARATOR.match(alternative, position)
        if block is None:
            _not_understood()
        if len(blocks) == MAX_COMPARATORS:
            _refuse(f"A semver range has at most {MAX_COMPARATORS} comparators in one alternative.")
        blocks.append(("~" if block["operator"] == "~>" else block["operator"]) + block["version"])
        separator = _SEPARATOR.match(alternative, block.end())
        if separator is None or ("," in separator[0] and separator.end() == len(alternative)):
            _not_understood()
        position = separator.end()
    if not blocks:
        _not_understood()
    return blocks


def _refuse(message: str) -> NoReturn:
    raise ValidationError(message, code="semver")


def _not_understood() -> NoReturn:
    _refuse(
        "This is no semver range that is understood. Write comparators like ^1.2, ~1.2.3, 1.x or "
        ">=1.2 <2.0, alternatives joined by ||, or 1.2 - 1.4."
    )
