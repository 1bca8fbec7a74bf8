"""What servers answer in Git's own protocol, versions 0 to 3, as byte-exact answers."""

import pytest

from tests.core import A, B, C, D
from tests.workers.poll.conformance.answers import (
    ALL,
    DELIMITER,
    DEV,
    FLUSH,
    GIT_V0,
    GITEA,
    GITHUB,
    GITLAB,
    GOOD,
    HEAD,
    JGIT,
    LONG,
    MAIN,
    OLD_GIT,
    PLAIN,
    SERVICE,
    TAGS,
    discovery,
    listed,
    pkt,
    refs_of,
    result,
    v0,
    v2,
)
from tests.workers.poll.conformance.case import Case, check_sent, conclusion, git_says
from tests.workers.poll.conformance.conftest import Ask, Play
from tests.workers.poll.conformance.stand_in import by_method, stand_in

V2 = (discovery(),)
LATER = ("GET POST", "POST", "POST")
MANY = {f"refs/tags/v{number}": f"{number:040x}" for number in range(1, 5006)}
SHA256 = (*GITHUB[:-1], "object-format=sha256")
SHA256_V0 = GIT_V0.replace("sha1", "sha256")
KEPT = [(HEAD, A), (MAIN, A), (DEV, B), ("refs/tags/v1", C), ("refs/tags/v1^{}", A)]

VERSIONS = [
    Case("version 2 behind the service", V2, (GOOD,), says=[PLAIN] * 3, sent=LATER),
    Case("version 2 without the service", (discovery(v2(*JGIT, service=False)),), (GOOD,), says=[PLAIN] * 3, sent=LATER,
         object_format=""),
    Case("version 2 before object formats", (discovery(v2(*OLD_GIT)),), (GOOD,), says=[PLAIN] * 2, sent=LATER[:2],
         object_format=""),
    Case("version 2 as GitLab says it", (discovery(v2(*GITLAB)),), (GOOD,), says=[PLAIN] * 2, sent=LATER[:2]),
    Case("version 2 as Gitea says it", (discovery(v2(*GITEA)),), (GOOD,), says=[PLAIN] * 2, sent=LATER[:2]),
    Case("version 2 without ls-refs", (discovery(v2("fetch=shallow")),), (GOOD,), says=["not-git"], sent=["GET"]),
    Case("version 2 of another hash", (discovery(v2("ls-refs", "object-format=sha3")),), (GOOD,), says=["not-git"],
         sent=["GET"]),
    Case("version 3", (discovery(SERVICE + pkt("version 3\n") + FLUSH),), (GOOD,), says=["not-git"], sent=["GET"]),
    Case("version 1", (discovery(v0(KEPT, first=pkt("version 1\n"))),), says=[PLAIN] * 2, sent=["GET", "GET"]),
    Case("version 0", (discovery(v0(KEPT)),), says=[PLAIN] * 2, sent=["GET", "GET"]),
    Case("version 0, everything asked", (discovery(v0(KEPT)),), asked=(HEAD, MAIN, DEV, TAGS), sent=["GET"],
         says=[{HEAD: A, MAIN: A, DEV: B, "refs/tags/v1": A}]),
    Case("version 0 of a shallow repository", sent=["GET"], says=[PLAIN],
         get=(discovery(v0(KEPT)[:-4] + pkt(f"shallow {D}\n") + FLUSH),)),
    Case("version 0, empty", (discovery(v0([])),), asked=(HEAD, MAIN), says=[{}], sent=["GET"]),
    Case("version 0, without a line", (discovery(SERVICE + FLUSH),), asked=(HEAD, MAIN), says=[{}], sent=["GET"]),
    Case("version 0, SHA-256", (discovery(v0([(HEAD, LONG), (MAIN, LONG)], SHA256_V0)),), says=[{MAIN: LONG}],
         sent=["GET"]),
    Case("version 0 that ends in the middle", (discovery(v0(KEPT)[:-30]),), says=["network"], sent=["GET"]),
    Case("version 0 without its flush", (discovery(v0(KEPT)[:-4]),), says=["network"], sent=["GET"]),
    Case("version 2 without its flush", (discovery(v2()[:-4]),), says=["network"], sent=["GET"]),
    Case("only the service", (discovery(pkt("# service=git-upload-pack\n")),), says=["network"], sent=["GET"]),
    Case("another service", (discovery(pkt("# service=git-receive-pack\n") + FLUSH + v2(service=False)),),
         says=["not-git"], sent=["GET"]),
    Case("an advertisement of nothing", (discovery(b""),), says=["network"], sent=["GET"]),
    Case("version 2 withdrawn", (discovery(), discovery(v0(KEPT))), (GOOD, result(b"", status="400 Bad Request")),
         says=[PLAIN] * 3, sent=["GET POST", "POST GET", "GET"]),
    Case("version 2 withdrawn with a word", (discovery(), discovery(v0(KEPT))), (GOOD, result(pkt("ERR expected a want"))),
         says=[PLAIN] * 3, sent=["GET POST", "POST GET", "GET"]),
    # It may be the old server that fails at a question of version 2, or the same one that is out of order.
    Case("version 2 withdrawn with a failure", (discovery(), discovery(v0(KEPT))), (GOOD, result(b"", status="500 Oops")),
         says=[PLAIN, "server", PLAIN], sent=["GET POST", "POST", "GET"]),
    Case("version 2 withdrawn and given again", (discovery(), discovery(v0(KEPT)), discovery()),
         (GOOD, result(b"", status="400 Bad Request"), GOOD), says=[PLAIN] * 4,
         sent=["GET POST", "POST GET", "GET POST", "POST"]),
]  # fmt: skip

LISTS = [
    Case("a prefix is only a prefix", V2, (result(refs_of({"refs/heads/main-2": B, MAIN: A, "refs/heads/main.old": C})),),
         says=[PLAIN]),
    Case("nothing but longer names", V2, (result(refs_of({"refs/heads/main-2": B})),), says=[{}]),
    Case("more than was asked for", V2, (result(ALL),), says=[PLAIN]),
    Case("several refs", V2, (result(ALL),), asked=(HEAD, MAIN, DEV), says=[{HEAD: A, MAIN: A, DEV: B}]),
    Case("a branch that is not there", V2, (result(ALL),), asked=(MAIN, "refs/heads/gone"), says=[PLAIN]),
    Case("an annotated tag", V2, (result(listed(f"{C} refs/tags/v1 peeled:{A}")),), asked=("refs/tags/v1",),
         says=[{"refs/tags/v1": A}]),
    Case("tags of both kinds", V2, (result(listed(f"{C} refs/tags/v1 peeled:{A}", f"{B} refs/tags/v2")),), asked=(TAGS,),
         says=[{"refs/tags/v1": A, "refs/tags/v2": B}]),
    Case("a symbolic HEAD", V2, (result(listed(f"{A} HEAD symref-target:refs/heads/main", f"{A} {MAIN}")),),
         asked=(HEAD, MAIN), says=[{HEAD: A, MAIN: A}]),
    Case("a detached HEAD", V2, (result(listed(f"{B} HEAD", f"{A} {MAIN}")),), asked=(HEAD, MAIN),
         says=[{HEAD: B, MAIN: A}]),
    Case("a HEAD that is not born", V2, (result(listed("unborn HEAD symref-target:refs/heads/main")),),
         asked=(HEAD, MAIN), says=[{}]),
    Case("a HEAD that is not born beside a branch", V2,
         (result(listed("unborn HEAD symref-target:refs/heads/gone", f"{A} {MAIN}")),), asked=(HEAD, MAIN), says=[PLAIN]),
    Case("an empty repository", V2, (result(FLUSH),), asked=(HEAD, MAIN), says=[{}, {}], sent=LATER[:2]),
    Case("SHA-256", (discovery(v2(*SHA256)),), (result(listed(f"{LONG} {MAIN}")),), says=[{MAIN: LONG}] * 2,
         sent=LATER[:2], object_format="sha256"),
    Case("thousands of tags", V2, (result(refs_of(MANY)),), asked=(TAGS,), says=[MANY], max_refs=10_000),
    Case("more tags than are allowed", V2, (result(refs_of(MANY)),), asked=(TAGS,), says=["limit"], git=False),
    Case("a ref twice", V2, (result(listed(f"{A} {MAIN}", f"{B} {MAIN}")),), says=[{MAIN: B}]),
    Case("lines without ends", V2, (result(pkt(f"{A} {MAIN}") + FLUSH),), says=[PLAIN]),
    Case("words that nobody knows", V2, (result(listed(f"{A} {MAIN} colour:green")),), says=[PLAIN]),
    Case("a name beyond ASCII", V2, (result(refs_of({"refs/heads/größe": A})),), asked=("refs/heads/größe",),
         says=[{"refs/heads/größe": A}]),
    Case("a name that is no UTF-8", V2, (result(listed(f"{B} refs/tags/v1", A.encode() + b" refs/tags/\xff\xfe")),),
         asked=(TAGS,), says=[{"refs/tags/v1": B, "refs/tags/\ufffd\ufffd": A}]),
    Case("ids in capitals", V2, (result(listed(f"{A.upper()} {MAIN}")),), says=["not-git"], git=False),
]  # fmt: skip

NONSENSE = [
    Case("no hexadecimal id", V2, (result(listed(f"{'g' * 40} {MAIN}")),), says=["not-git"]),
    Case("an id too short", V2, (result(listed(f"{A[:39]} {MAIN}")),), says=["not-git"]),
    Case("an id too long", V2, (result(listed(f"{A}0 {MAIN}")),), says=["not-git"]),
    Case("an id of the other hash", V2, (result(listed(f"{LONG} {MAIN}")),), says=["not-git"]),
    Case("a short id where long ones are", (discovery(v2(*SHA256)),), (result(listed(f"{A} {MAIN}")),), says=["not-git"],
         object_format="sha256"),
    Case("a peeled id that is none", V2, (result(listed(f"{A} refs/tags/v1 peeled:{'z' * 40}")),), asked=(TAGS,),
         says=["not-git"]),
    Case("no name", V2, (result(listed(A)),), says=["not-git"]),
    Case("the id alone and a space", V2, (result(listed(f"{A} ")),), says=["not-git"], git=False),
    Case("an empty line", V2, (result(b"0004" + FLUSH),), says=["not-git"]),
    Case("a length below four", V2, (result(b"0003" + refs_of(PLAIN)),), says=["not-git"]),
    Case("a length that is no number", V2, (result(b"zzzz" + refs_of(PLAIN)),), says=["not-git"]),
    Case("a length in Python's spelling", V2, (result(b"0x3d" + f"{A} {MAIN}\n".encode().ljust(57) + FLUSH),),
         says=["not-git"]),
    Case("a length beyond the answer", V2, (result(b"ffff" + refs_of(PLAIN)),), says=["network"]),
    Case("the answer ends in the middle of a line", V2, (result(refs_of(PLAIN)[:-20]),), says=["network"]),
    Case("the answer ends before its flush", V2, (result(refs_of(PLAIN)[:-4]),), says=["network"]),
    Case("the answer ends between two lines", V2, (result(pkt(f"{A} {MAIN}\n")),), says=["network"]),
    Case("no answer at all", V2, (result(b""),), says=["network"]),
    Case("a delimiter instead of a flush", V2, (result(refs_of(PLAIN)[:-4] + DELIMITER),), says=["not-git"]),
    Case("a delimiter inside", V2, (result(DELIMITER + refs_of(PLAIN)),), says=["not-git"]),
    Case("an end of response instead of a flush", V2, (result(refs_of(PLAIN)[:-4] + b"0002"),), says=["not-git"]),
    Case("an advertisement that breaks off inside a length", (discovery(v2()[:-2]),), says=["network"], sent=["GET"]),
    Case("an advertisement of nonsense", (discovery(b"hello, world\n"),), says=["not-git"], sent=["GET"]),
    Case("version 0 with a bad id", (discovery(v0([(MAIN, "g" * 40)])),), says=["not-git"], sent=["GET"]),
    Case("version 0 with ids of the other hash", (discovery(v0([(MAIN, LONG)])),), says=["not-git"], sent=["GET"]),
]  # fmt: skip


@pytest.mark.parametrize("case", VERSIONS, ids=lambda case: case.name)
def test_versions(case: Case, play: Play) -> None:
    play(case)


@pytest.mark.parametrize("case", LISTS, ids=lambda case: case.name)
def test_lists_of_refs(case: Case, play: Play) -> None:
    play(case)


@pytest.mark.parametrize("case", NONSENSE, ids=lambda case: case.name)
def test_nonsense_is_never_a_deleted_branch(case: Case, play: Play) -> None:
    play(case)


def test_another_hash_between_two_polls(ask: Ask) -> None:
    """The repository was made anew: ids of the new length are a surprise, and the server is asked what it speaks now."""
    long = result(refs_of({MAIN: LONG}))
    with stand_in(by_method(GET=[discovery(), discovery(v2(*SHA256))], POST=[GOOD, long])) as server:
        assert ask(server.url()).refs == PLAIN
        server.take()
        assert ask(server.url()).refs == {MAIN: LONG}
        first, *again = server.take()
        check_sent([first], "POST", [MAIN])
        check_sent(again, "GET POST", [MAIN], "sha256")
        assert ask(server.url()).refs == {MAIN: LONG}
        check_sent(server.take(), "POST", [MAIN], "sha256")


@pytest.mark.parametrize("tail", [b"0000", b"hello", refs_of({DEV: B})], ids=["a flush", "a word", "a second list"])
def test_what_follows_the_end_is_not_believed(tail: bytes, ask: Ask) -> None:
    with stand_in(by_method(GET=V2, POST=[result(refs_of(PLAIN) + tail)])) as server:
        answer = ask(server.url(), MAIN, DEV)

    assert answer.refs == PLAIN if answer.error is None else answer.error.cause == "not-git"


@pytest.mark.parametrize("character", ["\0", "\x01", "\x1b", "\n", "\t", "\x7f", "\r"], ids=repr)
def test_a_name_that_git_forbids_goes_no_further(character: str, ask: Ask) -> None:
    """The good names beside it may be believed or not; the bad one never gets as far as a database or a screen."""
    bad = f"refs/tags/v1{character}x"
    with stand_in(by_method(GET=V2, POST=[result(refs_of({"refs/tags/v1": A, bad: B}))])) as server:
        answer = ask(server.url(), TAGS)

    assert not any(ord(found) < 32 or ord(found) == 127 for name in answer.refs for found in name)
    assert answer.refs == {"refs/tags/v1": A} if answer.error is None else answer.error.cause == "not-git"


@pytest.mark.parametrize(
    ("word", "cause"), [("Repository not found.", "not-found"), ("access denied or repository not exported", "git")]
)
@pytest.mark.parametrize("where", ["GET", "POST"])
@pytest.mark.parametrize("end", [b"", FLUSH], ids=["and ends", "and a flush"])
def test_what_a_server_says_for_itself(word: str, cause: str, where: str, end: bytes, ask: Ask) -> None:
    """git's own servers end behind such a word, without a flush."""
    error = pkt(f"ERR {word}\n") + end
    get = [discovery(SERVICE + error)] if where == "GET" else V2
    with stand_in(by_method(GET=get, POST=[result(error)])) as server:
        answer = ask(server.url())

        assert conclusion(answer, [MAIN]) == cause
        assert server.methods == (["GET"] if where == "GET" else ["GET", "POST"])
        assert git_says(server.url(), [MAIN]) is None


@pytest.mark.parametrize("end", [b"", FLUSH], ids=["and ends", "and a flush"])
def test_what_a_server_says_for_itself_is_fit_to_be_shown(end: bytes, ask: Ask) -> None:
    said = pkt(b"ERR \x1b[31mhello\0\x07" + b"x" * 5000) + end
    with stand_in(by_method(GET=V2, POST=[result(said)])) as server:
        answer = ask(server.url())

    assert answer.error is not None and answer.error.cause == "git"
    assert answer.error.message.isprintable() and len(answer.error.message) < 1500
