"""A real sshd for tests, on loopback, with host keys, settings and a log of its own."""

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.git_servers import Repository

KEY_TYPES = ("ed25519", "ecdsa", "rsa")
BITS = {"ed25519": [], "ecdsa": ["-b", "256"], "rsa": ["-b", "2048"]}
# Where sshd, run by root, puts the processes that speak with strangers. Debian's service makes it at each start.
PRIVILEGE_SEPARATION = Path("/run/sshd")


def why_not() -> str:
    """Why no sshd can be run here, or ""."""
    for tool in ("ssh", "ssh-keygen", "setpriv"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    if not sshd_path():
        return "sshd is not installed"
    if os.geteuid() == 0:
        try:
            PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
        except OSError as error:
            return f"{PRIVILEGE_SEPARATION} can't be made: {error.strerror}"
    return ""


def sshd_path() -> str | None:
    return shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


def make_key(path: Path, kind: str = "ed25519", *, form: str = "", passphrase: str = "") -> str:
    """A new key pair at `path` and `path`.pub; `form` is "" (OpenSSH's), PEM or PKCS8. Answers the private key's text."""
    form_words = ["-m", form] if form else []
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, *BITS[kind], *form_words, "-N", passphrase, "-C", "fleetsync", "-f", path],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return path.read_text()


def public_key(path: Path) -> str:
    """The type and the key of `path`.pub, without its comment."""
    return " ".join(path.with_name(path.name + ".pub").read_text().split()[:2])


@dataclass
class SshServer:
    """An sshd below `folder`; `settings` are lines of sshd_config. Start it again to have changed ones read."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    host_key_types: tuple[str, ...] = ("ed25519",)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def authorized_keys(self) -> Path:
        return self.folder / "authorized_keys"

    def host_key(self, kind: str = "ed25519") -> Path:
        return self.folder / f"host_{kind}"

    @property
    def user(self) -> str:
        return getpass.getuser()

    def url(self, repository: Repository | Path, *, host: str = "127.0.0.1") -> str:
        folder = repository.folder if isinstance(repository, Repository) else repository
        return f"ssh://{self.user}@{host}:{self.port}{folder}"

    def known_hosts(self, *kinds: str, host: str = "127.0.0.1") -> str:
        """Lines for the host keys of these kinds, all of them by default."""
        return "".join(
            f"[{host}]:{self.port} {public_key(self.host_key(kind))}\n" for kind in kinds or self.host_key_types
        )

    def allow(self, key: Path) -> None:
        with self.authorized_keys.open("a") as file:
            file.write(public_key(key) + "\n")

    def connections(self) -> int:
        """How many it has accepted since it was first started."""
        return len(re.findall(r"^Connection from ", self.log.read_text(), re.MULTILINE)) if self.log.exists() else 0

    def start(self) -> None:
        for kind in self.host_key_types:
            if not self.host_key(kind).exists():
                make_key(self.host_key(kind), kind)
        self.authorized_keys.touch()
        self.port = self.port or _free_port()
        lines = {
            "ListenAddress": f"127.0.0.1:{self.port}",
            "PidFile": "none",
            "AuthorizedKeysFile": str(self.authorized_keys),
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "yes",
            "LogLevel": "VERBOSE",
            "AcceptEnv": "GIT_PROTOCOL",
            # The shell that runs a command shall read no start-up file of whoever runs the tests: it may take its time, and
            # tests kill it in the middle.
            "SetEnv": f"HOME={self.folder}",
            **self.settings,
        }
        text = "".join(f"HostKey {self.host_key(kind)}\n" for kind in self.host_key_types)
        text += "".join(f"{name} {value}\n" for name, value in lines.items() if value)
        (self.folder / "sshd_config").write_text(text)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                # It shall not outlive a test process that is killed.
                [
                    "setpriv",
                    "--pdeathsig",
                    "KILL",
                    sshd_path() or "sshd",
                    "-D",
                    "-e",
                    "-f",
                    self.folder / "sshd_config",
                ],
                stdout=subprocess.DEVNULL,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        _wait_for(self)

    def stop(self) -> None:
        """End it and every connection that it has."""
        if self.process is None:
            return
        self.end_connections()
        self.process.kill()
        self.process.wait()
        self.process = None

    def end_connections(self) -> None:
        """Kill the processes that serve connections; the listener goes on."""
        assert self.process is not None
        for pid in _descendants(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @contextmanager
    def frozen_connections(self) -> Iterator[None]:
        """Those that are there now hear and say nothing; new ones are served."""
        assert self.process is not None
        frozen = _descendants(self.process.pid)
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in frozen:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def sessions(self) -> int:
        """The connections that are served at this moment."""
        assert self.process is not None
        return len(_children(self.process.pid))


@contextmanager
def ssh_server(
    folder: Path, settings: Mapping[str, str] | None = None, *, host_key_types: tuple[str, ...] = ("ed25519",)
) -> Iterator[SshServer]:
    folder.mkdir(parents=True, exist_ok=True)
    server = SshServer(folder, dict(settings or {}), host_key_types)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_for(server: SshServer) -> None:
    """Until it says that it listens: a trial connection would be counted."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        assert server.process is not None and server.process.poll() is None, server.log.read_text()
        if _listens(server.port):
            return
        time.sleep(0.02)
    raise AssertionError(f"sshd does not listen: {server.log.read_text()}")


def _listens(port: int) -> bool:
    """Whether somebody listens on 127.0.0.1:port."""
    wanted = f"0100007F:{port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(words[1] == wanted and words[3] == "0A" for words in lines)


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _descendants(pid: int) -> list[int]:
    found = []
    for child in _children(pid):
        found += [child, *_descendants(child)]
    return found
