"""One libcurl handle, and the poll that it works on."""

import socket
from typing import Any

import pycurl

from repos.addresses import address_is_allowed
from workers.addresses import connects_directly, private_address
from workers.git_environment import CONNECT_SECONDS, RemoteAccess, authorization_header
from workers.git_errors import NetworkFailed, TlsFailed
from workers.poll.conversation import NOT_GIT, Answer, Conversation, speaks_git, status_error, too_many
from workers.poll.engine import PollError, PollRequest, timed_out

# A ref's packet is an id, a name and the peeled id; names are at most 4 KiB on servers and short in life.
BYTES_PER_REF = 300
# What a server says before its refs, or instead of them.
BYTES_BESIDES = 64 * 1024
# How long a connection that nobody uses is kept, and how long one that is used: a name may lead elsewhere by then.
KEPT_SECONDS = 300
OLDEST_CONNECTION_SECONDS = 300
MOST_RETRY_AFTER_SECONDS = 10**9

TLS_ERRORS = frozenset(
    {
        pycurl.E_SSL_CONNECT_ERROR, pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CACERT_BADFILE,
        pycurl.E_SSL_CERTPROBLEM, pycurl.E_SSL_CIPHER, pycurl.E_SSL_ISSUER_ERROR, pycurl.E_SSL_CRL_BADFILE,
        pycurl.E_SSL_INVALIDCERTSTATUS,
    }
)  # fmt: skip
NOT_HTTP = frozenset(
    {pycurl.E_UNSUPPORTED_PROTOCOL, pycurl.E_BAD_CONTENT_ENCODING, 8, 100}  # weird server reply, too large
)
# What git sends too: servers before protocol 2 answer this with their refs, and a cache in between may keep them.
GET_HEADERS = ("Git-Protocol: version=2", "Accept: */*", "Pragma: no-cache")
POST_HEADERS = (
    "Git-Protocol: version=2",
    "Content-Type: application/x-git-upload-pack-request",
    "Accept: application/x-git-upload-pack-result",
    # libcurl would ask first whether a body is welcome.
    "Expect:",
)


# What a handle works on while it works on nothing: it must not hold the last credential.
IDLE = Conversation(PollRequest(0, RemoteAccess(""), (), 0.0, 0), None)


class Transfer:
    """A libcurl handle and the poll that it works on. Handles are used again: making one costs more than a poll."""

    __slots__ = (
        "body",
        "conversation",
        "curl",
        "ends_at",
        "headers",
        "limit",
        "milliseconds",
        "posted",
        "private",
        "size",
        "started",
        "tls",
    )

    def __init__(self, authorities: dict[int, str]) -> None:
        self.curl: Any = pycurl.Curl()
        self.body: list[bytes] = []
        self.size = self.limit = 0
        self.started = self.ends_at = 0.0
        self.conversation = IDLE
        self.private = False
        self.milliseconds = 0
        self.posted: bytes | None = None
        self.headers: tuple[str, bool] | None = None
        self.tls: tuple[str, bool] = ("", False)
        curl = self.curl
        curl.transfer = self
        curl.setopt(pycurl.NOSIGNAL, 1)
        # One request on a connection at a time: what is slow holds up itself alone.
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        curl.setopt(pycurl.FOLLOWLOCATION, 0)
        curl.setopt(pycurl.NETRC, 0)
        curl.setopt(pycurl.USERAGENT, "git/fleetsync")
        curl.setopt(pycurl.TCP_KEEPALIVE, 1)
        curl.setopt(pycurl.CONNECTTIMEOUT, CONNECT_SECONDS)
        # A question is some hundred bytes, and libcurl keeps this much for each handle.
        curl.setopt(pycurl.UPLOAD_BUFFERSIZE, 16 * 1024)
        curl.setopt(pycurl.MAXAGE_CONN, KEPT_SECONDS)
        curl.setopt(pycurl.MAXLIFETIME_CONN, OLDEST_CONNECTION_SECONDS)
        curl.setopt(pycurl.WRITEFUNCTION, self._write)
        curl.setopt(pycurl.OPENSOCKETFUNCTION, self._open)
        for option, path in authorities.items():
            curl.setopt(option, path)

    def _write(self, chunk: bytes) -> int | None:
        self.size += len(chunk)
        if self.size > self.limit:
            return 0
        self.body.append(chunk)
        return None

    def _open(self, _purpose: int, address: tuple[int, int, int, Any]) -> Any:
        """Check the address where it is connected to: there is no other lookup that could say something else."""
        family, kind, protocol, target = address
        access = self.request.access
        if connects_directly(access) and (
            family not in (socket.AF_INET, socket.AF_INET6) or not address_is_allowed(str(target[0]).partition("%")[0])
        ):
            self.private = True
            return pycurl.SOCKET_BAD
        return socket.socket(family, kind, protocol)

    @property
    def request(self) -> PollRequest:
        return self.conversation.request

    def begin(self, conversation: Conversation, now: float) -> None:
        request = conversation.request
        self.conversation = conversation
        self.started, self.ends_at = now, now + request.timeout_seconds
        self.limit = request.max_refs * BYTES_PER_REF + BYTES_BESIDES
        access = request.access
        tls = (access.ca_bundle, access.insecure_skip_tls_verify)
        if tls != self.tls:
            self._set_tls(access)
            self.tls = tls

    def _set_tls(self, access: RemoteAccess) -> None:
        verify = not access.insecure_skip_tls_verify
        self.curl.setopt(pycurl.SSL_VERIFYPEER, int(verify))
        self.curl.setopt(pycurl.SSL_VERIFYHOST, 2 if verify else 0)
        if access.ca_bundle:
            self.curl.setopt(pycurl.CAINFO_BLOB, access.ca_bundle.encode())
        elif self.tls[0]:
            self.curl.unsetopt(pycurl.CAINFO_BLOB)

    def end(self) -> None:
        self.conversation = IDLE
        self.body.clear()

    def prepare(self, now: float) -> None:
        """Set what the conversation wants to send next."""
        curl, ask = self.curl, self.conversation.ask()
        self.body.clear()
        self.size = 0
        self.private = False
        # Bytes, because pycurl takes a string for ASCII.
        curl.setopt(pycurl.URL, ask.url.encode())
        # libcurl remembers what it was told, and telling it takes time.
        milliseconds = max(1, round((self.ends_at - now) * 1000))
        if milliseconds != self.milliseconds:
            curl.setopt(pycurl.TIMEOUT_MS, milliseconds)
            self.milliseconds = milliseconds
        is_get = ask.body is None
        if is_get:
            curl.setopt(pycurl.HTTPGET, 1)
            curl.setopt(pycurl.ACCEPT_ENCODING, "gzip")
        elif ask.body is not self.posted:
            curl.setopt(pycurl.POSTFIELDS, ask.body)
        self.posted = ask.body
        headers = (authorization_header(self.request.access), is_get)
        if headers != self.headers:
            words = [*(GET_HEADERS if is_get else POST_HEADERS), *([headers[0]] if headers[0] else [])]
            curl.setopt(pycurl.HTTPHEADER, words)
            if not is_get:
                curl.unsetopt(pycurl.ACCEPT_ENCODING)
            self.headers = headers

    def answer(self) -> Answer:
        info = self.curl.getinfo
        status = info(pycurl.RESPONSE_CODE)
        body = self.body[0] if len(self.body) == 1 else b"".join(self.body)
        # As bytes: a server may write anything there.
        content_type = (self.curl.getinfo_raw(pycurl.CONTENT_TYPE) or b"").decode("latin-1")
        if status == 200:
            return Answer(status, content_type, body)
        # What libcurl makes of it is the number of seconds, also for a date; 0 where there is none.
        retry_after = min(int(info(pycurl.RETRY_AFTER)), MOST_RETRY_AFTER_SECONDS)
        return Answer(
            status, content_type, body, info(pycurl.REDIRECT_URL) or "", float(retry_after) if retry_after > 0 else None
        )

    def error(self, code: int) -> PollError:
        """What libcurl's error means."""
        if self.private:
            return PollError(private_address().cause, str(private_address()))
        # What a status says counts, also where the page that comes with it is broken off or in an unknown encoding.
        if said := status_error(self.answer()):
            return said
        if code == pycurl.E_WRITE_ERROR:
            # It was more than all the refs that are allowed, if it was refs.
            return too_many(self.request) if speaks_git(self.answer()) else NOT_GIT
        if code == pycurl.E_OPERATION_TIMEDOUT:
            return timed_out(self.request)
        if code in TLS_ERRORS:
            return PollError(TlsFailed.cause, TlsFailed.sentence)
        if code in NOT_HTTP:
            return NOT_GIT
        return PollError(NetworkFailed.cause, NetworkFailed.sentence)
