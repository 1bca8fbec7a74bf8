"""A server of real repositories over smart HTTP, as cheap as one in Python can be: it says itself what it can do and which
branches there are, from loose refs, and starts `git upload-pack` for fetches alone.

    python -m bench.servers.repositories ROOT

Prints its port of 127.0.0.1, and ends with its standard input. Protocol 2 alone, for askers that are ours: this is no server
for anybody else.
"""

import gzip
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FLUSH, DELIMITER = b"0000", b"0001"
ENVIRONMENT = {
    "PATH": os.environ.get("PATH", os.defpath),
    "HOME": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_PROTOCOL": "version=2",
}
ANY_COMMIT = ("-c", "uploadpack.allowAnySHA1InWant=true", "-c", "uploadpack.allowFilter=true", "-c", "safe.directory=*")


def packet(line: bytes) -> bytes:
    return b"%04x" % (len(line) + 4) + line


ADVERTISED = (
    packet(b"# service=git-upload-pack\n")
    + FLUSH
    + b"".join(map(packet, (b"version 2\n", b"agent=bench\n", b"ls-refs=unborn\n", b"fetch=shallow filter\n")))
    + packet(b"server-option\n")
    + packet(b"object-format=sha1\n")
    + FLUSH
)


def lines_of(body: bytes) -> list[bytes]:
    """The data packets of a request."""
    lines, at = [], 0
    while at + 4 <= len(body):
        length = int(body[at : at + 4], 16)
        if length > 4:
            lines.append(body[at + 4 : at + length].rstrip(b"\n"))
        at += max(length, 4)
    return lines


def listed(folder: Path, body: bytes) -> bytes:
    """The answer to ls-refs: HEAD and the loose branches whose names begin as was asked."""
    prefixes = tuple(line[11:] for line in lines_of(body) if line.startswith(b"ref-prefix ")) or (b"",)
    found = {}
    branches = folder / "refs" / "heads"
    for path in sorted(branches.rglob("*")):
        if path.is_file() and path.suffix != ".lock":
            found[f"refs/heads/{path.relative_to(branches)}".encode()] = path.read_bytes().strip()
    answer = b""
    target = (folder / "HEAD").read_bytes().strip().removeprefix(b"ref: ")
    if target in found and b"HEAD".startswith(prefixes):
        answer += packet(found[target] + b" HEAD symref-target:" + target + b"\n")
    return answer + b"".join(packet(c + b" " + r + b"\n") for r, c in found.items() if r.startswith(prefixes)) + FLUSH


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    root = Path()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if not path.endswith("/info/refs") or not self._folder(path.removesuffix("/info/refs")):
            self._answer(404, "text/plain", b"no repository\n")
            return
        self._answer(200, "application/x-git-upload-pack-advertisement", ADVERTISED)

    def do_POST(self) -> None:
        body = self._body()
        folder = self._folder(self.path.removesuffix("/git-upload-pack"))
        if folder is None:
            self._answer(404, "text/plain", b"no repository\n")
            return
        if b"command=ls-refs" in body[:64]:
            answer = listed(folder, body)
        else:
            command = ["git", *ANY_COMMIT, "upload-pack", "--stateless-rpc", str(folder)]
            answer = subprocess.run(command, input=body, env=ENVIRONMENT, capture_output=True, check=False).stdout
        self._answer(200, "application/x-git-upload-pack-result", answer)

    def log_message(self, *_: object) -> None:
        pass

    def _folder(self, path: str) -> Path | None:
        folder = self.root / path.strip("/")
        return folder if ".." not in path and (folder / "HEAD").exists() else None

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


def main() -> None:
    Handler.root = Path(sys.argv[1])
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


@dataclass(frozen=True)
class RepositoryServer:
    """It serves what lies below its root as http://127.0.0.1:`port`/…"""

    process: "subprocess.Popen[str]"
    port: int

    def cpu_seconds(self) -> float:
        """What the server and the git processes that it started have used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def repository_server(root: Path) -> Iterator[RepositoryServer]:
    """A server of the repositories below `root`, in a process of its own."""
    command = [sys.executable, "-m", "bench.servers.repositories", str(root)]
    cwd = Path(__file__).resolve().parent.parent.parent
    with subprocess.Popen(command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        try:
            yield RepositoryServer(process, int(process.stdout.readline()))
        finally:
            process.stdin.close()


if __name__ == "__main__":
    main()
