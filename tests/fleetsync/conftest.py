"""A real Redis for the tests of this folder, on a socket of its own."""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_py

from fleetsync import processes


class RedisServer:
    """A redis-server that can be stopped and started again on the same socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "redis.sock"
        self.url = f"redis+socket://{self.socket}"
        self.client = redis_py.Redis(unix_socket_path=str(self.socket))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        child = processes.redis(self.socket, self.folder)
        self.process = subprocess.Popen(child.argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                self.client.ping()
                return
            except redis_py.RedisError:
                assert time.monotonic() < deadline, "redis-server does not answer"
                time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        self.client.close()


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    # Not tmp_path: a socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="fleetsync-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        yield server
        server.stop()
