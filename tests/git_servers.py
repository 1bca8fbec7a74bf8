"""Real git for tests: bare repositories made with plain git, and a smart HTTP server that can be told to
misbehave.
"""

import base64
import gzip
import io
import os
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ENVIRONMENT = {
    "PATH": os.environ.get("PATH", os.defpath),
    "HOME": os.devnull,
    "LC_ALL": "C.UTF-8",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.com",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.com",
}


def git(*arguments: str, folder: Path | None = None, stdin: bytes = b"") -> str:
    """Plain git in a clean environment; its output without the last line end."""
    command = ["git", *(["-C", str(folder)] if folder else []), *arguments]
    done = subprocess.run(command, input=stdin, env=ENVIRONMENT, capture_output=True)
    assert done.returncode == 0, f"{command}: {done.stderr.decode()}"
    return done.stdout.decode().rstrip("\n")


@dataclass(frozen=True)
class Link:
    """A symbolic link, as a value in Repository.commit()."""

    target: str


@dataclass(frozen=True)
class Script:
    """An executable file."""

    content: bytes


@dataclass(frozen=True)
class Submodule:
    """A gitlink."""

    commit: str


Content = str | bytes | Link | Script | Submodule | None


@dataclass(frozen=True)
class Repository:
    """A bare repository at `folder`."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, *, branch: str = "main", object_format: str = "sha1") -> "Repository":
        folder.parent.mkdir(parents=True, exist_ok=True)
        options = ["--bare", "--quiet", "--template=", f"--initial-branch={branch}"]
        git("init", *options, f"--object-format={object_format}", "--", str(folder))
        return cls(folder)

    @property
    def file_url(self) -> str:
        return f"file://{self.folder}"

    def git(self, *arguments: str, stdin: bytes = b"") -> str:
        return git(*arguments, folder=self.folder, stdin=stdin)

    def commit(
        self,
        files: Mapping[str, Content],
        *,
        branch: str = "main",
        message: str = "a change",
        when: int = 1_700_000_000,
        parent: str | None = None,
    ) -> str:
        """Add, change and (None) remove files on top of `branch`, or of `parent`; one process. Answers the
        commit.
        """
        stream = io.BytesIO()
        stream.write(b"feature done\n")
        ref = f"refs/heads/{branch}"
        text = message.encode()
        stream.write(
            f"commit {ref}\nmark :1\ncommitter Ada <ada@example.com> {when} +0000\ndata {len(text)}\n".encode()
        )
        stream.write(text + b"\n")
        tip = parent or self.head(branch)
        if tip:
            stream.write(f"from {tip}\n".encode())
        for path, content in files.items():
            stream.write(_change(path, content))
        stream.write(b"get-mark :1\ndone\n")
        return self.git("fast-import", "--quiet", "--force", "--date-format=raw", stdin=stream.getvalue())

    def head(self, branch: str = "main") -> str:
        """The commit of a branch, or ""."""
        return self.git("for-each-ref", "--format=%(objectname)", f"refs/heads/{branch}")

    def tag(self, name: str, commit: str, *, message: str = "") -> None:
        """A tag; with a message an annotated one."""
        self.git("tag", *(["-a", "-m", message] if message else []), name, commit)

    def raw_tree(self, *items: tuple[str, bytes, str]) -> str:
        """A tree object of (mode, name, id) exactly as given, with no check at all. Answers its id."""
        data = b"".join(mode.encode() + b" " + name + b"\0" + bytes.fromhex(i) for mode, name, i in items)
        return self.git("hash-object", "-t", "tree", "-w", "--stdin", "--literally", stdin=data)

    def blob(self, content: bytes) -> str:
        return self.git("hash-object", "-w", "--stdin", stdin=content)

    def commit_tree(self, tree: str, *, branch: str = "main") -> str:
        """A commit of any tree, on `branch`."""
        commit = self.git("commit-tree", "-m", "a tree", tree)
        self.git("update-ref", f"refs/heads/{branch}", commit)
        return commit


def _change(path: str, content: Content) -> bytes:
    name = b'"' + path.encode().replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n") + b'"'
    match content:
        case None:
            return b"D " + name + b"\n"
        case Submodule(commit):
            return b"M 160000 " + commit.encode() + b" " + name + b"\n"
        case Link(target):
            mode, data = b"120000", target.encode()
        case Script(script):
            mode, data = b"100755", script
        case str():
            mode, data = b"100644", content.encode()
        case _:
            mode, data = b"100644", bytes(content)
    return b"M " + mode + b" inline " + name + b"\ndata %d\n" % len(data) + data + b"\n"


def make_many(root: Path, count: int, files: Mapping[str, Content] | None = None) -> list[Repository]:
    """`count` repositories root/0000000.git … with one equal commit each; thousands take seconds, not
    minutes.
    """
    first = Repository.make(root / "0000000.git")
    first.commit(files or {"deploy/app.yaml": "kind: ConfigMap\n"})
    repositories = [first]
    for number in range(1, count):
        folder = root / f"{number:07}.git"
        shutil.copytree(first.folder, folder)
        repositories.append(Repository(folder))
    return repositories


@dataclass(frozen=True)
class Request:
    """One line of a server's log."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def authorization(self) -> str:
        return self.headers.get("authorization", "")

    @property
    def of(self) -> str:
        """Whether a "poll" asks or a "fetch", which is git's own."""
        return "poll" if self.headers.get("user-agent", "") == "git/fleetsync" else "fetch"


@dataclass
class Behaviour:
    """What the server does instead of answering; change it at any time.

    `status` answers with that code (and `retry_after`); `redirect_to` is a prefix that the path is appended
    to; `hang_before` waits before any answer; `hang_after_bytes` sends so much of a longer answer and waits;
    `content_type` and `body` replace the answer; `reset` breaks the connection off; `trickle_seconds` is a pause
    after each byte of the answer; `delay_seconds` is a pause before a good or a replaced one. All concern the
    requests whose path and query contain `only`, and those `of` a "poll" or a "fetch" alone if it says so.
    """

    status: int = 0
    retry_after: str = ""
    redirect_to: str = ""
    hang_before: bool = False
    hang_after_bytes: int | None = None
    delay_seconds: float = 0.0
    content_type: str = ""
    body: bytes | None = None
    reset: bool = False
    trickle_seconds: float = 0.0
    only: str = ""
    of: str = ""

    def concerns(self, request: Request) -> bool:
        return self.only in f"{request.path}?{request.query}" and self.of in ("", request.of)


@dataclass
class GitServer:
    """Serves every bare repository below `root` at http://127.0.0.1:port/<its path>."""

    root: Path
    username: str = ""
    password: str = ""
    behaviour: Behaviour = field(default_factory=Behaviour)
    log: list[Request] = field(default_factory=list)
    port: int = 0
    protocol_v2: bool = True
    scheme: str = "http"
    _stopping: threading.Event = field(default_factory=threading.Event)
    _context: ssl.SSLContext | None = None

    @property
    def address(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def use_tls(self, certificate: Path, key: Path) -> None:
        """From now on every connection speaks TLS."""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self.scheme = "https"

    def url(self, repository: Repository) -> str:
        return f"{self.address}/{repository.folder.relative_to(self.root)}"

    def requests(self, part: str = "") -> list[Request]:
        """The log's requests whose path and query contain `part`."""
        return [request for request in list(self.log) if part in f"{request.path}?{request.query}"]

    def polls(self, part: str = "") -> list[Request]:
        """What polls asked for their refs: one of these for each poll, once it is known what the server speaks."""
        return [request for request in self.requests(part) if request.of == "poll" and request.method == "POST"]

    def wait_for_request(self, part: str = "", *, of: str = "", seconds: float = 20.0) -> Request:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := [request for request in self.requests(part) if of in ("", request.of)]:
                return found[-1]
            time.sleep(0.01)
        raise AssertionError(f"no request with {part!r} in {seconds} s")

    def hang(self) -> None:
        """Wait until the server stops; handlers call this."""
        self._stopping.wait(120)


@contextmanager
def git_server(root: Path, *, username: str = "", password: str = "", port: int = 0) -> Iterator[GitServer]:
    """A running server on 127.0.0.1, on a free port unless one is named."""
    server = GitServer(root.resolve(), username, password)

    class Handler(_Handler):
        git_server = server

    http = _Http(("127.0.0.1", port), Handler)
    server.port = http.server_port
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server._stopping.set()
        http.shutdown()
        http.server_close()
        thread.join(5)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed in the middle of an answer are what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 120
    git_server: GitServer
    disable_nagle_algorithm = True

    def setup(self) -> None:
        # In the connection's own thread: a slow handshake holds up nobody else.
        if context := self.git_server._context:
            self.request = context.wrap_socket(self.request, server_side=True)
        super().setup()

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Quiet: the requests are in GitServer.log."""

    def _handle(self) -> None:
        server, behaviour = self.git_server, self.git_server.behaviour
        parts = urlsplit(self.path)
        body = self._body()
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, parts.path, parts.query, headers, body, time.monotonic())
        server.log.append(request)
        meant = behaviour.concerns(request)
        if meant and self._misbehave(behaviour):
            return
        if server.password and not self._is_authorized():
            self._answer(401, {"WWW-Authenticate": 'Basic realm="git"'}, b"who are you?\n")
            return
        if meant and behaviour.delay_seconds:
            time.sleep(behaviour.delay_seconds)
        self._backend(parts.path, parts.query, body, behaviour if meant else Behaviour())

    def _misbehave(self, behaviour: Behaviour) -> bool:
        if behaviour.hang_before:
            self.git_server.hang()
            self.close_connection = True
        elif behaviour.reset:
            # Closed with a linger of no time at all: the client gets RST instead of an end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        elif behaviour.status:
            more = {"Retry-After": behaviour.retry_after} if behaviour.retry_after else {}
            self._answer(behaviour.status, more, b"told to\n")
        elif behaviour.redirect_to:
            self._answer(302, {"Location": behaviour.redirect_to + self.path}, b"")
        elif behaviour.body is not None:
            time.sleep(behaviour.delay_seconds)
            self._answer(200, {"Content-Type": behaviour.content_type or "text/html"}, behaviour.body)
        else:
            return False
        return True

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(chunks)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        match self.headers.get("Content-Encoding", ""):
            case "gzip":
                return gzip.decompress(body)
            case "deflate":
                return zlib.decompress(body)
        return body

    def _is_authorized(self) -> bool:
        pair = f"{self.git_server.username}:{self.git_server.password}"
        return self.headers.get("Authorization", "") == "Basic " + base64.b64encode(pair.encode()).decode()

    def _backend(self, path: str, query: str, body: bytes, behaviour: Behaviour) -> None:
        env = {
            **ENVIRONMENT,
            "GIT_PROJECT_ROOT": str(self.git_server.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": unquote(path),
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "REMOTE_ADDR": "127.0.0.1",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", "") if self.git_server.protocol_v2 else "",
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode("latin-1").split("\r\n") if ": " in line)
        status = int(headers.pop("Status", "200").split(" ")[0])
        cut = behaviour.hang_after_bytes
        if behaviour.trickle_seconds:
            self._answer(status, headers, content, send=0)
            for byte in content:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if self.git_server._stopping.wait(behaviour.trickle_seconds):
                    break
            self.close_connection = True
        elif cut is not None and len(content) > cut:
            self._answer(status, headers, content, send=cut)
            self.git_server.hang()
            self.close_connection = True
        else:
            self._answer(status, headers, content)

    def _answer(self, status: int, headers: Mapping[str, str], content: bytes, *, send: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:send])
        self.wfile.flush()
