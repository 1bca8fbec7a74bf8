"""What an answer changes of the refs that are stored. Pure.

What an answer takes back, a head that returns to an earlier one or a tag that is gone, is believed when the next poll says
so again: a replica that lags behind looks just like a revert, and would have a range of versions fall back. A branch that is
gone is believed at once: what follows it is told, and keeps its commit.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

REMEMBERED = 8
# The head of a ref that is not there.
GONE = ""
TAGS = "refs/tags/"


@dataclass(frozen=True, slots=True)
class Heads:
    """Stored refs ({full name: commit}), the last heads of each ref, and heads that wait for a second poll's word (GONE for a
    tag that is not there any more).
    """

    refs: dict[str, str]
    recent: dict[str, list[str]]
    returning: dict[str, str]


def digest_of(refs: Mapping[str, str], asked: Iterable[str]) -> str:
    """Names an answer together with its question: equal digests say that nothing moved."""
    text = json.dumps([sorted(asked), sorted(refs.items())], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def only_asked(refs: Mapping[str, str], asked: Iterable[str]) -> dict[str, str]:
    """The part of an answer that was asked for: servers see prefixes, and a prefix is only a prefix."""
    asked = set(asked)
    prefixes = tuple(name.removesuffix("*") for name in asked if name.endswith("*"))
    return {ref: sha for ref, sha in refs.items() if ref in asked or (prefixes and ref.startswith(prefixes))}


def take_in(
    stored: Mapping[str, str],
    recent: Mapping[str, Sequence[str]],
    returning: Mapping[str, str],
    answer: Mapping[str, str],
) -> Heads:
    """The heads after `answer`, which holds every asked ref that exists."""
    refs: dict[str, str] = {}
    waiting: dict[str, str] = {}
    # Of refs that are gone nothing is remembered: what is kept is bounded by what is there.
    remembered = {ref: list(heads) for ref, heads in recent.items() if ref in stored or ref in answer}
    for ref in {*stored, *answer}:
        before, now = stored.get(ref, GONE), answer.get(ref, GONE)
        if _takes_back(ref, before, now, recent.get(ref, ())) and returning.get(ref) != now:
            waiting[ref] = now
            now = before
        if before == now:
            if before != GONE:
                refs[ref] = before
            continue
        if now != GONE:
            refs[ref] = now
        if before != GONE:
            remembered[ref] = [*(h for h in remembered.get(ref, []) if h != before), before][-REMEMBERED:]
    return Heads(refs, remembered, waiting)


def _takes_back(ref: str, before: str, now: str, recent: Sequence[str]) -> bool:
    """Whether a replica that lags behind could have said `now` of a ref that was at `before`."""
    if now == GONE:
        return before != GONE and ref.startswith(TAGS)
    # A ref that comes back with the head that it went with is as it was.
    return before != now and now in (recent if before != GONE else recent[:-1])
