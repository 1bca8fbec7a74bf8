"""Which ref a GitRepo follows, and which commit an answer gives it. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from repos.semver import highest_tag, parse_semver_range

HEAD = "HEAD"
BRANCHES = "refs/heads/"
TAGS = "refs/tags/"
ALL_TAGS = "refs/tags/*"


class Follower(Protocol):
    """The part of a GitRepo's spec that says what it follows."""

    @property
    def branch(self) -> str: ...
    @property
    def tag(self) -> str: ...
    @property
    def semver(self) -> str: ...
    @property
    def commit(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Head:
    """A full ref name and the commit that it stands for (a tag is peeled)."""

    ref: str
    commit: str


def followed_ref(spec: Follower) -> str:
    """What a poll must ask for: a full ref name, `HEAD`, `refs/tags/*` for a semver range, or "" for a pinned commit."""
    if spec.commit:
        return ""
    if spec.semver:
        return ALL_TAGS
    if spec.tag:
        return TAGS + spec.tag
    return BRANCHES + spec.branch if spec.branch else HEAD


def was_asked(spec: Follower, asked: Iterable[str]) -> bool:
    """Whether an answer to `asked` can say anything about this follower: a ref is absent only if it was asked for."""
    return followed_ref(spec) in set(asked)


def head_of(spec: Follower, refs: Mapping[str, str]) -> Head | None:
    """The head that `refs` ({full name: commit}) gives the follower, None if what it follows is not there."""
    if spec.commit:
        return Head("", spec.commit)
    name = followed_ref(spec)
    if name == ALL_TAGS:
        tags = [ref.removeprefix(TAGS) for ref in refs if ref.startswith(TAGS)]
        tag = highest_tag(parse_semver_range(spec.semver), tags)
        if tag is None:
            return None
        name = TAGS + tag
    commit = refs.get(name)
    return Head(name, commit) if commit else None


def missing_sentence(spec: Follower) -> str:
    """What to tell a user whose ref is not at the remote."""
    if spec.semver:
        return f"no tag of the repository is in the range {spec.semver}: push a tag or change semver"
    if spec.tag:
        return f"tag {spec.tag} does not exist in the repository: push it or change tag"
    if spec.branch:
        return f"branch {spec.branch} does not exist in the repository: push it or change branch"
    return "the repository has no HEAD yet: push a first commit or name a branch"
