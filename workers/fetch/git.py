"""git as a child process. The only module that imports GitPython, and it uses one method of it: Git.execute.

Rules that hold for every call:

1. The command is a fixed list of words. What a user gave reaches git as a checked object id, as a config
   value in the environment, or on standard input, never as an argument that could be an option.
2. The environment is exactly the one passed in. GitPython adds its own to os.environ; `env -u` takes the rest
   away.
3. The child leads a session of its own. At its deadline, or when the caller fails, the whole group is
   SIGKILLed and reaped.
4. If this process dies, the child does too (workers/git_child.py), so it must not outlive the thread that started
   it; or it ends by itself, because it reads from us.
"""

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from workers.git_child import dies_with_us
from workers.git_errors import Cleaner, GitError, GitMissing, GitTimeout, MirrorCorrupt, error_from_os
from workers.git_words import error_from

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # a missing git is an error of the call, not of the import
from git.cmd import Git
from git.exc import GitCommandNotFound

STDERR_BYTES = 64 * 1024
# Seconds that the pipes of a killed group get to close: SIGKILL is certain, its moment is not.
REAP_SECONDS = 10.0
WATCH_SECONDS = 0.2
CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class GitCall:
    """What every child of one conversation has in common.

    `env` is complete. `deadline` is an instant of time.monotonic(). `clean` makes git's words fit to be
    shown. `inherit` are descriptors that the child keeps open (a mirror's lock). `max_file_bytes` is the
    largest file that git may write; 0 is no limit.
    """

    git_dir: Path
    env: Mapping[str, str]
    deadline: float
    clean: Cleaner
    inherit: tuple[int, ...] = ()
    max_file_bytes: int = 0


class GitFailed(Exception):  # a failed exit, before anybody knows what it means
    """git ended with `status`; negative is a signal. `error` is what its standard error says."""

    def __init__(self, status: int, stderr: bytes, error: GitError) -> None:
        super().__init__(f"git ended with status {status}")
        self.status = status
        self.stderr = stderr
        self.error = error


def run(
    call: GitCall,
    *arguments: str,
    stdin: bytes = b"",
    max_output_bytes: int = 1024 * 1024,
    watch: Callable[[], None] | None = None,
) -> bytes:
    """Run git to its end; answers its standard output.

    `watch` is called a few times a second; what it raises kills git and is passed on. Raises GitFailed for a
    status that is not 0, GitTimeout at the deadline, GitError for an output beyond the limit, GitMissing
    without git.
    """
    with child(call, *arguments, stdin=bool(stdin)) as process:
        return process.communicate(stdin, max_output_bytes, watch)


def run_and_hear(call: GitCall, *arguments: str, watch: Callable[[], None] | None = None) -> str:
    """run() for what git warns of while it ends well: answers its standard error, uncleaned."""
    with child(call, *arguments, stdin=False) as process:
        process.communicate(b"", 0, watch)
        return process.said


class Child:
    """A running git, read with a deadline. Made by child(), which also ends it."""

    def __init__(self, call: GitCall, process: Any) -> None:
        self._call = call
        self._process = process
        self._stderr = bytearray()
        self._buffer = bytearray()
        self._request = b""
        self._selector = selectors.DefaultSelector()
        for stream, name in ((process.stdout, "out"), (process.stderr, "err")):
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ, name)

    @property
    def pid(self) -> int:
        """The process group too."""
        return cast(int, self._process.pid)

    @property
    def said(self) -> str:
        """The end of its standard error so far."""
        return self._stderr.decode("utf-8", "replace")

    def write(self, data: bytes) -> None:
        """Small requests only: at most a pipe's buffer (64 KiB) may be unanswered."""
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self.failure() from None

    def read_line(self) -> bytes:
        """One line without its end."""
        while (end := self._buffer.find(b"\n")) < 0:
            self._fill()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def read_some(self, size: int) -> bytes:
        """At least one byte and at most `size`."""
        if not self._buffer:
            self._fill()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def communicate(self, stdin: bytes, max_output_bytes: int, watch: Callable[[], None] | None) -> bytes:
        """`stdin` may be of any size: it is handed over as git takes it, within the deadline."""
        if stdin:
            self._request = stdin
            os.set_blocking(self._process.stdin.fileno(), False)
            self._selector.register(self._process.stdin, selectors.EVENT_WRITE, "in")
        while self._pump(watch):
            if len(self._buffer) > max_output_bytes:
                raise GitError(f"git wrote more than {max_output_bytes} bytes where less was expected.")
        if watch:
            watch()
        # git works round a damaged pack where it can, ends well, and would stumble over it for ever.
        if self._status() != 0 or isinstance(error_from(bytes(self._stderr), self._call.clean), MirrorCorrupt):
            raise self.failure()
        return bytes(self._buffer)

    def failure(self) -> GitFailed:
        """Why the process ended; waits for its end, until the deadline."""
        while self._pump(None):
            self._buffer.clear()
        stderr = bytes(self._stderr)
        return GitFailed(self._status(), stderr, error_from(stderr, self._call.clean))

    def close(self) -> None:
        """Kill whatever is left of the group, and reap it."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._process.stdin:
            self._end_request()
        # Who holds a pipe is not dead yet, and might still write a file that is about to be removed.
        end = time.monotonic() + REAP_SECONDS
        while self._selector.get_map() and time.monotonic() < end:
            self._step(0.05)
        self._selector.close()
        self._process.proc.wait()
        for stream in (self._process.stdout, self._process.stderr):
            stream.close()

    def _fill(self) -> None:
        before = len(self._buffer)
        while len(self._buffer) == before:
            if not self._pump(None):
                raise self.failure()

    def _pump(self, watch: Callable[[], None] | None) -> bool:
        """Wait for some output; False once both pipes are at their end."""
        left = self._call.deadline - time.monotonic()
        if left <= 0:
            raise GitTimeout(detail=self._call.clean(self._stderr.decode("utf-8", "replace")))
        if not self._selector.get_map():
            return False
        self._step(min(left, WATCH_SECONDS) if watch else left)
        if watch:
            watch()
        return True

    def _step(self, wait_seconds: float) -> None:
        for key, _ in self._selector.select(wait_seconds):
            if key.data == "in":
                self._hand_over()
                continue
            try:
                data = os.read(key.fd, CHUNK_BYTES)
            except BlockingIOError:
                continue
            if not data:
                self._selector.unregister(key.fileobj)
            elif key.data == "out":
                self._buffer += data
            else:
                self._stderr += data
                del self._stderr[:-STDERR_BYTES]

    def _hand_over(self) -> None:
        try:
            self._request = self._request[os.write(self._process.stdin.fileno(), self._request[:CHUNK_BYTES]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._request = b""  # its status says why it reads no more
        if not self._request:
            self._end_request()

    def _end_request(self) -> None:
        with suppress(KeyError, ValueError):  # never registered, or closed already
            self._selector.unregister(self._process.stdin)
        with suppress(OSError):
            self._process.stdin.close()

    def _status(self) -> int:
        """The exit status, or minus the signal. Nothing is reaped here: until close() has killed the group,
        the unreaped leader keeps its number from being given to somebody else.
        """
        while True:
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if ended is not None:
                return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            if time.monotonic() > self._call.deadline:
                raise GitTimeout
            time.sleep(0.0005)


@contextmanager
def child(call: GitCall, *arguments: str, stdin: bool = True, ends_with_its_input: bool = False) -> Iterator[Child]:
    """Start git, and end it with its whole group when the block ends, however it ends.

    `ends_with_its_input`: this command starts nothing and writes no file, and ends once nobody can write to it any more, as
    when this process has died; so it is started without anybody to see to that.
    """
    env = {**call.env, "GIT_DIR": str(call.git_dir)}
    try:
        process = Git(os.sep).execute(
            [*_only(env), *(() if ends_with_its_input else dies_with_us(call.max_file_bytes)), "git", *arguments],
            istream=cast("IO[bytes]", subprocess.PIPE) if stdin else None,  # type: ignore[arg-type]
            as_process=True,
            env=env,
            start_new_session=True,
            pass_fds=call.inherit,
        )
    except GitCommandNotFound:
        raise GitMissing from None
    except OSError as error:
        raise error_from_os(error) from error
    handle = Child(call, process)
    try:
        yield handle
    finally:
        handle.close()


def _only(env: Mapping[str, str]) -> list[str]:
    # Names alone: a value would show in the process list.
    return ["env", *(word for name in os.environ if name and name not in env for word in ("-u", name))]
