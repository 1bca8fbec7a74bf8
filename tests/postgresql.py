"""A PostgreSQL server of the tests' own, so that a test may stop, restart and freeze it."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from tests.end_to_end.stack import free_port

# PostgreSQL refuses to run as root.
USER = "nobody"


def programs() -> Path | None:
    """The folder of initdb and pg_ctl, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


class PostgreSQL:
    """One server on loopback in a new folder; `url` names its database `postgres`. `durable`: with fsync, as in life."""

    def __init__(self, *, durable: bool = False) -> None:
        found = programs()
        if found is None:
            raise FileNotFoundError("PostgreSQL's server programs are not installed: apt install postgresql")
        self.programs = found
        self.durable = durable
        self.folder = Path(tempfile.mkdtemp(prefix="fs-pg-"))
        self.data = self.folder / "data"
        self.port = free_port()
        self.url = f"postgres://fleetsync@127.0.0.1:{self.port}/postgres"
        if os.getuid() == 0:
            os.chown(self.folder, pwd.getpwnam(USER).pw_uid, -1)
        # Trust is safe: it listens on the loopback of this machine, for as long as the tests run.
        self._run(
            "initdb", "--username=fleetsync", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync",
            f"--pgdata={self.data}",
        )  # fmt: skip
        self.start()

    def start(self) -> None:
        options = (
            f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories={self.folder} "
            f"-c fsync={'on' if self.durable else 'off'} -c max_connections=200"
        )
        self._ctl("start", f"--log={self.folder}/log", f"--options={options}")

    def stop(self, mode: str = "fast") -> None:
        """`fast` ends sessions in order, `immediate` as a crash does."""
        self._ctl("stop", f"--mode={mode}")

    def restart(self) -> None:
        """As after a crash: no session is ended in order, the log is replayed."""
        self.stop("immediate")
        self.start()

    def close(self) -> None:
        pid = self.data / "postmaster.pid"
        if pid.exists():
            os.kill(int(pid.read_text().split()[0]), signal.SIGCONT)
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ctl(self, verb: str, *more: str) -> None:
        self._run("pg_ctl", verb, f"--pgdata={self.data}", "--wait", "--silent", *more)

    def _run(self, program: str, *arguments: str) -> None:
        become = ["runuser", "-u", USER, "--"] if os.getuid() == 0 else []
        done = subprocess.run(
            [*become, str(self.programs / program), *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr.decode()
