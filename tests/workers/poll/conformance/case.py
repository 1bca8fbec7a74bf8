"""One line of the table: what a server does, what the poller concludes, and what it must have sent."""

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from repos.heads import only_asked
from tests.git_servers import ENVIRONMENT
from tests.workers.poll.conformance.answers import MAIN
from tests.workers.poll.conformance.stand_in import Reply, Script, Sent, by_method
from workers.git_environment import RemoteAccess
from workers.poll.engine import Engine, PollRequest, PollResult
from workers.poll.plain import PEELED, parse_refs

Conclusion = Mapping[str, str] | str
SECONDS = 20.0


@dataclass(frozen=True)
class Case:
    """`get` and `post` are the server's answers in order, the last one for ever.

    `says` has one conclusion for each poll: refs, or the cause of an error. `sent` has the methods that each poll must
    have sent, in order and no others. `git` is whether `git ls-remote` is right about the first poll, so that it has to
    say the same.
    """

    name: str
    get: Sequence[Reply] = ()
    post: Sequence[Reply] = ()
    asked: tuple[str, ...] = (MAIN,)
    says: Sequence[Conclusion] = field(default_factory=list)
    sent: Sequence[str] = ("GET POST",)
    git: bool = True
    # What the server names: "sha256" has to be said back, "sha1" may be, and where none is named none must be said.
    object_format: str = "sha1"
    max_refs: int = 1000
    path: str = "team/shop.git"
    access: Mapping[str, str] = field(default_factory=dict)

    def script(self) -> Script:
        """A server that has not been asked anything yet."""
        return by_method(GET=self.get, POST=self.post)


def request(
    url: str, *asked: str, key: int = 1, seconds: float = SECONDS, max_refs: int = 1000, **access: object
) -> PollRequest:
    return PollRequest(key, RemoteAccess(url, **access), asked or (MAIN,), seconds, max_refs)  # type: ignore[arg-type]


def collect(engine: Engine, *, seconds: float = 60.0) -> dict[int, PollResult]:
    """The results of everything in flight."""
    results: dict[int, PollResult] = {}
    end = time.monotonic() + seconds
    while engine.in_flight and time.monotonic() < end:
        results.update({result.key: result for result in engine.wait(0.5)})
    assert not engine.in_flight
    return results


def conclusion(result: PollResult, asked: Sequence[str]) -> Conclusion:
    """What a result says, as a line of the table has it: refs that were asked for and no others, or a cause."""
    if result.error is None:
        assert only_asked(result.refs, asked) == result.refs
        return dict(result.refs)
    assert result.error.message and not result.refs
    return result.error.cause


def git_says(url: str, asked: Sequence[str], *config: str) -> Mapping[str, str] | None:
    """What plain `git ls-remote` says of the same question; None if it fails."""
    settings = [word for pair in ("credential.helper=", *config) for word in ("-c", pair)]
    patterns = [name + suffix for name in asked for suffix in ("", PEELED) if not (suffix and name == "HEAD")]
    done = subprocess.run(
        ["git", *settings, "ls-remote", "--quiet", url, *patterns],
        env={**ENVIRONMENT, "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": ""},
        capture_output=True, timeout=60,
    )  # fmt: skip
    return only_asked(parse_refs(done.stdout), asked) if done.returncode == 0 else None


def packets(body: bytes) -> list[bytes | int]:
    """The packets of a request: contents, and 0 or 1 for a flush and a delimiter."""
    found: list[bytes | int] = []
    while body:
        size = int(body[:4], 16)
        found.append(body[4:size] if size >= 4 else size)
        body = body[max(size, 4) :]
    return found


def check_discovery(sent: Sent) -> None:
    """The first question: what can you do?"""
    assert sent.method == "GET" and sent.target.endswith("/info/refs?service=git-upload-pack")
    assert sent.header("Git-Protocol") == "version=2"
    assert sent.header("User-Agent")
    assert sent.body == b""


def check_ls_refs(sent: Sent, asked: Sequence[str], object_format: str = "sha1") -> None:
    """The one question of every poll after that: these refs, peeled, and no others."""
    assert sent.method == "POST" and sent.target.endswith("/git-upload-pack")
    assert sent.header("Git-Protocol") == "version=2"
    assert sent.header("Content-Type") == "application/x-git-upload-pack-request"
    assert sent.header("Accept") == "application/x-git-upload-pack-result"
    assert int(sent.header("Content-Length")) == len(sent.body)
    words = packets(sent.body)
    at = words.index(1)
    command, arguments = words[:at], words[at + 1 :]
    assert command[0] == b"command=ls-refs\n"
    formats = [word for word in command if isinstance(word, bytes) and word.startswith(b"object-format=")]
    assert formats or object_format != "sha256"
    assert {word.rstrip(b"\n") for word in formats} <= {f"object-format={object_format}".encode()}
    agents = [word for word in command if isinstance(word, bytes) and word.startswith(b"agent=")]
    assert len(command) == 1 + len(formats) + len(agents)
    assert arguments.pop() == 0
    assert arguments.count(b"peel\n") == 1
    prefixes = sorted(word for word in arguments if word not in (b"peel\n", b"symrefs\n", b"unborn\n"))
    assert prefixes == sorted(f"ref-prefix {name.removesuffix('*')}\n".encode() for name in asked)


def check_sent(
    sent: Sequence[Sent], expected: str, asked: Sequence[str], object_format: str = "sha1", *, authorized: bool = False
) -> None:
    """Every request of one poll, in order, and that nothing goes along that nobody asked for."""
    assert " ".join(one.method for one in sent) == expected
    for one in sent:
        if one.method == "GET":
            check_discovery(one)
        else:
            check_ls_refs(one, asked, object_format)
        assert not one.all("Cookie") and not one.all("Referer")
        assert len(one.all("Authorization")) == authorized
