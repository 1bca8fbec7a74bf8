"""Polls over ssh: for each question a channel of a kept connection, and no process.

asyncssh and not git over a kept master connection, because that starts git and ssh for each question: 11 ms of this machine's
CPU a poll against 0.8, and 82 for a plain `git ls-remote` with its handshake (`bench/ssh_poll.py`, 50 in flight, 2 cores).
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import cast
from urllib.parse import unquote_to_bytes, urlsplit

import asyncssh
import structlog

from repos.heads import only_asked
from workers.addresses import resolved_soon
from workers.git_environment import AccessError, check_access
from workers.git_errors import GitError, NetworkFailed, Refused, cleaner
from workers.git_words import refusal, remote_error_from
from workers.poll.conversation import NOT_GIT, remote_error, too_many
from workers.poll.engine import PollError, PollRequest, PollResult, timed_out
from workers.poll.protocol import (
    BrokenOff,
    NotGit,
    RemoteSaid,
    ls_refs_request,
    read_advertisement,
    read_refs,
    section_end,
)
from workers.poll.ssh_connections import Connection, SshConnections

log = structlog.get_logger(__name__)

# As in the answers of git.
BYTES_PER_REF = 200
# What a server may say besides its refs: capabilities, and lines of git's own.
BYTES_BESIDES = 64 * 1024
STDERR_BYTES = 64 * 1024
FLUSH = b"0000"
ERROR_PACKET = slice(4, 8)
# A kept connection may have died without a word, behind a firewall that forgot it; the deadline has room for a second try.
OPEN_SECONDS, OPEN_PART = 10.0, 0.3
# For a server to close a channel after its answer. Until then the channel counts.
CLOSE_SECONDS = 5.0
# What a server answers to a channel that it does not open (RFC 4254, 5.1); greater codes are asyncssh's own.
REFUSALS = frozenset(range(1, 5))


class ConnectionGone(Exception):
    """The connection died, or is believed to be dead, before there was an answer."""


class SshAsker:
    """Asks remotes over ssh. Belongs to one event loop: the one in which it is first used."""

    def __init__(self, connections: SshConnections | None = None) -> None:
        self._connections = connections or SshConnections()

    async def close(self) -> None:
        """End every connection."""
        await self._connections.close()

    async def ask(self, request: PollRequest) -> PollResult:
        """Never raises for what a remote does."""
        started = time.monotonic()
        refs: dict[str, str] = {}
        error: PollError | None = None
        try:
            # One deadline for all of it: the lease outlasts it once.
            async with asyncio.timeout(request.timeout_seconds):
                refs = await self._refs(request)
            if len(refs) > request.max_refs:
                refs, error = {}, too_many(request)
        except (AccessError, GitError) as failure:
            error = PollError(failure.cause, str(failure))
        except RemoteSaid as said:
            error = remote_error(str(said))
        except NotGit:
            error = NOT_GIT
        except _TooMuch:
            error = too_many(request)
        except TimeoutError:
            error = timed_out(request)
        except Exception:  # (one poll's fault must not end the session, which holds the leases of fifty)
            log.exception("a poll failed in a way that is not known", repository=request.access.url)
            error = PollError("internal", "the poll failed inside fleetsync: see the worker's log")
        return PollResult(request.key, time.monotonic() - started, refs, error)

    async def _refs(self, request: PollRequest) -> dict[str, str]:
        check_access(request.access)
        command = b"git-upload-pack " + quoted(path_of(request.access.url))
        access = request.access if request.access.addresses else await resolved_soon(request.access)
        tried_again = False
        while True:
            connection = await self._connections.take(access)
            was_kept = connection.used > 0
            try:
                conversation = await self._opened(connection, command, request)
                if conversation is None:
                    continue
                try:
                    refs = await conversation.refs(request)
                finally:
                    conversation.end()
            except ConnectionGone:
                self._connections.retire(connection, others=True)
                if tried_again or not was_kept:
                    raise NetworkFailed from None
                tried_again = True
                continue
            return refs

    async def _opened(self, connection: Connection, command: bytes, request: PollRequest) -> "_Conversation | None":
        """A channel on which `command` runs; None if the server allows no further one on this connection. The place at the
        connection is given back when the channel has ended, here if there is none. Raises ConnectionGone or GitError.
        """
        conversation = _Conversation(connection, request.max_refs * BYTES_PER_REF + BYTES_BESIDES)
        patience = min(OPEN_SECONDS, request.timeout_seconds * OPEN_PART) if connection.used else None
        give_back = self._connections.give_back
        try:
            async with asyncio.timeout(patience):
                await connection.opened().create_session(
                    # As bytes, which asyncssh sends as they are: a path need not be UTF-8.
                    lambda: conversation, cast(str, command), env={"GIT_PROTOCOL": "version=2"}, encoding=None
                )  # fmt: skip
        except asyncssh.ChannelOpenError as error:
            if connection.is_open and error.code in REFUSALS:
                if self._connections.refused(connection):
                    return None
                raise ConnectionGone from None
            give_back(connection)
            if connection.is_open:
                raise Refused(detail="exec request failed") from None
            raise ConnectionGone from None
        except (asyncssh.Error, OSError):
            # Our own patience is over, too; that of the request comes as a cancellation.
            give_back(connection)
            raise ConnectionGone from None
        except asyncio.CancelledError:
            # Whether the server has opened the channel is not known, and nobody would close it.
            give_back(connection)
            self._connections.retire(connection)
            raise
        conversation.when_closed(lambda: give_back(connection))
        return conversation


class _TooMuch(Exception):
    """The server says more than is wanted."""


class _Conversation(asyncssh.SSHClientSession[bytes]):
    """One upload-pack at the other end of a channel: what it has said so far, and somebody who waits for more."""

    def __init__(self, connection: Connection, most_bytes: int) -> None:
        self._connection, self._most = connection, most_bytes
        self._said = bytearray()
        self._errors = bytearray()
        self._status = 0
        self._ended = self._closed = self._answered = self._counted_as_ended = False
        self._waiter: asyncio.Future[None] | None = None
        self._on_closed: Callable[[], None] | None = None
        self._give_up: asyncio.TimerHandle | None = None

    # -- what asyncssh tells -------------------------------------------------------------------------------------------

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan
        self._connection.channel_began()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if datatype is not None:
            self._errors += data[: STDERR_BYTES - len(self._errors)]
            return
        # One byte more than is allowed shows that there was more.
        self._said += data[: self._most + 1 - len(self._said)]
        self._wake()

    def exit_status_received(self, status: int) -> None:
        self._status = status

    def eof_received(self) -> bool:
        self._ended = True
        self._wake()
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._ended = self._closed = True
        self._wake()
        self._channel_has_ended()

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def _channel_has_ended(self) -> None:
        if self._give_up:
            self._give_up.cancel()
        if not self._counted_as_ended:
            self._counted_as_ended = True
            self._connection.channel_ended()
        tell, self._on_closed = self._on_closed, None
        if tell:
            tell()

    # -- what the asker wants ------------------------------------------------------------------------------------------

    async def refs(self, request: PollRequest) -> dict[str, str]:
        """Those of the asked refs that the server has. Raises GitError, RemoteSaid, NotGit, _TooMuch or ConnectionGone."""
        try:
            heard = read_advertisement(await self._section(), service=False)
            refs = heard.refs
            if heard.version == 2:
                # With the flush that ends the connection: the server then closes the channel by itself.
                self._write(_request(request.refs, heard.object_format) + FLUSH)
                refs = read_refs(await self._section(), heard.object_format)
            else:
                self._write(FLUSH)
        except BrokenOff:
            raise NetworkFailed from None
        self._answered = True
        return only_asked(refs, request.refs)

    def end(self) -> None:
        """Let go of the channel. It counts until the server has closed it too."""
        if self._closed:
            return
        if self._answered:
            with suppress(OSError):
                self._channel.write_eof()
        else:
            self._channel.abort()
        self._give_up = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._given_up)

    def when_closed(self, tell: Callable[[], None]) -> None:
        """Call `tell` once, when the channel has ended at the server too, or was given up."""
        self._on_closed = tell
        if self._closed:
            self._channel_has_ended()

    def _given_up(self) -> None:
        self._channel.abort()
        self._channel_has_ended()

    def _write(self, data: bytes) -> None:
        # Where the channel is closed, the next answer says so.
        with suppress(OSError):
            self._channel.write(data)

    async def _section(self) -> bytes:
        """What comes next, to its flush packet."""
        looked = False
        while True:
            if not looked and len(self._said) >= len(FLUSH):
                # What is no Git has to be known before it ends: it may wait for us.
                section_end(self._said)
                looked = True
            # The server waits for us behind its flush packet, so that this is always the end of what is there.
            if self._said.endswith(FLUSH) and (end := section_end(self._said)) is not None:
                section = bytes(self._said[:end])
                del self._said[:end]
                return section
            if len(self._said) > self._most:
                raise _TooMuch
            if self._closed:
                return self._last_words()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def _last_words(self) -> bytes:
        """What was said before the channel ended, if that is whole or an error's packet; else raises what it ended of."""
        refused = self._refusal()
        try:
            if section_end(self._said) is not None:
                return bytes(self._said)
        except NotGit:
            # Gitea writes an empty line before it says, as an error, why there is no answer.
            raise refused or NotGit from None
        if self._said[ERROR_PACKET] == b"ERR ":
            return bytes(self._said) + FLUSH
        if refused:
            raise refused
        if not self._connection.is_open:
            raise ConnectionGone
        raise NetworkFailed

    def _refusal(self) -> GitError | None:
        """Why the server ended the channel by itself, which is an answer of the host; None if it said nothing, and where the
        end came with the connection's and what it said before is not known to be a refusal.
        """
        words = self._errors.decode("utf-8", "replace")
        if known := remote_error_from(words, cleaner()):
            return known
        by_itself = self._status != 0 or (self._connection.is_open and words.strip())
        return refusal(words, cleaner()) if by_itself else None


@lru_cache(maxsize=4096)
def _request(asked: tuple[str, ...], object_format: str) -> bytes:
    return ls_refs_request(asked, object_format)


def path_of(url: str) -> bytes:
    """What git asks an ssh server for: the path of `user@host:path` as it stands, that of a URL decoded, and without the
    slash in front of `~`. AccessError for what a command would take for an option.
    """
    # An IPv6 address in front of the path has colons of its own, in brackets that no path has.
    path = unquote_to_bytes(urlsplit(url).path) if "://" in url else url.rpartition("]")[2].partition(":")[2].encode()
    if path.startswith(b"/~"):
        path = path[1:]
    if not path or path.startswith(b"-"):
        raise AccessError("url", "The URL's path is empty or begins with -: correct the URL.")
    return path


def quoted(path: bytes) -> bytes:
    """One word to the server's shell, as git writes it: some servers have no shell and know this form alone."""
    return b"'" + path.replace(b"'", b"'\\''").replace(b"!", b"'\\!'") + b"'"
