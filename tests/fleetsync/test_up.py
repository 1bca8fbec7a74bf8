"""`manage.py up`, which `make run` becomes, with everything that it starts."""

import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetsync import processes

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT = 90.0

pytestmark = pytest.mark.end_to_end


class Up:
    """A running `manage.py up` with a data folder and a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.output = folder.with_suffix(".log")
        self.start()

    def start(self) -> None:
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                processes.manage("up"), cwd=ROOT, env=self.environment(), stdout=output, stderr=output
            )

    def environment(self, **changes: str) -> dict[str, str]:
        # No HOME: nothing may be needed from it.
        return {"PATH": os.environ["PATH"], "DATA_DIR": str(self.folder), "PORT": str(self.port), **changes}

    @property
    def text(self) -> str:
        return self.output.read_text()

    def wait_for_the_demo(self) -> None:
        """Until its second commit was delivered, which takes everything that there is."""
        deadline = time.monotonic() + START_TIMEOUT
        while "delivered the second commit" not in self.text:
            assert self.process.poll() is None, self.text
            assert "The demo failed" not in self.text, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.1)

    def left(self) -> list[str]:
        """Command lines of the living processes that were started with this data folder."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"DATA_DIR={self.folder}\0" in (path / "environ").read_text(errors="replace"):
                    found.append((path / "cmdline").read_text().replace("\0", " "))
        return found

    def second(self, **changes: str) -> str:
        """What a second start with other settings says when it is refused."""
        done = subprocess.run(
            processes.manage("up"),
            cwd=ROOT,
            env=self.environment(**changes),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        return done.stderr


@pytest.fixture
def up() -> Iterator[Up]:
    # A short path: Redis' socket lies below it.
    with tempfile.TemporaryDirectory(prefix="fleetsync-") as folder:
        up = Up(Path(folder) / "data")
        yield up
        if up.process.poll() is None:
            up.process.terminate()
        up.process.wait(60)


def test_it_shows_the_demo_and_leaves_nothing_but_data(up: Up) -> None:
    up.wait_for_the_demo()
    assert stat.S_IMODE((up.folder / "admin_password").stat().st_mode) == 0o600
    assert stat.S_IMODE(up.folder.stat().st_mode) == 0o700
    assert (up.folder / "admin_password").read_text() in up.text
    times = [float(seconds) for seconds in re.findall(r"delivered the \w+ commit \w+ in ([\d.]+) s", up.text)]
    assert len(times) == 2
    file = up.folder / "clusters" / "demo" / "demo" / "current" / "deploy" / "message.txt"
    assert "number 2" in file.read_text()
    # A second start is refused, by what it would have in common.
    assert "fleetsync runs already on the data folder" in up.second()
    with tempfile.TemporaryDirectory(prefix="fleetsync-") as other:
        assert f"Port {up.port} is in use" in up.second(DATA_DIR=other)
    up.process.terminate()
    assert up.process.wait(60) == 0, up.text
    assert up.left() == []
    assert [line for line in up.text.splitlines() if "is killed" in line] == []
    assert "Traceback" not in up.text


def test_a_killed_one_takes_everything_along_and_the_next_goes_on(up: Up) -> None:
    up.wait_for_the_demo()
    password = (up.folder / "admin_password").read_text()
    os.kill(up.process.pid, signal.SIGKILL)
    up.process.wait(10)
    deadline = time.monotonic() + 20
    while up.left():
        assert time.monotonic() < deadline, up.left()
        time.sleep(0.1)
    up.start()
    up.wait_for_the_demo()
    assert password in up.text
