"""The supervisor with real processes: it starts again, stops in order, and leaves nothing behind."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TIMEOUT = 20.0
ROOT = Path(__file__).resolve().parents[2]


def wait_for(condition: Callable[[], bool], timeout: float = TIMEOUT) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def running(mark: str) -> list[int]:
    """Processes, zombies apart, whose command line holds `mark`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (
                mark in (path / "cmdline").read_text()
                and (path / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            ):
                found.append(int(path.name))
    return found


class Run:
    """A supervisor in a process of its own; its children's command lines hold `mark`."""

    def __init__(self, folder: Path, body: str, *, terminal: bool = False) -> None:
        self.mark = f"mark-{folder.name}-{os.getpid()}"
        self.output = folder / "output"
        script = folder / "run.py"
        script.write_text(
            "import sys\nfrom fleetsync.supervisor import Child, Supervisor\n"
            f"def python(code): return [sys.executable, '-c', code, {self.mark!r}]\n"
            "supervisor = Supervisor()\n" + textwrap.dedent(body) + "\nsupervisor.run()\n"
        )
        self.terminal: int | None = None
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(script)]
        if terminal:
            pid, self.terminal = pty.fork()
            if pid == 0:
                os.execve(command[0], command, environment)
            self.pid = pid
            os.set_blocking(self.terminal, False)
        else:
            with self.output.open("wb") as output:
                self.process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
            self.pid = self.process.pid
        self._text = ""

    @property
    def text(self) -> str:
        if self.terminal is None:
            return self.output.read_text()
        with contextlib.suppress(OSError):
            self._text += os.read(self.terminal, 65536).decode()
        return self._text

    def says(self, pattern: str, times: int = 1) -> None:
        wait_for(lambda: len(re.findall(pattern, self.text)) >= times)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self, timeout: float = TIMEOUT) -> int:
        """Waits for the supervisor's end; its exit status."""
        status = 0

        def ended() -> bool:
            nonlocal status
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            return pid == self.pid

        wait_for(ended, timeout)
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def starter(body: str, *, terminal: bool = False) -> Run:
        runs.append(Run(tmp_path, body, terminal=terminal))
        return runs[-1]

    yield starter
    for run in runs:
        for pid in [*running(run.mark), run.pid]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.waitpid(run.pid, 0)


SLEEP = "import time; print('up', flush=True); time.sleep(600)"
# Writes down that it was asked to end, and ends.
POLITE = (
    "import signal, sys, time\\n"
    "signal.signal(signal.SIGTERM, lambda *_: (print('leaving', flush=True), sys.exit(0)))\\n"
    "signal.signal(signal.SIGINT, lambda *_: print('interrupted', flush=True))\\n"
    "print('up', flush=True)\\n"
    "while True: time.sleep(0.05)"
)
STUBBORN = (
    "import signal, subprocess, sys, time\\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', *sys.argv[1:]])\\n"
    "print('up', flush=True)\\n"
    "time.sleep(600)"
)


def test_lines_carry_the_name(start: Callable[..., Run]) -> None:
    run = start("""
        supervisor.add(Child("web", python("print('one\\\\ntwo', flush=True); import time; time.sleep(600)")))
        code = "import sys; print('three', end='', file=sys.stderr)"
        supervisor.add(Child("beat", python(code), restart=False))
    """)
    run.says(r"web +\| one\n")
    run.says(r"web +\| two\n")
    run.says(r"beat +\| three\n")


def test_a_child_that_ends_is_started_again_with_backoff(start: Callable[..., Run]) -> None:
    run = start("""supervisor.add(Child("web", python("import time; print('at', time.monotonic()); exit(3)")))""")
    run.says(r"at ", times=3)
    run.says(r"ended with status 3, is started again in 4 s")
    first, second, third = (float(instant) for instant in re.findall(r"at (\S+)", run.text)[:3])
    assert 1.0 <= second - first < 1.9
    assert 2.0 <= third - second < 2.9


def test_one_that_ends_does_not_end_the_others(start: Callable[..., Run]) -> None:
    run = start(f"""
        supervisor.add(Child("once", python("print('bye')"), restart=False))
        supervisor.add(Child("stays", python("{SLEEP}")))
    """)
    run.says("bye")
    run.says(r"stays \| up")
    time.sleep(1.5)
    assert len(running(run.mark)) == 1
    assert run.text.count("bye") == 1


def test_a_child_that_cannot_be_started_is_tried_again(start: Callable[..., Run]) -> None:
    run = start("""supervisor.add(Child("web", ["/nonexistent/program"]))""")
    run.says("cannot be started: .*nonexistent", times=2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_it_stops_in_order_and_ends_with_status_0(start: Callable[..., Run], number: int) -> None:
    run = start(f"""
        supervisor.add(Child("redis", python("{POLITE}"), stop_order=2))
        supervisor.add(Child("web", python("{POLITE}"), stop_order=0))
        supervisor.add(Child("work", python("{POLITE}"), stop_order=1))
    """)
    run.says(r"\| up", times=3)
    run.send(number)
    assert run.end() == 0
    assert re.findall(r"(\w+) +\| leaving", run.text) == ["web", "work", "redis"]
    assert running(run.mark) == []


def test_one_that_does_not_end_is_killed_with_its_group(start: Callable[..., Run]) -> None:
    run = start(f"""supervisor.add(Child("web", python("{STUBBORN}"), grace=0.5))""")
    run.says("up")
    wait_for(lambda: len(running(run.mark)) == 2)
    run.send(signal.SIGTERM)
    assert run.end() == 0
    assert "web | does not end and is killed" in run.text
    assert running(run.mark) == []


def test_another_signal_is_impatient_but_its_echo_is_not(start: Callable[..., Run]) -> None:
    run = start(f"""supervisor.add(Child("web", python("{STUBBORN}"), grace=600))""")
    run.says("up")
    run.send(signal.SIGTERM)
    time.sleep(0.2)
    run.send(signal.SIGTERM)
    time.sleep(1.0)
    assert running(run.mark)
    run.send(signal.SIGINT)
    run.end(5)
    assert running(run.mark) == []


def test_a_supervisor_that_is_killed_takes_its_children_along(start: Callable[..., Run]) -> None:
    run = start(f"""
        supervisor.add(Child("web", python("{SLEEP}")))
        supervisor.add(Child("poll", python("{STUBBORN}"), die_with_parent="KILL"))
    """)
    run.says(r"\| up", times=2)
    # The stubborn one's own child outlives both: nobody is left to tell it. It is not judged.
    before = len(running(run.mark))
    assert before == 3
    run.send(signal.SIGKILL)
    run.end()
    wait_for(lambda: len(running(run.mark)) <= 1)


def test_a_grandchild_in_a_session_of_its_own_is_ended_too(start: Callable[..., Run]) -> None:
    grandchild = (
        "import subprocess, sys\\n"
        "command = [sys.executable, '-c', 'import time; time.sleep(600)', *sys.argv[1:]]\\n"
        "subprocess.Popen(command, start_new_session=True)\\n"
        "print('left one behind')"
    )
    run = start(f"""supervisor.add(Child("git", python("{grandchild}"), restart=False))""")
    run.says("left one behind")
    wait_for(lambda: len(running(run.mark)) == 1)
    run.send(signal.SIGTERM)
    run.end()
    assert running(run.mark) == []


def test_ctrl_c_reaches_the_supervisor_alone(start: Callable[..., Run]) -> None:
    """As in a terminal: the character goes to the whole foreground group, and the children are not in it."""
    run = start(f"""supervisor.add(Child("web", python("{POLITE}")))""", terminal=True)
    run.says("up")
    assert run.terminal is not None
    os.write(run.terminal, b"\x03")
    run.says("leaving")
    assert run.end() == 0
    assert "interrupted" not in run.text
    assert running(run.mark) == []
