"""What is kept between polls: connections, and what a remote was heard to speak."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.core import A, B
from tests.workers.poll.conformance.answers import (
    DEV,
    GOOD,
    HEAD,
    MAIN,
    PLAIN,
    RESULT,
    discovery,
    http,
    refs_of,
    result,
    status,
    v0,
)
from tests.workers.poll.conformance.case import check_discovery, check_ls_refs, collect, conclusion, git_says, request
from tests.workers.poll.conformance.conftest import BOTH_WAYS, Ask
from tests.workers.poll.conformance.stand_in import (
    Close,
    Hang,
    Pause,
    Reply,
    Reset,
    Script,
    Sent,
    Step,
    by_method,
    stand_in,
)
from workers.poll import transfer
from workers.poll.engine import Engine

pytestmark = BOTH_WAYS
V2 = (discovery(),)


def good() -> Script:
    return by_method(GET=V2, POST=[GOOD])


def test_polls_one_after_the_other_share_one_connection_and_one_discovery(ask: Ask) -> None:
    with stand_in(good()) as server:
        for _ in range(20):
            assert ask(server.url()).refs == PLAIN

        assert server.connections == 1
        first, *others = server.sent
        check_discovery(first)
        assert len(others) == 20
        for sent in others:
            check_ls_refs(sent, [MAIN])


def test_remotes_of_one_host_share_its_connections_and_not_what_they_speak(ask: Ask) -> None:
    with stand_in(good()) as server:
        for number in range(5):
            assert ask(server.url(f"team/r{number}.git")).refs == PLAIN
        for number in range(5):
            assert ask(server.url(f"team/r{number}.git")).refs == PLAIN

        assert server.connections == 1
        assert server.methods == ["GET", "POST"] * 5 + ["POST"] * 5
        targets = [sent.target for sent in server.sent]
        assert targets[-5:] == [f"/team/r{number}.git/git-upload-pack" for number in range(5)]


def test_as_many_connections_as_polls_in_flight_and_no_more(engine: Engine) -> None:
    slow = by_method(GET=[(Pause(0.2), *discovery())], POST=[(Pause(0.2), *GOOD)])
    with stand_in(slow) as server:
        for _ in range(3):
            for key in range(8):
                engine.start(request(server.url(f"r{key}.git"), key=key))
            results = collect(engine)
            assert [results[key].refs for key in range(8)] == [PLAIN] * 8

        assert server.connections == 8


def test_a_connection_that_is_in_use_is_not_kept_for_ever(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name may lead elsewhere by then, and whoever it led to may answer on."""
    monkeypatch.setattr(transfer, "OLDEST_CONNECTION_SECONDS", 1)
    with stand_in(good()) as server:
        for _ in range(7):
            assert ask(server.url()).refs == PLAIN
            time.sleep(0.4)
        assert 2 <= server.connections <= 4


def test_a_question_that_is_not_answered_any_more_is_preceded_by_the_first_one(ask: Ask) -> None:
    """It may be protocol 2 that a server or what is before it does not bear."""
    with stand_in(good()) as server:
        assert ask(server.url()).refs == PLAIN
        server.script = by_method(GET=[discovery(v0([(MAIN, A)]))], POST=[(Hang(),)])
        assert conclusion(ask(server.url(), seconds=0.5), [MAIN]) == "timeout"
        assert ask(server.url(), seconds=5.0).refs == PLAIN


def test_what_is_asked_may_change_from_poll_to_poll(ask: Ask) -> None:
    with stand_in(by_method(GET=V2, POST=[result(refs_of({HEAD: A, MAIN: A, DEV: B}))])) as server:
        for asked in ([MAIN], [MAIN, DEV], [HEAD], ["refs/tags/*"], [MAIN]):
            ask(server.url(), *asked)
            check_ls_refs(server.take()[-1], asked)


def test_the_url_is_asked_as_it_is_written(ask: Ask) -> None:
    """Spaces and signs that are escaped stay so; a slash at the end is one."""
    with stand_in(good()) as server:
        for path in ("a%20b/shop%2Bx.git", "team/shop.git/", "team/shop", "~ada/x.git"):
            assert ask(server.url(path)).refs == PLAIN
            base = "/" + path.rstrip("/")
            assert [sent.target for sent in server.take()] == [
                f"{base}/info/refs?service=git-upload-pack",
                f"{base}/git-upload-pack",
            ]


def test_a_url_beyond_ascii_is_sent_as_it_is(ask: Ask) -> None:
    """Registration asks for it in percents; what is stored in spite of that is asked as git asks."""
    with stand_in(good()) as server:
        assert ask(server.url("größe.git")).refs == PLAIN == git_says(server.url("größe.git"), [MAIN])
        assert len({sent.target.lower() for sent in server.sent if sent.method == "POST"}) == 1


@pytest.mark.parametrize(
    "access",
    [
        {"ca_bundle": "größe"}, {"ca_bundle": "a\0b"}, {"kind": "token", "secret": "größe"},
        {"kind": "token", "secret": "\ud800"}, {"kind": "none", "username": "\r\n"},
    ],
)  # fmt: skip
def test_what_no_library_would_take_ends_its_own_poll_alone(access: dict[str, Any], engine: Engine) -> None:
    with stand_in(good()) as server:
        engine.start(request(server.url("a.git"), key=1))
        engine.start(request(server.url("b.git"), key=2, **access))
        engine.start(request(server.url("c.git"), key=3))
        results = collect(engine)

    assert results[1].refs == results[3].refs == PLAIN
    assert set(results) == {1, 2, 3}


def closes_behind(step: Step, when: Callable[[Sent], bool]) -> Script:
    """Good answers, and `step` at the end of those that `when` names."""
    script = good()
    return lambda sent: (*script(sent), step) if when(sent) else script(sent)


@pytest.mark.parametrize("step", [Close(), Reset()], ids=["closed", "reset"])
def test_a_connection_that_the_server_closed_between_two_polls(step: Step, ask: Ask) -> None:
    with stand_in(closes_behind(step, lambda sent: sent.method == "POST")) as server:
        for _ in range(4):
            assert ask(server.url()).refs == PLAIN
            time.sleep(0.05)

        assert server.methods == ["GET", *["POST"] * 4]
        assert server.connections == 4


@pytest.mark.parametrize("step", [Close(), Reset()], ids=["closed", "reset"])
def test_a_connection_that_the_server_closes_as_it_is_used_again(step: Close | Reset, ask: Ask) -> None:
    """The request was on its way when the server had enough of the connection: asked again on a new one, and no error."""
    seen: set[int] = set()
    script = good()

    def once(sent: Sent) -> Reply:
        if sent.method == "POST" and sent.connection in seen:
            return (step,)
        seen.add(sent.connection)
        return script(sent)

    with stand_in(once) as server:
        for number in range(3):
            answer = ask(server.url(f"r{number}.git"))
            assert answer.refs == PLAIN, answer
        for number in range(3):
            assert ask(server.url(f"r{number}.git")).refs == PLAIN


def test_a_server_that_always_closes_is_asked_no_more_than_needed(ask: Ask) -> None:
    head = ["Connection: close"]
    with stand_in(
        by_method(GET=[discovery(None, Close(), headers=head)], POST=[result(refs_of(PLAIN), Close(), headers=head)])
    ) as server:
        for _ in range(3):
            assert ask(server.url()).refs == PLAIN

        assert server.methods == ["GET", "POST", "POST", "POST"]
        assert server.connections == 4


def test_a_server_that_breaks_every_connection_is_not_asked_for_ever(ask: Ask) -> None:
    with stand_in(by_method(GET=V2, POST=[GOOD])) as server:
        assert ask(server.url()).refs == PLAIN
        server.take()
        server.script = lambda sent: (Reset(),)
        assert conclusion(ask(server.url()), [MAIN]) == "network"
        # One on the kept connection, one more on a new one, and at most one to ask anew.
        assert len(server.sent) <= 4


def test_a_server_that_came_back_at_its_port(ask: Ask) -> None:
    with stand_in(good()) as server:
        assert ask(server.url()).refs == PLAIN
        port = server.port
    assert ask(server.url()).error is not None
    with stand_in(good(), port=port) as server:
        assert ask(server.url()).refs == PLAIN


def test_an_error_in_the_middle_leaves_no_connection_in_between(ask: Ask) -> None:
    """Half an answer that was not read must not be the beginning of the next one."""
    rest = refs_of({MAIN: B})
    late: Reply = (http(refs_of(PLAIN)[:20], RESULT, length=5000), Pause(1.5), rest)
    with stand_in(by_method(GET=V2, POST=[late, GOOD])) as server:
        assert conclusion(ask(server.url(), seconds=0.7), [MAIN]) == "timeout"
        assert ask(server.url()).refs == PLAIN
        assert server.connections >= 2


def test_more_bytes_than_promised_are_not_the_next_answer(ask: Ask) -> None:
    """A second answer behind the first one, for a question that nobody has asked yet."""
    smuggled = http(refs_of({MAIN: B}), RESULT)
    with stand_in(by_method(GET=V2, POST=[(http(refs_of(PLAIN), RESULT) + smuggled,), GOOD])) as server:
        for _ in range(4):
            assert ask(server.url()).refs == PLAIN


def test_abandoned_polls_leave_an_engine_that_can_be_used(engine: Engine, ask: Ask) -> None:
    with stand_in(by_method(GET=[(Pause(30.0),)])) as silent, stand_in(good()) as server:
        assert ask(server.url()).refs == PLAIN
        for key in range(5):
            engine.start(request(silent.url(f"r{key}.git"), key=key))
        engine.wait(0.3)
        assert engine.in_flight == 5
        engine.abandon()
        assert engine.in_flight == 0 and engine.wait(0.1) == []
        assert ask(server.url()).refs == PLAIN
        assert server.methods == ["GET", "POST", "POST"]


def test_what_one_remote_speaks_is_forgotten_for_that_one_alone(ask: Ask) -> None:
    with stand_in(good()) as server:
        assert ask(server.url("a.git")).refs == ask(server.url("b.git")).refs == PLAIN
        server.take()
        bad = status("404 Not Found")
        server.script = lambda sent: bad[0:1] if "/a.git" in sent.target else GOOD
        assert conclusion(ask(server.url("a.git")), [MAIN]) == "not-found"
        assert ask(server.url("b.git")).refs == PLAIN
        assert server.methods == ["POST", "GET", "POST"]
