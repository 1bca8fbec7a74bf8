"""HTTP itself: statuses, types, patience, lengths, encodings, and answers that are meant to hurt."""

import gzip
import time
import zlib
from collections.abc import Sequence
from email.utils import formatdate

import pytest

from tests.core import A, B
from tests.workers.poll.conformance.answers import (
    ADVERTISEMENT,
    GOOD,
    HEAD,
    MAIN,
    PLAIN,
    RESULT,
    TAGS,
    chunked,
    discovery,
    http,
    listed,
    pkt,
    refs_of,
    result,
    status,
    v0,
    v2,
)
from tests.workers.poll.conformance.case import Case, conclusion
from tests.workers.poll.conformance.conftest import BOTH_WAYS, Ask, Play
from tests.workers.poll.conformance.stand_in import (
    Close,
    Drip,
    Endless,
    Hang,
    Pause,
    Reply,
    Reset,
    Step,
    by_method,
    stand_in,
)

pytestmark = BOTH_WAYS
V2 = (discovery(),)
LOGIN = b"<!DOCTYPE html><html><body>Please sign in</body></html>"
STATUSES = [
    ("400 Bad Request", "not-git"),
    ("401 Unauthorized", "authentication"),
    ("402 Payment Required", "not-git"),
    ("403 Forbidden", "refused"),
    ("404 Not Found", "not-found"),
    ("405 Method Not Allowed", "not-git"),
    ("410 Gone", "not-found"),
    ("418 I'm a teapot", "not-git"),
    ("429 Too Many Requests", "rate-limit"),
    ("451 Unavailable For Legal Reasons", "not-git"),
    ("500 Internal Server Error", "server"),
    ("501 Not Implemented", "server"),
    ("502 Bad Gateway", "server"),
    ("503 Service Unavailable", "server"),
    ("504 Gateway Timeout", "server"),
    ("599 Whatever", "server"),
]
# After these there is no need to ask anew: the server would say the same again.
CLEAR = {"rate-limit", "server"}

ANSWERS = [
    Case("a login page", (status("200 OK", body=LOGIN, kind="text/html; charset=utf-8"),), says=["not-git"], sent=["GET"],
         git=False),
    Case("a login page with Azure's 203", (status("203 Non-Authoritative Information", body=LOGIN, kind="text/html"),),
         says=["not-git"], sent=["GET"], git=False),
    Case("a login page that says it is Git", ((http(LOGIN, ADVERTISEMENT),),), says=["not-git"],
         sent=["GET"]),
    Case("a login page after a good poll", (discovery(), status("200 OK", body=LOGIN, kind="text/html")),
         (GOOD, status("200 OK", body=LOGIN, kind="text/html")), says=[PLAIN, "not-git", "not-git"],
         sent=["GET POST", "POST GET", "GET"]),
    Case("a type that is no text", ((http(v2(), "text/pl\u00e4in"),),), says=["not-git"], sent=["GET"], git=False),
    Case("the end of a list, and no service before it", (discovery(b"0000"),), says=["not-git"], sent=["GET"]),
    Case("no content", ((b"HTTP/1.1 204 No Content\r\n\r\n",),), says=["not-git"], sent=["GET"], git=False),
    Case("nothing, with a good status", (status("200 OK", body=b"", kind="text/plain"),), says=["not-git"], sent=["GET"],
         git=False),
    Case("a part of the answer", (discovery(status="206 Partial Content"),), (GOOD,), says=["not-git"], sent=["GET"],
         git=False),
    Case("Git in plain text", ((http(v2(), "text/plain"),),), (GOOD,), says=["not-git"], sent=["GET"], git=False),
    Case("Git without a type", ((http(v2()),),), (GOOD,), says=["not-git"], sent=["GET"], git=False),
    # Here git believes more than we do: what has the wrong type, and what breaks off behind its flush.
    Case("refs in plain text", V2, ((http(refs_of(PLAIN), "text/plain"),),), says=["not-git"], git=False),
    Case("refs under the other type", V2, ((http(refs_of(PLAIN), ADVERTISEMENT),),), says=["not-git"], git=False),
    Case("a type in capitals with a charset", ((http(v2(), ADVERTISEMENT.title() + "; charset=utf-8"),),), (GOOD,),
         says=[PLAIN], git=False),
    Case("early hints first", ((b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", *discovery()),),
         ((b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 102 Processing\r\n\r\n", *GOOD),), says=[PLAIN]),
    Case("chunks", ((chunked(v2(), ADVERTISEMENT),),), ((chunked(refs_of(PLAIN), RESULT),),), says=[PLAIN] * 2,
         sent=["GET POST", "POST"]),
    Case("chunks without an end", V2, ((chunked(refs_of(PLAIN), RESULT, last=b""), Close()),), says=["network"],
         git=False),
    Case("chunks of nonsense", V2, ((chunked(refs_of(PLAIN)[:14], RESULT, last=b"hello\r\n"), Close()),),
         says=["network"]),
    Case("HTTP/1.0 until the end", ((f"HTTP/1.0 200 OK\r\nContent-Type: {ADVERTISEMENT}\r\n\r\n".encode() + v2(), Close()),),
         ((f"HTTP/1.0 200 OK\r\nContent-Type: {RESULT}\r\n\r\n".encode() + refs_of(PLAIN), Close()),), says=[PLAIN] * 2,
         sent=["GET POST", "POST"]),
    Case("HTTP/1.0 that breaks off", V2,
         ((f"HTTP/1.0 200 OK\r\nContent-Type: {RESULT}\r\n\r\n".encode() + refs_of(PLAIN)[:-9], Close()),),
         says=["network"]),
    Case("less than it promised", V2, (result(refs_of(PLAIN), Close(), length=1000),), says=["network"], git=False),
    # The rest is no answer to anybody.
    Case("less promised than there is", V2, (result(refs_of(PLAIN), Close(), length=30),), says=["network"]),
    Case("no number for a length", V2, ((f"HTTP/1.1 200 OK\r\nContent-Type: {RESULT}\r\nContent-Length: many\r\n\r\n".encode(),
         Close()),), says=["not-git"]),
    Case("not HTTP", ((b"220 mail.example.com ESMTP\r\n", Close()),), says=["not-git"], sent=["GET"]),
    Case("nothing", ((Close(),),), says=["network"], sent=["GET"]),
    Case("a reset", ((Reset(),),), says=["network"], sent=["GET"]),
    Case("a reset in the middle", V2, ((*result(refs_of(PLAIN)[:9], length=1000), Reset()),), says=["network"]),
    Case("gzip, where it was asked for", (discovery(gzip.compress(v2()), headers=["Content-Encoding: gzip"]),), (GOOD,),
         says=[PLAIN]),
    # Lists of refs are small, and asked for as they are.
    Case("gzip, where it was not asked for", V2,
         (result(gzip.compress(refs_of(PLAIN)), headers=["Content-Encoding: gzip"]),), says=["not-git"], git=False),
    Case("an encoding that nobody knows", (discovery(headers=["Content-Encoding: rot13"]),), says=["not-git"],
         sent=["GET"]),
    Case("cookies", (discovery(headers=["Set-Cookie: session=1; Path=/"]),),
         (result(refs_of(PLAIN), headers=["Set-Cookie: session=2; Path=/"]),), says=[PLAIN] * 2, sent=["GET POST", "POST"]),
    Case("many headers", (discovery(headers=[f"X-{n}: {'y' * 80}" for n in range(90)]),), (GOOD,), says=[PLAIN]),
    Case("HTTP/2 to those who did not ask", ((b"HTTP/2 200\r\ncontent-type: text/html\r\ncontent-length: 0\r\n\r\n",
         Close()),), says=["not-git"], sent=["GET"], git=False),
]  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS, ids=lambda case: case.name)
def test_answers(case: Case, play: Play) -> None:
    play(case)


@pytest.mark.parametrize(("line", "cause"), STATUSES, ids=[line for line, _ in STATUSES])
def test_statuses(line: str, cause: str, play: Play) -> None:
    """At the first question, at the second, and at the one that follows a good poll."""
    said = status(line)
    play(Case(line, (said,), says=[cause], sent=["GET"]))
    play(Case(line, V2, (said,), says=[cause], git=cause != "server"))
    after = "POST" if cause in CLEAR else "POST GET POST"
    play(Case(line, V2, (GOOD, said), says=[PLAIN, cause], sent=["GET POST", after], git=False))


@pytest.mark.parametrize(
    ("line", "cause"), [("429 Too Many Requests", "rate-limit"), ("503 Service Unavailable", "server")]
)
@pytest.mark.parametrize(
    ("word", "least", "most"),
    [
        ("120", 120, 120),
        ("date", 80, 90),
        # Patience is bounded where it is stored (LONGEST_PATIENCE_SECONDS).
        ("86400", 3600, 86400),
        ("0", None, None),
        ("a date that is over", None, None),
        ("", None, None),
        ("soon", None, None),
        ("-5", None, None),
    ],
)
def test_patience(line: str, cause: str, word: str, least: float | None, most: float | None, ask: Ask) -> None:
    """Retry-After in seconds and as a date; what can't be read is as good as none."""
    dates = {"date": formatdate(time.time() + 90, usegmt=True), "a date that is over": formatdate(0, usegmt=True)}
    headers = [f"Retry-After: {dates.get(word, word)}"] if word else []
    for get, post in (([status(line, *headers)], []), (V2, [status(line, *headers)])):
        with stand_in(by_method(GET=get, POST=post)) as server:
            error = ask(server.url()).error

            assert error is not None and error.cause == cause
            asked = error.retry_after_seconds
            assert (asked is None) == (least is None)
            assert asked is None or least is None or most is None or least <= asked <= most
            assert len(server.sent) == (1 if not post else 2)


@pytest.mark.parametrize(
    ("steps", "more"),
    [((Close(),), []), ((Reset(),), []), ((Hang(),), []), ((), ["Content-Encoding: zstd"])],
    ids=["cut off", "reset", "hangs", "an encoding that nobody knows"],
)
def test_patience_counts_whatever_becomes_of_the_page_that_comes_with_it(
    steps: tuple[Step, ...], more: list[str], ask: Ask
) -> None:
    line, headers = "503 Service Unavailable", ["Retry-After: 120", *more]
    said = http(b"busy\n", "text/plain", status=line, length=500 if steps else None, headers=headers)
    with stand_in(by_method(GET=[(said, *steps)])) as server:
        error = ask(server.url(), seconds=1.0).error

    assert error is not None and (error.cause, error.retry_after_seconds) == ("server", 120)


def test_one_who_asks_for_patience_is_not_asked_again_at_once(ask: Ask) -> None:
    """Not even to find out what it speaks now."""
    with stand_in(by_method(GET=V2, POST=[GOOD, status("429 Too Many Requests", "Retry-After: 7"), GOOD])) as server:
        assert ask(server.url()).refs == PLAIN
        server.take()
        assert conclusion(ask(server.url()), [MAIN]) == "rate-limit"
        assert server.methods == ["POST"]
        server.take()
        assert ask(server.url()).refs == PLAIN
        assert server.methods == ["POST"]


# -- answers without end, and those that take their time ---------------------------------------------------------------

ENDLESS: list[tuple[str, str, Sequence[Reply], Sequence[Reply]]] = [
    ("advertisement", "limit", [(http(v2()[:-4], ADVERTISEMENT, length=1 << 50), Endless(pkt("more=words\n") * 500))], []),
    ("refs", "limit", V2, [(http(b"", RESULT, length=1 << 50), Endless(pkt(f"{A} refs/tags/v1\n") * 500))]),
    ("refs in chunks", "limit", V2, [(chunked(b"", RESULT, last=b""), Endless(b"fa0\r\n" + b"0032" * 1000 + b"\r\n"))]),
    ("version 0", "limit",
     [(http(v0([(HEAD, A)])[:-4], ADVERTISEMENT, length=1 << 50), Endless(pkt(f"{A} {MAIN}\n") * 500))], []),
    ("a login page", "not-git", [(http(b"<html>", "text/html", length=1 << 50), Endless(b"please sign in " * 500))], []),
    ("a failure", "server", [(http(b"", "text/plain", status="500 Oops", length=1 << 50), Endless(b"oops " * 500))], []),
    ("a refusal", "refused", [(http(b"", "text/plain", status="403 No", length=1 << 50), Endless(b"no " * 500))], []),
    ("headers", "not-git", [(b"HTTP/1.1 200 OK\r\n", Endless(b"X-More: and more\r\n" * 500))], []),
    ("one header", "not-git", [(b"HTTP/1.1 200 OK\r\nX-Long: ", Endless(b"and more " * 1000))], []),
    ("hints", "network", [(Endless(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100),)], []),
]  # fmt: skip


@pytest.mark.parametrize(("cause", "get", "post"), [row[1:] for row in ENDLESS], ids=[row[0] for row in ENDLESS])
def test_an_answer_without_end_is_cut_off(cause: str, get: Sequence[Reply], post: Sequence[Reply], ask: Ask) -> None:
    """By a number of bytes and not by the deadline, which is far away."""
    with stand_in(by_method(GET=get, POST=post)) as server:
        answer = ask(server.url(), TAGS, seconds=60.0, max_refs=1000)

        assert conclusion(answer, [TAGS]) == cause
        assert server.given < 16 << 20
        assert answer.seconds < 60


@pytest.mark.parametrize(("where", "cause"), [("GET", "limit"), ("POST", "not-git")])
def test_a_little_that_unpacks_to_much_is_cut_off(where: str, cause: str, ask: Ask) -> None:
    """16 MB in a few kilobytes: no more of it is unpacked than is allowed, and nothing where nobody asked for packing."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    line = pkt(f"{A} refs/tags/v1\n") * (1 << 14)
    bomb = packer.compress(v0([(HEAD, A)])[:-4]) + b"".join(packer.compress(line) for _ in range(20)) + packer.flush()
    packed = ["Content-Encoding: gzip"]
    get = [discovery(bomb, headers=packed)] if where == "GET" else V2
    with stand_in(by_method(GET=get, POST=[result(bomb, headers=packed)])) as server:
        assert conclusion(ask(server.url(), TAGS, seconds=60.0), [TAGS]) == cause


def test_many_layers_of_packing_are_not_unpacked(ask: Ask) -> None:
    packed = refs_of(PLAIN)
    for _ in range(30):
        packed = gzip.compress(packed)
    headers = [f"Content-Encoding: {', '.join(['gzip'] * 30)}"]
    with stand_in(by_method(GET=V2, POST=[result(packed, headers=headers)])) as server:
        assert ask(server.url()).error is not None


SLOW: list[tuple[str, Sequence[Reply], Sequence[Reply]]] = [
    ("says nothing", [(Hang(),)], []),
    ("stops inside its headers", [(b"HTTP/1.1 200 OK\r\nContent-Type: ", Hang())], []),
    ("stops inside its answer", V2, [(http(refs_of(PLAIN)[:10], RESULT, length=1000), Hang())]),
    ("drips headers", [(Drip(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000, 0.05),)], []),
    ("drips refs", V2, [(http(b"", RESULT, length=70), Drip(refs_of(PLAIN), 0.3))]),
    ("is slow twice", [(Pause(0.8), *discovery())], [(Pause(0.8), *GOOD)]),
]  # fmt: skip


@pytest.mark.parametrize(("get", "post"), [row[1:] for row in SLOW], ids=[row[0] for row in SLOW])
def test_one_deadline_for_all_of_it(get: Sequence[Reply], post: Sequence[Reply], ask: Ask) -> None:
    with stand_in(by_method(GET=get, POST=post)) as server:
        answer = ask(server.url(), seconds=1.2)

    assert conclusion(answer, [MAIN]) == "timeout"
    assert answer.error is not None and "GIT_TIMEOUT" in answer.error.message
    assert 1.0 < answer.seconds < 6


def test_one_that_is_slow_and_in_time(ask: Ask) -> None:
    steps: list[Step] = [Pause(0.3), Drip(http(refs_of(PLAIN), RESULT), 0.002)]
    with stand_in(by_method(GET=[(Pause(0.3), *discovery())], POST=[tuple(steps)])) as server:
        assert ask(server.url()).refs == PLAIN


def test_the_remote_answers_again_after_every_kind_of_trouble(ask: Ask) -> None:
    """Nothing of a failed poll is left to spoil the next one."""
    troubles: list[Reply] = [
        (Close(),), (Reset(),), result(refs_of(PLAIN)[:-4]), result(listed("hello")), status("401 Unauthorized"),
        status("500 Oops"), (http(refs_of({MAIN: B})[:20], RESULT, length=500), Close()), status("404 Not Found"),
        (http(b"", RESULT, length=1 << 50), Endless(pkt(f"{A} refs/tags/v1\n") * 500)),
    ]  # fmt: skip
    for trouble in troubles:
        with stand_in(by_method(GET=V2, POST=[GOOD])) as server:
            assert ask(server.url()).refs == PLAIN
            server.script = by_method(GET=[trouble], POST=[trouble])
            assert ask(server.url()).error is not None
            server.script = by_method(GET=V2, POST=[GOOD])
            assert ask(server.url()).refs == PLAIN
