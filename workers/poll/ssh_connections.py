"""Kept ssh connections, shared by all polls of an account, each poll a channel of its own.

An account is whatever makes two connections interchangeable: host, port, user, key, trusted host keys and checked
addresses. Its connections are opened one after the other, when no channel is free on those that are there.
"""

import asyncio
import hashlib
import logging
import os
import pwd
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import asyncssh

from workers.git_environment import CONNECT_SECONDS, AccessError, RemoteAccess
from workers.git_errors import AuthenticationFailed, GitError, HostKeyFailed, NetworkFailed
from workers.poll.ssh_keys import SSH_PORT, connection_options

logging.getLogger("asyncssh").setLevel(logging.WARNING)

# What OpenSSH's servers allow by default (MaxSessions); a server that allows fewer refuses a channel, and is believed.
CHANNELS = 10
CONNECTIONS_OF_ACCOUNT = 16
# For a server to notice that a channel has ended at both sides.
FREED_SECONDS, MOST_ENDS = 1.0, 64
# OpenSSH's servers begin to drop who is not authenticated yet at 10 (MaxStartups), and other machines come as well.
OPENING_AT_HOST = 4
# Of the time to connect, for each of a host's addresses at least: a live one shall not seem deaf.
ADDRESS_SECONDS = 3.0
# Longer than between two polls at usual intervals.
IDLE_SECONDS = 180.0
IDLE_CONNECTIONS = 256
KEEPALIVE_SECONDS, KEEPALIVE_COUNT = 15, 3
# After a second connection was refused, those that are there have to do for a while.
AGAIN_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Account:
    """What two connections have in common that may stand in for each other. Of the key only a hash, not to keep it."""

    host: str
    port: int
    user: str
    key: bytes
    known_hosts: str
    addresses: frozenset[str]

    @classmethod
    def of(cls, access: RemoteAccess) -> "Account":
        host, port = access.host
        key = hashlib.sha256(access.secret.encode()).digest() if access.kind == "ssh" else b""
        return cls(host, port or SSH_PORT, user_of(access.url), key, access.known_hosts, frozenset(access.addresses))


def user_of(url: str) -> str:
    """The user in the URL; without one it is this process's, as with ssh."""
    authority = urlsplit(url).netloc if "://" in url else url.partition(":")[0]
    user, at, _ = authority.rpartition("@")
    if at:
        return unquote(user)
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise AccessError(
            "url", "The URL names no user, and this process has none: write ssh://user@host/path."
        ) from None


class Connection:
    """One connection and what is known of it. `channels` counts the places that are taken, `most` how many there are."""

    def __init__(self, account: Account, most: int) -> None:
        self.account, self.most = account, most
        self.ssh: asyncssh.SSHClientConnection | None = None
        self.channels = 0
        # Channels that it has had: what worked before may have died since.
        self.used = 0
        self.retired = False
        self.idle_since = 0.0
        # Channels that the server has opened and not closed, and when the last of the others ended.
        self._running = 0
        self._ended_at: deque[float] = deque(maxlen=MOST_ENDS)

    @property
    def is_open(self) -> bool:
        return self.ssh is not None and not self.ssh.is_closed()

    def opened(self) -> asyncssh.SSHClientConnection:
        """asyncssh's own."""
        if self.ssh is None:
            raise NetworkFailed
        return self.ssh

    def channel_began(self) -> None:
        self.used += 1
        self._running += 1

    def channel_ended(self) -> None:
        self._running -= 1
        self._ended_at.append(time.monotonic())

    def at_server(self) -> int:
        """The channels that the server may count at this moment: it frees the place of one that has ended a little later, and
        refuses another that was asked for in the meantime.
        """
        lately = time.monotonic() - FREED_SECONDS
        return self._running + sum(ended_at > lately for ended_at in self._ended_at)

    @property
    def has_room(self) -> bool:
        return not self.retired and self.is_open and self.channels < self.most


@dataclass(slots=True)
class _Pool:
    """The connections of one account. `most` is what is known of its channels for each connection."""

    open: list[Connection] = field(default_factory=list)
    waiting: deque[tuple[asyncio.Future[Connection], RemoteAccess]] = field(default_factory=deque)
    opening: asyncio.Task[None] | None = None
    most: int = CHANNELS
    not_before: float = 0.0


class _Client(asyncssh.SSHClient):
    """Hears that a connection ended."""

    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended = ended

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._ended()


class SshConnections:
    """Channels of connections to any number of accounts. Belongs to one event loop."""

    def __init__(
        self,
        *,
        idle_seconds: float = IDLE_SECONDS,
        idle_connections: int = IDLE_CONNECTIONS,
        connections_of_account: int = CONNECTIONS_OF_ACCOUNT,
    ) -> None:
        self._idle_seconds, self._idle_connections = idle_seconds, idle_connections
        self._of_account = connections_of_account
        self._pools: dict[Account, _Pool] = {}
        self._gates: dict[tuple[str, int], asyncio.Semaphore] = {}
        self._openings: set[asyncio.Task[None]] = set()
        # In the order in which they became so.
        self._idle: dict[Connection, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, access: RemoteAccess) -> Connection:
        """A connection to the account of `access` with a place for one more channel, which is counted from here on and ends
        with give_back(). Raises GitError or AccessError; waits for as long as it has to.
        """
        account = Account.of(access)
        pool = self._pools.setdefault(account, _Pool())
        for connection in pool.open:
            if connection.has_room and not pool.waiting:
                self._use(connection)
                return connection
        place: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        waiting = place, access
        pool.waiting.append(waiting)
        self._open_if_wanted(account, pool)
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and not place.exception():
                self.give_back(place.result())
            raise
        finally:
            with suppress(ValueError):
                pool.waiting.remove(waiting)
            if pool.opening and not pool.waiting and place.cancelled():
                # Nobody waits for it any more.
                pool.opening.cancel()
                pool.opening = None
            self._forget_if_empty(account, pool)

    def give_back(self, connection: Connection) -> None:
        """A channel has ended at the server too, or was never there."""
        connection.channels -= 1
        pool = self._pools.get(connection.account)
        if pool is not None:
            self._serve(pool)
        if connection.channels or not connection.is_open:
            return
        if connection.retired:
            self._close(connection)
            return
        self._rest(connection)

    def refused(self, connection: Connection) -> bool:
        """The server opens no further channel here: what is open is all that it allows. The place is given back. Answers
        whether it makes sense to ask for another; not where the server refuses though nothing is open.
        """
        allowed = connection.at_server()
        connection.most = max(1, min(connection.most, allowed))
        if pool := self._pools.get(connection.account):
            pool.most = connection.most
        self.give_back(connection)
        return allowed > 0

    def retire(self, connection: Connection, *, others: bool = False) -> None:
        """Nothing new goes over this connection, and with `others` over none of its account's that have worked before:
        what it died of may have befallen them as well. What is under way on them may end.
        """
        pool = self._pools.get(connection.account)
        for other in [connection, *(pool.open if pool and others else ())]:
            if other is connection or other.used:
                other.retired = True
                if not other.channels:
                    self._close(other)

    async def close(self) -> None:
        """End every connection."""
        if self._timer:
            self._timer.cancel()
        for opening in self._openings:
            opening.cancel()
        if self._openings:
            await asyncio.wait(self._openings)
        for connection in [connection for pool in self._pools.values() for connection in pool.open]:
            if connection.ssh:
                connection.ssh.abort()
                await connection.ssh.wait_closed()
        self._pools.clear()

    # -- places for channels -------------------------------------------------------------------------------------------

    def _use(self, connection: Connection) -> None:
        connection.channels += 1
        self._idle.pop(connection, None)

    def _serve(self, pool: _Pool) -> None:
        """Give the places that are free to those who wait, in turn."""
        for connection in pool.open:
            while connection.has_room and pool.waiting:
                place, _ = pool.waiting.popleft()
                if not place.done():
                    self._use(connection)
                    place.set_result(connection)

    def _open_if_wanted(self, account: Account, pool: _Pool) -> None:
        if pool.opening or not pool.waiting:
            return
        usable = [connection for connection in pool.open if not connection.retired]
        if usable and (len(usable) >= self._of_account or time.monotonic() < pool.not_before):
            return
        _, access = pool.waiting[0]
        pool.opening = asyncio.create_task(self._open(account, pool, access))
        self._openings.add(pool.opening)
        pool.opening.add_done_callback(self._openings.discard)

    async def _open(self, account: Account, pool: _Pool, access: RemoteAccess) -> None:
        """Add a connection to the pool, or tell those who wait why there is none."""
        connection = Connection(account, pool.most)
        failure: Exception | None = None
        try:
            gate = self._gates.setdefault((account.host, account.port), asyncio.Semaphore(OPENING_AT_HOST))
            async with gate, asyncio.timeout(CONNECT_SECONDS):
                connection.ssh = await self._connect(account, access, connection)
        except (asyncssh.Error, OSError) as error:  # (a TimeoutError too)
            failure = connect_error(error)
        except Exception as error:  # noqa: BLE001 (whoever waits gets it, and says so)
            failure = error
        finally:
            if pool.opening is asyncio.current_task():
                pool.opening = None
            self._forget_if_empty(account, pool)
        if failure is None and not connection.is_open:
            failure = NetworkFailed()
        if failure is None:
            pool.open.append(connection)
        elif any(not other.retired for other in pool.open):
            # Those that are there serve all who wait, only later.
            pool.not_before = time.monotonic() + AGAIN_SECONDS
        else:
            self._fail(pool, failure)
        self._serve(pool)
        self._open_if_wanted(account, pool)
        if failure is None and not connection.channels:
            self._rest(connection)

    def _fail(self, pool: _Pool, failure: Exception) -> None:
        for place, _ in pool.waiting:
            if not place.done():
                place.set_exception(failure)
        pool.waiting.clear()

    async def _connect(
        self, account: Account, access: RemoteAccess, connection: Connection
    ) -> asyncssh.SSHClientConnection:
        options = connection_options(access)
        addresses = access.addresses
        end = time.monotonic() + CONNECT_SECONDS
        for number, address in enumerate(addresses):
            # Those that are left share the time that is left, so that one that is deaf does not hide the others.
            left = len(addresses) - number
            patience = max((end - time.monotonic()) / left, ADDRESS_SECONDS)
            try:
                async with asyncio.timeout(patience):
                    return await asyncssh.connect(
                        address,
                        account.port,
                        username=account.user,
                        client_factory=lambda: _Client(lambda: self._ended(connection)),
                        keepalive_interval=KEEPALIVE_SECONDS,
                        keepalive_count_max=KEEPALIVE_COUNT,
                        **options,
                    )
            except OSError:  # (a TimeoutError too)
                if left == 1:
                    raise
        raise NetworkFailed

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _ended(self, connection: Connection) -> None:
        """The connection is no more, whoever ended it."""
        if connection.ssh is None:
            # Only an attempt has ended, and the next address may still become this connection.
            return
        connection.retired = True
        self._idle.pop(connection, None)
        pool = self._pools.get(connection.account)
        if pool is not None and connection in pool.open:
            pool.open.remove(connection)
            self._open_if_wanted(connection.account, pool)
            self._forget_if_empty(connection.account, pool)

    def _close(self, connection: Connection) -> None:
        self._ended(connection)
        if connection.ssh and connection.is_open:
            connection.ssh.close()

    def _forget_if_empty(self, account: Account, pool: _Pool) -> None:
        if not (pool.open or pool.waiting or pool.opening):
            self._pools.pop(account, None)
            if not any((other.host, other.port) == (account.host, account.port) for other in self._pools):
                self._gates.pop((account.host, account.port), None)

    def _rest(self, connection: Connection) -> None:
        """Nothing goes over it now."""
        connection.idle_since = time.monotonic()
        self._idle[connection] = None
        if len(self._idle) > self._idle_connections or self._timer is None:
            self._sweep()

    def _sweep(self) -> None:
        """Close what has been idle for long, and the longest idle while there are too many; come again for the others."""
        now = time.monotonic()
        for connection in list(self._idle):
            if len(self._idle) <= self._idle_connections and now - connection.idle_since < self._idle_seconds:
                break
            self._close(connection)
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._idle_seconds / 4, self._sweep) if self._idle else None


def connect_error(error: Exception) -> GitError:
    """What a failure to connect means, in git's words for it."""
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return HostKeyFailed()
    if isinstance(error, asyncssh.PermissionDenied):
        return AuthenticationFailed()
    return NetworkFailed()
