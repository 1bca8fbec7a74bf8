"""Servers for questions: Git answers from memory (gitanswer.c), and TLS in front of them (nginx)."""

import datetime as dt
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

# What each path of a GitServer has: this branch at this commit, and others.
MAIN = "refs/heads/main"
MAIN_COMMIT = "abc".rjust(40, "0")
READY_SECONDS = 10.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class GitServer:
    """Any path below one of its `ports` of 127.0.0.1 is a repository."""

    process: subprocess.Popen[str]
    ports: tuple[int, ...]

    def url(self, path: str = "repository.git", host: int = 0) -> str:
        """`host` counts through the ports, again and again."""
        return f"http://127.0.0.1:{self.ports[host % len(self.ports)]}/{path}"

    @property
    def base(self) -> str:
        """The URL of the first port, without a path."""
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def cpu_seconds(self) -> float:
        """What the server itself has used so far."""
        return used_by(self.process.pid)


def used_by(pid: int) -> float:
    """Seconds of CPU of one process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def why_no_git_server() -> str:
    """Why none can be started here, or ""."""
    return "" if shutil.which("cc") else "there is no C compiler: apt install gcc libc6-dev"


@contextmanager
def git_server(*, refs: int = 6, delay_ms: int = 0, ports: int = 1) -> Iterator[GitServer]:
    """A server whose repositories have so many `refs`, each answer held back for `delay_ms`, on so many ports (each one is
    a Host for fleetsync). It is compiled first.
    """
    with tempfile.TemporaryDirectory(prefix="gitanswer-") as folder:
        program = Path(folder) / "gitanswer"
        source = Path(__file__).with_name("gitanswer.c")
        subprocess.run(["cc", "-O2", "-o", program, source], check=True)
        command = [str(program), "-r", str(refs), "-d", str(delay_ms), "-n", str(ports)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout
                word, *found = process.stdout.readline().split()
                if word != "ready":
                    raise RuntimeError(f"gitanswer said {word!r}")
                yield GitServer(process, tuple(map(int, found)))
            finally:
                process.send_signal(signal.SIGTERM)


@dataclass(frozen=True)
class TlsServer:
    """nginx with a certificate for 127.0.0.1, of an authority whose certificate is `ca` (PEM, also in `ca_file`)."""

    process: "subprocess.Popen[bytes]"
    port: int
    ca: str
    ca_file: Path

    @property
    def base(self) -> str:
        """Its URL, without a path."""
        return f"https://127.0.0.1:{self.port}"

    def url(self, path: str = "repository.git") -> str:
        return f"{self.base}/{path}"

    @property
    def cpu_seconds(self) -> float:
        """What nginx has used so far."""
        return used_by(self.process.pid)


def why_no_tls_server() -> str:
    """Why none can be started here, or ""."""
    return "" if _nginx() else "nginx is missing: apt install nginx-light"


def _nginx() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


NGINX = """
daemon off; master_process off; worker_processes 1; worker_rlimit_nofile 65536; pid {folder}/pid; error_log {folder}/error;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s; client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi; ssl_certificate {folder}/certificate.pem; ssl_certificate_key {folder}/key.pem;
  ssl_session_cache shared:s:8m; ssl_protocols TLSv1.2 TLSv1.3;
  upstream git {{ server 127.0.0.1:{upstream}; keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} ssl backlog=4096;
    location / {{ proxy_pass http://git; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffers 16 64k; }}
  }}
}}
"""


@contextmanager
def tls_server(upstream: GitServer) -> Iterator[TlsServer]:
    """TLS in front of `upstream`, over connections that are kept on both sides."""
    with tempfile.TemporaryDirectory(prefix="nginx-") as name, socket.socket() as free:
        folder = Path(name)
        # nginx without a master stays the user who started it, so the folder may stay private.
        ca = _write_certificate(folder)
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
        free.close()
        (folder / "conf").write_text(NGINX.format(folder=folder, port=port, upstream=upstream.ports[0]))
        command = [_nginx() or "nginx", "-c", f"{name}/conf", "-p", name, "-e", f"{name}/error"]
        with subprocess.Popen(command) as process:
            try:
                _wait_for(port, process)
                yield TlsServer(process, port, ca, folder / "ca.pem")
            finally:
                process.send_signal(signal.SIGTERM)


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    ends_at = time.monotonic() + READY_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > ends_at:
                raise
            time.sleep(0.05)
        else:
            return


def _write_certificate(folder: Path) -> str:
    """An authority in ca.pem, and certificate.pem with key.pem for 127.0.0.1. Answers the authority's text."""
    now = dt.datetime.now(dt.UTC)

    def certificate(
        name: str, of: ec.EllipticCurvePrivateKey, issuer: str, by: ec.EllipticCurvePrivateKey, authority: bool
    ) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(of.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
        )
        return builder.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    root, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = certificate("bench", root, "bench", root, True)
    (folder / "ca.pem").write_bytes(ca)
    (folder / "certificate.pem").write_bytes(certificate("127.0.0.1", leaf, "bench", root, False))
    (folder / "key.pem").write_bytes(
        leaf.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return ca.decode()
