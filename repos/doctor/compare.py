"""What an answer of a remote or a target means, beside what the database says. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from repos.refs import Follower, head_of, was_asked


def probed_head(follower: Follower, answer: Mapping[str, Any]) -> str | None:
    """The commit that a remote's answer ({"asked": [ref], "refs": {ref: commit}}) has for the follower; None: nothing, or
    it was not asked for.
    """
    if not was_asked(follower, answer.get("asked", ())):
        return None
    head = head_of(follower, answer.get("refs", {}))
    return head.commit if head is not None else None


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the database has of a delivery that has ended: the order and the bundle, "" after a removal."""

    epoch: int
    sequence: int
    bundle: str


@dataclass(frozen=True, slots=True)
class Found:
    """What a target says that it has, and whether its content was the bundle; None: that was not asked."""

    epoch: int
    sequence: int
    bundle: str
    complete: bool
    verified: bool | None


def recorded_in(answer: Mapping[str, Any]) -> Recorded:
    return Recorded(**answer["recorded"])


def found_in(answer: Mapping[str, Any]) -> Found | None:
    """None: the target never had anything of this GitRepo."""
    found = answer["found"]
    return Found(**found) if found is not None else None


def target_fault(recorded: Recorded, found: Found | None) -> tuple[str, str] | None:
    """The kind of finding and a sentence, None if the target is as recorded."""
    kind = "target-differs" if recorded.bundle else "not-removed"
    order = (recorded.epoch, recorded.sequence)
    if found is None:
        return (kind, "it has nothing, and does not know of the GitRepo") if recorded.bundle else None
    has = (found.epoch, found.sequence)
    if has > order:
        why = "the database was restored from an older copy, or another installation delivers to it"
        return "target-differs", f"it has the order {has}, ahead of {order} here: {why}"
    if has < order:
        return "target-differs", f"it has the order {has}, behind {order}, which is recorded as applied"
    if found.bundle != recorded.bundle:
        return kind, f"it has {shown(found.bundle)}, and {shown(recorded.bundle)} is recorded"
    if not found.complete:
        return kind, "its last change was interrupted and not completed" if recorded.bundle else "its content is there"
    if recorded.bundle and not found.verified:
        return kind, f"its content is not {shown(recorded.bundle)}, byte for byte: somebody else changed it"
    return None


def shown(bundle: str) -> str:
    return f"bundle {bundle[:12]}" if bundle else "nothing"
