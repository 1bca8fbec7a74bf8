"""What is left to git: its own ls-remote, one process for each request.

Slow (some 8 ms of CPU for each poll) and right by definition: it is git. Every process group is killed at its deadline,
and with this process: the session's thread, which starts them, is a worker's main thread.
"""

import asyncio
import os
import re
import signal
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress

import structlog

from repos.heads import only_asked
from workers.addresses import resolved_soon
from workers.git_child import dies_with_us
from workers.git_environment import AccessError, git_environment
from workers.git_errors import cleaner
from workers.git_words import error_from
from workers.poll.conversation import NOT_GIT, too_many
from workers.poll.engine import PollError, PollRequest, PollResult, timed_out

log = structlog.get_logger(__name__)

# A ref's line is a 64-digit id, a tab and a name; names are at most 4 KiB on servers and short in life.
BYTES_PER_REF = 200
STDERR_BYTES = 64 * 1024
# For a process that was killed to be gone.
KILLED_SECONDS = 5.0
PEELED = "^{}"
# What a server of Git says of its answers, and how to make git print it (without contents, and with secrets left out).
GIT_CONTENT = b"application/x-git-upload-pack-"
TRACE = {"GIT_TRACE_CURL": "2", "GIT_TRACE_CURL_NO_DATA": "1", "GIT_TRACE_REDACT": "1"}
TRACED = re.compile(rb"^.*? http\.c:\d+ .*$\n?", re.MULTILINE)


async def ask_git(request: PollRequest) -> PollResult:
    """Never raises for what a remote does."""
    started = time.monotonic()

    def failed(cause: str, message: str) -> PollResult:
        return PollResult(request.key, time.monotonic() - started, error=PollError(cause, message))

    try:
        # One deadline for all of it: the lease outlasts it once.
        async with asyncio.timeout(request.timeout_seconds):
            access = await resolved_soon(request.access)
            with git_environment(access) as environment:
                output, errors, status = await _run(request, environment.env)
                clean = cleaner(environment.secrets)
                if not output and not status and request.access.scheme in ("http", "https"):
                    # git takes a login page for a repository without refs; it must not be taken for deleted branches.
                    output, errors, status = await _run(request, {**environment.env, **TRACE})
                    if not output and not status and GIT_CONTENT not in errors:
                        return PollResult(request.key, time.monotonic() - started, error=NOT_GIT)
                    errors = TRACED.sub(b"", errors)
    except AccessError as error:
        return failed(error.cause, str(error))
    except TimeoutError:
        return PollResult(request.key, time.monotonic() - started, error=timed_out(request))
    except OSError as error:
        return failed("git-missing", f"git could not be started: {error.strerror}")
    except Exception:  # (one poll's fault must not end the session, which holds the leases of fifty)
        log.exception("a poll failed in a way that is not known", repository=request.access.url)
        return failed("internal", "the poll failed inside fleetsync: see the worker's log")
    if status != 0:
        failure = error_from(errors, clean)
        return failed(failure.cause, str(failure))
    refs = parse_refs(output)
    if len(output) >= request.max_refs * BYTES_PER_REF or len(refs) > request.max_refs:
        return PollResult(request.key, time.monotonic() - started, error=too_many(request))
    # git takes a name for the end of one as well.
    return PollResult(request.key, time.monotonic() - started, only_asked(refs, request.refs))


def parse_refs(output: bytes) -> dict[str, str]:
    """The refs in the output of ls-remote ({full name: commit}); an annotated tag stands for the commit that it names."""
    refs: dict[str, str] = {}
    peeled: dict[str, str] = {}
    # Not splitlines(), which also divides at characters that a ref may have in its name.
    for line in output.decode("utf-8", "replace").split("\n"):
        commit, separator, name = line.partition("\t")
        if not separator or len(commit) not in (40, 64):
            continue
        if name.endswith(PEELED):
            peeled[name.removesuffix(PEELED)] = commit
        else:
            refs[name] = commit
    return refs | peeled


async def _run(request: PollRequest, env: dict[str, str]) -> tuple[bytes, bytes, int]:
    """Standard output, standard error and exit status. The whole group is dead on every way out, a deadline's too."""
    patterns = [name + suffix for name in request.refs for suffix in ("", PEELED) if not (suffix and name == "HEAD")]
    process = await asyncio.create_subprocess_exec(
        *dies_with_us(), "git", "ls-remote", "--quiet", "origin", *patterns,
        stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=env, cwd="/", start_new_session=True,
    )  # fmt: skip
    most = request.max_refs * BYTES_PER_REF
    reading = asyncio.ensure_future(_read_first(process.stderr, STDERR_BYTES))
    try:
        output = await _read(process.stdout, most)
        if len(output) >= most:
            return output, b"", 0  # more than is wanted, and nobody waits for the rest
        errors = await reading
        return output, errors, await process.wait()
    finally:
        reading.cancel()
        await asyncio.wait([reading])
        await _kill_group(process)


async def _read(stream: asyncio.StreamReader | None, most: int) -> bytes:
    """What the stream gives until its end, or until there are `most` bytes of it."""
    chunks: list[bytes] = []
    size = 0
    while stream is not None and size < most and (chunk := await stream.read(65536)):
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)


async def _read_first(stream: asyncio.StreamReader | None, most: int) -> bytes:
    """The first `most` bytes; the rest is read as well, or its writer would wait for ever."""
    found = await _read(stream, most)
    while stream is not None and await stream.read(65536):
        pass
    return found[:most]


async def _kill_group(process: Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # Read to the end of its pipes: where more is waiting than was wanted, asyncio never sees that a process has ended.
    with suppress(TimeoutError):
        async with asyncio.timeout(KILLED_SECONDS):
            await process.communicate()
