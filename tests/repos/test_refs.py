"""Which ref is followed, and which commit an answer gives."""

from dataclasses import dataclass

import pytest

from repos.refs import Head, followed_ref, head_of, missing_sentence, was_asked
from tests.core import A, B, C


@dataclass
class Spec:
    branch: str = ""
    tag: str = ""
    semver: str = ""
    commit: str = ""


REFS = {
    "HEAD": A,
    "refs/heads/main": A,
    "refs/heads/main-2": B,
    "refs/heads/release/1": C,
    "refs/tags/v1.0.0": A,
    "refs/tags/v1.4.0": B,
    "refs/tags/v2.0.0": C,
    "refs/tags/main": C,
}


@pytest.mark.parametrize(
    ("spec", "ref", "head"),
    [
        pytest.param(Spec(), "HEAD", Head("HEAD", A), id="the remote's HEAD"),
        pytest.param(Spec(branch="main"), "refs/heads/main", Head("refs/heads/main", A), id="a branch, not its prefix"),
        pytest.param(Spec(branch="release/1"), "refs/heads/release/1", Head("refs/heads/release/1", C), id="a folder"),
        pytest.param(Spec(tag="main"), "refs/tags/main", Head("refs/tags/main", C), id="a tag named as a branch"),
        pytest.param(Spec(semver=">=1.0.0, <2.0.0"), "refs/tags/*", Head("refs/tags/v1.4.0", B), id="a range"),
        pytest.param(Spec(semver=">=9.0.0"), "refs/tags/*", None, id="a range without a tag"),
        pytest.param(Spec(branch="ma"), "refs/heads/ma", None, id="a prefix is no branch"),
        pytest.param(Spec(tag="v3"), "refs/tags/v3", None, id="a missing tag"),
        pytest.param(Spec(commit=C), "", Head("", C), id="a pinned commit asks nobody"),
    ],
)
def test_heads(spec: Spec, ref: str, head: Head | None) -> None:
    assert followed_ref(spec) == ref
    assert head_of(spec, REFS) == head


def test_a_ref_is_absent_only_if_it_was_asked_for() -> None:
    asked = ["refs/heads/main", "refs/tags/*"]
    assert was_asked(Spec(branch="main"), asked)
    assert was_asked(Spec(semver="*"), asked)
    assert not was_asked(Spec(branch="dev"), asked)
    assert not was_asked(Spec(), asked)
    assert not was_asked(Spec(branch="mai"), asked)


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        pytest.param(Spec(branch="dev"), "branch dev", id="branch"),
        pytest.param(Spec(tag="v9"), "tag v9", id="tag"),
        pytest.param(Spec(semver=">=9.0.0"), ">=9.0.0", id="range"),
        pytest.param(Spec(), "HEAD", id="head"),
    ],
)
def test_the_sentence_names_what_is_missing_and_what_to_do(spec: Spec, word: str) -> None:
    assert word in missing_sentence(spec)
    assert "push" in missing_sentence(spec)
