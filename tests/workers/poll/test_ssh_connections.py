"""What happens to kept ssh connections: shared, bounded, closed when idle, and noticed when they are dead."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ssh_servers import SshServer, make_key, public_key, ssh_server, why_not
from tests.workers.poll.ssh_asking import MAIN, Asking, registered, ssh_engine
from workers.git_environment import CONNECT_SECONDS
from workers.poll.engine import PollRequest
from workers.poll.loop import LoopEngine
from workers.poll.ssh_connections import SshConnections

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "an sshd can be run")
# The command that was asked for, after a while: so that channels are open at the same time.
SLOWLY = 'sleep 1; eval "$SSH_ORIGINAL_COMMAND"'


@pytest.fixture
def engine() -> Iterator[LoopEngine]:
    with ssh_engine() as engine:
        yield engine


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    with ssh_server(tmp_path / "sshd") as server:
        yield server


@pytest.fixture
def ask(engine: LoopEngine, server: SshServer, tmp_path: Path) -> Asking:
    return registered(engine, server, tmp_path)


@contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        yield listener.getsockname()[1]


def turn(engine: LoopEngine, seconds: float) -> None:
    """Let the loop turn with nothing to ask."""
    engine.run(asyncio.sleep(seconds), seconds + 5)


def wait_until_served(server: SshServer, connections: int, engine: LoopEngine) -> None:
    """Until the server has so many connections."""
    end = time.monotonic() + 20
    while server.sessions() != connections:
        assert time.monotonic() < end, f"{server.sessions()} connections"
        turn(engine, 0.05)


# -- shared --------------------------------------------------------------------------------------------------------


def test_one_connection_serves_every_poll(ask: Asking) -> None:
    for _ in range(4):
        assert ask().error is None
    for number in range(8):
        ask.start(number=number)
    assert all(result.refs for result in ask.collect().values())

    assert ask.server.connections() == 1


def test_a_server_that_allows_fewer_channels_gets_more_connections(engine: LoopEngine, tmp_path: Path) -> None:
    with ssh_server(tmp_path / "sshd", {"MaxSessions": "3", "ForceCommand": SLOWLY}) as server:
        ask = registered(engine, server, tmp_path)
        for number in range(8):
            ask.start(number=number)
        results = ask.collect()

        assert [result.error for result in results.values()] == [None] * 8
        assert 3 <= server.connections() <= 8


def test_an_accounts_connections_are_bounded(tmp_path: Path) -> None:
    """Who finds no place waits for one."""
    with (
        ssh_server(tmp_path / "sshd", {"MaxSessions": "2", "ForceCommand": SLOWLY}) as server,
        ssh_engine(SshConnections(connections_of_account=2)) as engine,
    ):
        ask = registered(engine, server, tmp_path)
        for number in range(9):
            ask.start(number=number)
        results = ask.collect()

        assert [result.error for result in results.values()] == [None] * 9
        assert server.connections() == 2


def test_a_place_that_was_free_a_moment_ago_is_used_again(tmp_path: Path) -> None:
    """A server may refuse a channel because it has not noticed yet that another has ended; it does not allow fewer."""
    connections = SshConnections(connections_of_account=1)
    with ssh_server(tmp_path / "sshd", {"MaxSessions": "3"}) as server, ssh_engine(connections) as engine:
        ask = registered(engine, server, tmp_path)
        for number in range(60):
            ask.start(number=number, timeout=90.0)
        assert [result.error for result in ask.collect().values()] == [None] * 60
        (connection,) = next(iter(connections._pools.values())).open

        assert connection.most == 3
        assert server.connections() == 1


def test_a_server_that_allows_no_channel_at_all(engine: LoopEngine, tmp_path: Path) -> None:
    with ssh_server(tmp_path / "sshd", {"MaxSessions": "0"}) as server:
        ask = registered(engine, server, tmp_path)

        assert ask.cause() == "network"
        assert server.connections() <= 2


def test_a_connection_that_fails_is_the_failure_of_all_who_wait_for_it(ask: Asking, tmp_path: Path) -> None:
    stranger = make_key(tmp_path / "stranger")
    for number in range(12):
        ask.start(number=number, secret=stranger)

    assert {r.error and r.error.cause for r in ask.collect().values()} == {"authentication"}
    assert ask.server.connections() == 1


# -- idle ----------------------------------------------------------------------------------------------------------


def test_an_idle_connection_is_closed_after_a_while(tmp_path: Path) -> None:
    with ssh_server(tmp_path / "sshd") as server, ssh_engine(SshConnections(idle_seconds=0.4)) as engine:
        ask = registered(engine, server, tmp_path)
        assert ask().error is None
        assert server.sessions() == 1

        wait_until_served(server, 0, engine)
        assert ask().error is None


def test_idle_connections_are_bounded(tmp_path: Path) -> None:
    with ssh_server(tmp_path / "sshd") as server, ssh_engine(SshConnections(idle_connections=2)) as engine:
        ask = registered(engine, server, tmp_path)
        for number in range(4):
            key = make_key(tmp_path / f"key{number}")
            server.allow(tmp_path / f"key{number}")
            assert ask(secret=key).error is None
        wait_until_served(server, 2, engine)

        # The last ones are those that are kept.
        assert ask(secret=key).error is None
        assert server.connections() == 4


def test_closing_ends_every_connection(server: SshServer, tmp_path: Path) -> None:
    with ssh_engine() as engine:
        ask = registered(engine, server, tmp_path)
        assert ask().error is None
        with silent_server() as port:
            ask.start(url=f"ssh://git@127.0.0.1:{port}/x.git", known_hosts=known(port, tmp_path))
            engine.wait(0.2)
    end = time.monotonic() + 10
    while server.sessions() and time.monotonic() < end:
        time.sleep(0.02)

    assert server.sessions() == 0


# -- dead ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noticed", [True, False])
def test_a_connection_that_was_killed_is_replaced(ask: Asking, engine: LoopEngine, noticed: bool) -> None:
    assert ask().error is None
    ask.server.end_connections()
    if noticed:
        turn(engine, 0.3)

    assert ask().refs == {MAIN: ask.repository.head()}
    assert ask.server.connections() == 2


def test_every_kept_connection_is_replaced_after_a_restart(engine: LoopEngine, tmp_path: Path) -> None:
    with ssh_server(tmp_path / "sshd", {"MaxSessions": "1", "ForceCommand": SLOWLY}) as server:
        ask = registered(engine, server, tmp_path)
        for number in range(3):
            ask.start(number=number)
        ask.collect()
        assert server.sessions() == 3
        server.end_connections()

        for number in range(3):
            ask.start(number=number)
        assert [result.error for result in ask.collect().values()] == [None] * 3


def test_a_connection_that_says_nothing_any_more_is_replaced(ask: Asking) -> None:
    assert ask().error is None
    with ask.server.frozen_connections():
        result = ask(timeout=20.0)

    assert result.error is None
    assert ask.server.connections() == 2


def test_a_poll_is_tried_again_once_and_not_more(engine: LoopEngine, tmp_path: Path) -> None:
    """While the flag is there, whatever is asked ends the connection that it came over."""
    command = f'if test -e {tmp_path}/flag; then kill -9 $PPID; sleep 5; fi; eval "$SSH_ORIGINAL_COMMAND"'
    with ssh_server(tmp_path / "sshd", {"ForceCommand": command}) as server:
        ask = registered(engine, server, tmp_path)
        assert ask().error is None
        (tmp_path / "flag").touch()

        assert ask.cause() == "network"
        assert server.connections() == 2
        # On a fresh connection there is no second try.
        assert ask.cause() == "network"
        assert server.connections() == 3

        (tmp_path / "flag").unlink()
        assert ask().error is None


def test_a_server_that_is_gone(ask: Asking) -> None:
    assert ask().error is None
    ask.server.stop()

    assert ask.cause() == "network"


# -- deaf addresses ------------------------------------------------------------------------------------------------


def test_a_deaf_address_does_not_hide_the_others(ask: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.poll.ssh_connections.CONNECT_SECONDS", 6.0)
    with socket.create_server(("127.0.0.2", ask.server.port)):
        request = replace(ask.access(), addresses=("127.0.0.2", "127.0.0.1"))
        ask.engine.start(PollRequest(1, request, (MAIN,), 30.0, 10))

        assert ask.collect()[1].refs == {MAIN: ask.repository.head()}


def test_all_addresses_together_have_one_limit(ask: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.poll.ssh_connections.CONNECT_SECONDS", 1.0)
    addresses = tuple(f"127.0.0.{number}" for number in range(2, 8))
    with ExitStack() as stack:
        for address in addresses:
            stack.enter_context(socket.create_server((address, ask.server.port)))
        started = time.monotonic()
        ask.engine.start(PollRequest(1, replace(ask.access(), addresses=addresses), (MAIN,), 30.0, 10))
        error = ask.collect()[1].error

    assert error is not None and error.cause == "network"
    assert time.monotonic() - started < 10


# -- slow ----------------------------------------------------------------------------------------------------------


def known(port: int, folder: Path) -> str:
    if not (folder / "any").exists():
        make_key(folder / "any")
    return f"[127.0.0.1]:{port} {public_key(folder / 'any')}\n"


def test_a_server_that_hangs_is_left_at_the_deadline(ask: Asking, tmp_path: Path) -> None:
    with silent_server() as port:
        started = time.monotonic()
        url = f"ssh://git@127.0.0.1:{port}/x.git"
        error = ask(url=url, known_hosts=known(port, tmp_path), timeout=1.0).error

    assert error is not None and error.cause == "timeout" and "GIT_TIMEOUT" in error.message
    assert 0.9 < time.monotonic() - started < 10


@pytest.mark.parametrize("command", ["sleep 60", "printf 0011; sleep 60", "printf '000eversion 2\\n'; sleep 60"])
def test_a_repository_that_hangs_is_left_at_the_deadline(ask: Asking, command: str) -> None:
    ask.server.stop()
    ask.server.settings["ForceCommand"] = command
    ask.server.start()

    assert ask.cause(timeout=3.0) == "timeout"


def test_a_repository_that_hangs_leaves_its_place_to_others(engine: LoopEngine, tmp_path: Path) -> None:
    command = f'case "$SSH_ORIGINAL_COMMAND" in *stuck.git*) sleep 60;; *) {SLOWLY};; esac'
    with ssh_server(tmp_path / "sshd", {"MaxSessions": "2", "ForceCommand": command}) as server:
        ask = registered(engine, server, tmp_path)
        for number in range(6):
            ask.start(number=number, url=server.url(tmp_path / "stuck.git"), timeout=4.0)
        assert {r.error and r.error.cause for r in ask.collect().values()} == {"timeout"}
        for number in range(6):
            ask.start(number=number)
        assert [result.error for result in ask.collect().values()] == [None] * 6


def test_a_channel_is_closed_at_the_deadline(
    engine: LoopEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command at the server hears that nobody reads it any more."""
    monkeypatch.setattr("workers.poll.ssh.CLOSE_SECONDS", 600.0)
    ended = tmp_path / "ended"
    with ssh_server(tmp_path / "sshd", {"ForceCommand": f"cat; touch {ended}"}) as server:
        ask = registered(engine, server, tmp_path)
        assert ask.cause(timeout=2.0) == "timeout"
        end = time.monotonic() + 20
        while not ended.exists() and time.monotonic() < end:
            turn(engine, 0.05)

        assert ended.exists()


def test_nobody_goes_on_connecting_when_the_last_who_waited_is_gone(
    ask: Asking, engine: LoopEngine, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        url = f"ssh://git@127.0.0.1:{port}/x.git"
        assert ask.cause(url=url, known_hosts=known(port, tmp_path), timeout=1.0) == "timeout"
        peer, _ = listener.accept()
        with peer:
            peer.setblocking(False)
            # An attempt ends by itself too, but later.
            end = time.monotonic() + CONNECT_SECONDS / 2
            said = b"?"
            while said:
                assert time.monotonic() < end
                turn(engine, 0.05)
                with suppress(BlockingIOError):
                    said = peer.recv(1024)


def test_ten_that_hang_delay_nobody(ask: Asking, engine: LoopEngine, tmp_path: Path) -> None:
    """50 in flight, 10 of them to a server that says nothing."""
    assert ask().error is None
    with silent_server() as port:
        for number in range(10):
            ask.start(
                number=number,
                timeout=60.0,
                url=f"ssh://git@127.0.0.1:{port}/x.git",
                known_hosts=known(port, tmp_path),
            )
        for number in range(10, 50):
            ask.start(number=number)
        good: set[int] = set()
        while len(good) < 40 and engine.in_flight:
            good |= {result.key for result in engine.wait(1.0) if result.error is None}
        assert good == set(range(10, 50))
        assert engine.in_flight == 10
        engine.abandon()


def test_what_was_abandoned_is_asked_again(ask: Asking, engine: LoopEngine) -> None:
    for number in range(5):
        ask.start(number=number)
    engine.abandon()
    assert engine.in_flight == 0

    assert ask().error is None
    for number in range(5):
        ask.start(number=number)
    engine.wait(0.01)
    engine.abandon()
    assert ask().error is None
