"""Failpoints: absent unless asked for, armed by files while a process runs, refused in production."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pytest_django import Settings

from fleetsync import failpoints
from fleetsync.checks import check_secrets

ROOT = Path(__file__).resolve().parents[2]
LOOP = """
import sys, time
from fleetsync.failpoints import FailpointError, hit
while True:
    try:
        hit("here", "shop at prod-eu")
    except FailpointError:
        print("raised", flush=True)
    time.sleep(0.01)
"""


@pytest.fixture
def process(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that comes by the failpoint `here` all the time."""
    environment = {**os.environ, failpoints.VARIABLE: str(tmp_path)}
    return subprocess.Popen([sys.executable, "-c", LOOP], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def arm(folder: Path, **order: object) -> None:
    aside = folder / "aside"
    aside.write_text(json.dumps(order))
    aside.rename(folder / "here")


def hits(folder: Path, count: int) -> list[Path]:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if len(found := sorted(folder.glob("here.hit-*"))) >= count:
            return found
        time.sleep(0.01)
    raise AssertionError(f"{len(found)} hits")


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_it_kills_stops_and_raises_as_often_as_asked(process: subprocess.Popen[str], tmp_path: Path) -> None:
    try:
        arm(tmp_path, action="kill", about="somebody else")
        time.sleep(0.3)
        assert process.poll() is None
        arm(tmp_path, action="raise", about="shop", times=2)
        assert len(hits(tmp_path, 2)) == 2
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["raised\n"] * 2

        arm(tmp_path, action="stop")
        hits(tmp_path, 3)
        end = time.monotonic() + 5
        while state_of(process.pid) != "T" and time.monotonic() < end:
            time.sleep(0.01)
        assert state_of(process.pid) == "T"
        os.kill(process.pid, signal.SIGCONT)

        arm(tmp_path, action="kill")
        assert process.wait(10) == -signal.SIGKILL
        assert [path.name.split("-")[1] for path in hits(tmp_path, 4)] == [str(process.pid)] * 4
        assert not (tmp_path / "here").exists()
    finally:
        process.kill()
        process.wait()


def test_without_the_variable_it_is_an_empty_function() -> None:
    script = "from fleetsync import failpoints as f; print(f.hit is f._nothing)"
    environment = {name: value for name, value in os.environ.items() if name != failpoints.VARIABLE}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_production_refuses_it(settings: Settings) -> None:
    settings.DEBUG, settings.FAILPOINTS_DIR = False, "/somewhere"
    assert "fleetsync.E034" in [message.id for message in check_secrets()]
    settings.FAILPOINTS_DIR = ""
    assert "fleetsync.E034" not in [message.id for message in check_secrets()]
