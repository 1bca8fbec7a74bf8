"""What an answer changes of the refs that are stored. Pure.

A head that returns to a recent one is believed when the next poll says so again: a replica that lags behind looks just
like a revert.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

REMEMBERED = 8


@dataclass(frozen=True, slots=True)
class Heads:
    """Stored refs ({full name: commit}), the last heads of each ref, and heads that wait for a second poll's word."""

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
        before, now = stored.get(ref), answer.get(ref)
        if before == now or (before and now and now in recent.get(ref, ()) and returning.get(ref) != now):
            refs[ref] = before or ""
            if before != now and now:
                waiting[ref] = now
            continue
        if now:
            refs[ref] = now
        if before:
            remembered[ref] = [*(h for h in remembered.get(ref, []) if h != before), before][-REMEMBERED:]
    return Heads(refs, remembered, waiting)
