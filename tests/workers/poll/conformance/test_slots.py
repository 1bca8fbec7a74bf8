"""A hung poll holds its own slot until its own deadline, and nobody else's: asserted from what was recorded, and far from
any speed.
"""

import itertools
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from pytest_django import Settings

from repos.models import Remote
from tests.core import register
from tests.workers.poll.conformance.answers import GOOD, PLAIN, RESULT, discovery, http, refs_of
from tests.workers.poll.conformance.case import request
from tests.workers.poll.conformance.conftest import BOTH_WAYS
from tests.workers.poll.conformance.stand_in import Drip, Hang, Script, by_method, stand_in
from workers.poll.engine import Engine, PollResult
from workers.poll.session import Session

V2 = (discovery(),)
GIT = by_method(GET=V2, POST=[GOOD])
DRIP = Drip(http(refs_of(PLAIN), RESULT), 0.5)
HUNG: dict[str, Script] = {
    "says nothing": by_method(GET=[(Hang(),)]),
    "hangs in the middle": by_method(GET=V2, POST=[(http(refs_of(PLAIN)[:20], RESULT, length=1000), Hang())]),
    "drips": by_method(GET=V2, POST=[(DRIP,)]),
}


@contextmanager
def full() -> Iterator[str]:
    """The address of a port that connections are made to and that nobody ever accepts."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as stack:
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@BOTH_WAYS
def test_ten_hung_servers_among_fifty_delay_nobody(engine: Engine) -> None:
    """Silent, dripping, deaf, and stuck before TLS: the others have all ended before the first of these has."""
    deadline = 8.0
    with ExitStack() as stack:
        hung = [stack.enter_context(stand_in(script)) for script in HUNG.values()]
        good = [stack.enter_context(stand_in(GIT)) for _ in range(4)]
        deaf = stack.enter_context(full())
        urls = [server.url(f"r{number}.git") for number, server in enumerate([*hung, *hung])]
        urls += [f"http://{deaf}/a.git", f"http://{deaf}/b.git"]
        urls += [f"https://127.0.0.1:{hung[0].port}/{name}.git" for name in "ab"]
        assert len(urls) == 10
        for key, url in enumerate(urls):
            engine.start(request(url, key=key, seconds=deadline))
        started = time.monotonic()
        for key in range(10, 50):
            engine.start(request(good[key % 4].url(f"r{key}.git"), key=key, seconds=deadline))
        assert engine.in_flight == 50
        results: dict[int, PollResult] = {}
        ended: dict[int, float] = {}
        while engine.in_flight and time.monotonic() < started + 60:
            for result in engine.wait(1.0):
                results[result.key] = result
                ended[result.key] = time.monotonic() - started

        assert len(results) == 50
        for key in range(10, 50):
            assert results[key].refs == PLAIN
            assert ended[key] < deadline - 1
        for key in range(10):
            error = results[key].error
            assert error is not None and error.cause == "timeout", urls[key]
            assert deadline - 1 < ended[key] < deadline + 20


@pytest.mark.django_db
def test_the_others_keep_their_schedule_while_ten_hang(engine: Engine, settings: Settings) -> None:
    """40 remotes that are polled each second, beside ten that hang for longer than the session: fifty slots."""
    settings.GIT_TIMEOUT, settings.GIT_HOST_CONCURRENCY = 10.0, 50
    settings.GITREPO_POLLING_JITTER = 0.1
    budget = 6.0
    with ExitStack() as stack:
        hung = stack.enter_context(stand_in(HUNG["says nothing"]))
        good = [stack.enter_context(stand_in(GIT)) for _ in range(4)]
        stuck = [
            register(f"hung{number}", url=hung.url(f"h{number}.git"), polling_interval="1s") for number in range(10)
        ]
        for number in range(40):
            register(f"good{number}", url=good[number % 4].url(f"g{number}.git"), polling_interval="1s")

        report = Session(engine, limit=50, budget_seconds=budget, stopping=lambda: False).run()

        asked: dict[str, list[float]] = {}
        for server in good:
            for sent in server.sent:
                if sent.method == "POST":
                    asked.setdefault(sent.target, []).append(sent.at)
        begins = min(sent.at for sent in hung.sent)
        assert len(hung.sent) == 10
        assert report.seconds >= settings.GIT_TIMEOUT - 1
        assert len(asked) == 40
        for instants in asked.values():
            # All of it while ten slots were held: each is asked again and again, and never waits for one that hangs.
            assert max(instants) < begins + settings.GIT_TIMEOUT
            assert len(instants) >= 2
            assert all(later - earlier < 4.0 for earlier, later in itertools.pairwise(instants))
        others = Remote.objects.exclude(pk__in=[gitrepo.remote_id for gitrepo in stuck])
        assert all(lag is not None and lag < 4.0 for lag in others.values_list("last_lag_seconds", flat=True))
        for remote in Remote.objects.filter(pk__in=[gitrepo.remote_id for gitrepo in stuck]):
            assert "GIT_TIMEOUT" in remote.last_error and remote.lease_token is None
