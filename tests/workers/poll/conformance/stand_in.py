"""A server on a real socket that sends exactly the bytes it is told to, and keeps exactly what came.

It knows no HTTP beyond where a request ends, so it can be every server that there is, and those that should not be.
"""

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

BACKLOG = 512
REQUEST_BYTES = 1 << 20
# An endless answer ends here at the latest: a client that reads so much of it keeps no bound.
ENDLESS_BYTES = 256 << 20
# In a header, the server's own scheme, host and port.
ADDRESS = b"{address}"


@dataclass(frozen=True)
class Sent:
    """One request as it came. `connection` numbers the accepted connections from 1; `at` is monotonic, in seconds."""

    connection: int
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    at: float

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: str) -> str:
        """A header's only value, or ""."""
        values = self.all(name)
        assert len(values) <= 1, values
        return values[0] if values else ""


@dataclass(frozen=True)
class Pause:
    seconds: float


@dataclass(frozen=True)
class Drip:
    """Bytes, one by one, with a pause before each."""

    content: bytes
    seconds: float


@dataclass(frozen=True)
class Endless:
    """The same bytes again and again, for as long as the client reads."""

    content: bytes


@dataclass(frozen=True)
class Hang:
    """Nothing more, and the connection stays open."""


@dataclass(frozen=True)
class Close:
    """The connection ends."""


@dataclass(frozen=True)
class Reset:
    """The connection breaks (RST)."""


Step = bytes | Pause | Drip | Endless | Hang | Close | Reset
Reply = tuple[Step, ...]
Script = Callable[[Sent], Reply]


@dataclass
class StandIn:
    """The running server. `sent` grows; `script` may be changed at any time."""

    script: Script
    port: int
    host: str = "127.0.0.1"
    scheme: str = "http"
    sent: list[Sent] = field(default_factory=list)
    connections: int = 0
    # Bytes of answers that were written.
    given: int = 0
    context: ssl.SSLContext | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    open: set[socket.socket] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def address(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"

    def url(self, path: str = "team/shop.git") -> str:
        return f"{self.address}/{path}"

    @property
    def methods(self) -> list[str]:
        return [sent.method for sent in self.sent]

    def take(self) -> list[Sent]:
        """What came since the last time."""
        with self.lock:
            taken, self.sent[:] = list(self.sent), []
        return taken


@contextmanager
def stand_in(
    script: Script, *, host: str = "127.0.0.1", port: int = 0, context: ssl.SSLContext | None = None
) -> Iterator[StandIn]:
    """A running server on a free port unless one is named; with a `context` it speaks TLS."""
    listener = socket.create_server((host, port), backlog=BACKLOG)
    server = StandIn(script, listener.getsockname()[1], host=host, context=context)
    server.scheme = "https" if context else "http"
    thread = threading.Thread(target=_accept, args=(listener, server), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        for connection in list(server.open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, server: StandIn) -> None:
    while not server.stopping.is_set():
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        server.connections += 1
        server.open.add(connection)
        number = server.connections
        threading.Thread(target=_serve, args=(connection, server, number), daemon=True).start()


def _serve(connection: socket.socket, server: StandIn, number: int) -> None:
    # What goes wrong here is a client that has left, which is what these tests are about.
    with suppress(OSError), connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(120)
        if server.context is None:
            _converse(connection, server, number)
        else:
            server.open.discard(connection)
            with server.context.wrap_socket(connection, server_side=True) as secured:
                server.open.add(secured)
                _converse(secured, server, number)


def _converse(connection: socket.socket, server: StandIn, number: int) -> None:
    rest = b""
    while True:
        request, rest = _read_request(connection, rest, number)
        if request is None:
            return
        with server.lock:
            server.sent.append(request)
        if not _play(connection, server, server.script(request)):
            return


def _read_request(connection: socket.socket, rest: bytes, number: int) -> tuple[Sent | None, bytes]:
    while b"\r\n\r\n" not in rest:
        if len(rest) > REQUEST_BYTES or not (more := connection.recv(65536)):
            return None, b""
        rest += more
    at = time.monotonic()
    head, _, rest = rest.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    method, target, _ = lines[0].split(" ")
    headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:]))
    lengths = [int(value) for name, value in headers if name.lower() == "content-length"]
    length = lengths[0] if lengths else 0
    assert not any(name.lower() == "transfer-encoding" for name, _ in headers)
    while len(rest) < length:
        if not (more := connection.recv(65536)):
            return None, b""
        rest += more
    return Sent(number, method, target, headers, rest[:length], at), rest[length:]


def _play(connection: socket.socket, server: StandIn, reply: Reply) -> bool:
    """Whether the connection is still there for another request."""
    for step in reply:
        match step:
            case bytes():
                content = step.replace(ADDRESS, server.address.encode())
                connection.sendall(content)
                server.given += len(content)
            case Pause(seconds):
                server.stopping.wait(seconds)
            case Drip(drops, seconds):
                for byte in drops:
                    if server.stopping.wait(seconds):
                        return False
                    connection.sendall(bytes([byte]))
            case Endless(more):
                begun = server.given
                while server.given - begun < ENDLESS_BYTES and not server.stopping.is_set():
                    connection.sendall(more)
                    server.given += len(more)
                return False
            case Hang():
                server.stopping.wait(120)
                return False
            case Close():
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                return False
            case Reset():
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
    return True


def in_order(*replies: Reply) -> Script:
    """The replies one after the other, whatever is asked; the last one for ever."""
    left = list(replies)
    lock = threading.Lock()

    def script(sent: Sent) -> Reply:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return script


NOT_FOUND: Reply = (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",)


def by_method(**replies: Sequence[Reply]) -> Script:
    """Of each method its replies in order, the last one for ever; 404 for a method that has none."""
    scripts = {method: in_order(*found) for method, found in replies.items() if found}

    def script(sent: Sent) -> Reply:
        return scripts[sent.method](sent) if sent.method in scripts else NOT_FOUND

    return script
