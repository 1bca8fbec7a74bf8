"""Bytes of Git servers: packets, advertisements, lists of refs, and the HTTP around them.

The forges' own words are as they were seen from outside; the ids are invented.
"""

from collections.abc import Mapping, Sequence

from tests.core import A, B, C
from tests.workers.poll.conformance.stand_in import Reply, Step

FLUSH = b"0000"
DELIMITER = b"0001"
ADVERTISEMENT = "application/x-git-upload-pack-advertisement"
RESULT = "application/x-git-upload-pack-result"
MAIN, DEV, HEAD = "refs/heads/main", "refs/heads/dev", "HEAD"
TAGS = "refs/tags/*"
LONG = "e" * 64

GITHUB = ("agent=git/github-b60c2b516187", "ls-refs=unborn", "fetch=shallow wait-for-done filter", "server-option",
          "object-format=sha1")  # fmt: skip
GITLAB = ("agent=git/2.50.1.gl1-Linux", "ls-refs=unborn", "fetch=shallow wait-for-done filter", "server-option",
          "object-format=sha1", "bundle-uri")  # fmt: skip
# Gerrit and others on JGit.
JGIT = ("ls-refs", "fetch=shallow", "server-option", "agent=JGit/6-UNKNOWN")
GITEA = ("agent=git/2.43.4", "ls-refs=unborn", "fetch=shallow wait-for-done", "server-option", "object-format=sha1",
         "object-info")  # fmt: skip
# git's own first version 2, which had no object formats to name.
OLD_GIT = ("agent=git/2.18.0", "ls-refs", "fetch=shallow", "server-option")
AZURE_V0 = (
    "multi_ack thin-pack side-band side-band-64k no-progress multi_ack_detailed no-done shallow "
    "allow-tip-sha1-in-want filter symref=HEAD:refs/heads/main"
)
GIT_V0 = (
    "multi_ack thin-pack side-band side-band-64k ofs-delta shallow no-progress include-tag multi_ack_detailed no-done "
    "symref=HEAD:refs/heads/main object-format=sha1 agent=git/2.39.5"
)


def pkt(line: str | bytes) -> bytes:
    content = line.encode() if isinstance(line, str) else line
    return b"%04x" % (len(content) + 4) + content


SERVICE = pkt("# service=git-upload-pack\n") + FLUSH


def v2(*capabilities: str, service: bool = True) -> bytes:
    """An advertisement of version 2 (GitHub's if there are no `capabilities`)."""
    lines = b"".join(pkt(line + "\n") for line in ("version 2", *(capabilities or GITHUB)))
    return (SERVICE if service else b"") + lines + FLUSH


def v0(
    refs: Sequence[tuple[str, str]], capabilities: str = GIT_V0, *, service: bool = True, first: bytes = b""
) -> bytes:
    """An advertisement of version 0 with its `refs` as (name, id); `first` are packets before them."""
    lines = [f"{commit} {name}" for name, commit in refs] or [f"{'0' * 40} capabilities^{{}}"]
    lines[0] += f"\0{capabilities}"
    return (SERVICE if service else b"") + first + b"".join(pkt(line + "\n") for line in lines) + FLUSH


def listed(*lines: str | bytes) -> bytes:
    """The answer to ls-refs; each line without its end."""
    return b"".join(pkt((line.encode() if isinstance(line, str) else line) + b"\n") for line in lines) + FLUSH


def refs_of(refs: Mapping[str, str]) -> bytes:
    return listed(*(f"{commit} {name}" for name, commit in refs.items()))


def http(
    body: bytes = b"", kind: str = "", *, status: str = "200 OK", length: int | None = None, headers: Sequence[str] = ()
) -> bytes:
    """An answer of HTTP/1.1 with its length (or a `length` that is a lie) and these more headers."""
    lines = [f"HTTP/1.1 {status}", *([f"Content-Type: {kind}"] if kind else []), *headers]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunked(body: bytes, kind: str, *, size: int = 7, last: bytes = b"0\r\n\r\n") -> bytes:
    """An answer in chunks of `size` bytes, without a length."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return head + b"".join(b"%x\r\n" % len(part) + part + b"\r\n" for part in parts) + last


def discovery(body: bytes | None = None, *more: Step, **options: object) -> Reply:
    """The answer to GET info/refs."""
    return (http(v2() if body is None else body, ADVERTISEMENT, **options), *more)  # type: ignore[arg-type]


def result(body: bytes, *more: Step, **options: object) -> Reply:
    """The answer to POST git-upload-pack."""
    return (http(body, RESULT, **options), *more)  # type: ignore[arg-type]


def status(line: str, *headers: str, body: bytes = b"told to\n", kind: str = "text/plain") -> Reply:
    """An answer with this status line and these headers."""
    return (http(body, kind, status=line, headers=headers),)


PLAIN = {MAIN: A}
GOOD = result(refs_of(PLAIN))
ALL = refs_of({HEAD: A, MAIN: A, DEV: B, "refs/tags/v1": C})
