"""What git's words mean, and those of the servers behind it: patterns, and the errors that they tell of. Pure."""

import re
from collections.abc import Sequence
from itertools import takewhile

from workers.git_errors import (
    AccessRefused,
    AuthenticationFailed,
    BadObjects,
    Cleaner,
    CommitNotFound,
    DiskFull,
    DiskRefused,
    GitError,
    GitMissing,
    HostKeyFailed,
    MirrorCorrupt,
    NetworkFailed,
    NotFound,
    Redirected,
    Refused,
    ServerFailed,
    TlsFailed,
    TooManyRequests,
)

MAX_LINES, LINE_CHARACTERS = 200, 500
# Of a server's own words, in a sentence for the user.
SHOWN_CHARACTERS = 200


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


Rules = Sequence[tuple[re.Pattern[str], type[GitError]]]

# For git's own lines. First match wins, so what happens here comes before what the remote says, and the exact before the
# vague. Lines that the remote wrote itself are taken out before, since it may write what it likes there.
RULES: Rules = (
    (_any(r"\bgit: (command )?not found", r"^(env|setpriv): .*: no such file"), GitMissing),
    (_any(r"no space left on device", r"disk quota exceeded"), DiskFull),
    (
        _any(r"read-only file system", r"(unable to|cannot|could not) create .*permission denied"),
        DiskRefused,
    ),
    (
        _any(r"host key verification failed", r"no .* host key is known", r"remote host identification"),
        HostKeyFailed,
    ),
    (
        _any(
            r"(packed|loose) object .* is corrupt",
            r"is not a git packfile",
            r"wrong index v",
            r"non-monotonic index",
            r"object file .* is empty",
            r"\.pack.* (does not match index|cannot be accessed|is far too short)",
            r"packfile .* (is|cannot)",
            r"index file .* is",
            r"unable to (find|open) .*\.idx",
            r"unable to read (tree|sha1|object)?",
            r"unresolved deltas",
            r"from promisor remote",
            r"not a git repository: ",
            r"bad config",
            r"unknown repository extension",
            r"expected git repo version",
            r"bad (object|tree object|shallow line)",
            r"shallow file has changed",
            r"did not send all necessary objects",
            r"missing (blob|tree|commit|object)",
            r"does not point to a valid object",
            r"could not (parse|read) (commit|tree|[0-9a-f]{40})",
            r"not a valid object",
            r"broken ref",
        ),
        MirrorCorrupt,
    ),
    (
        _any(
            r"not our ref",
            r"unadvertised object",
            r"couldn't find remote ref",
            r"no such remote ref",
            r"unable to find [0-9a-f]{40,64} under",
        ),
        CommitNotFound,
    ),
    (
        _any(
            r"fsck error",
            r"error in (object|packed object)",
            r"invalid index-pack output",
            r"pack is corrupted",
            r"pack has bad object",
            r"inflate (returned|error)",
            r"sha1 mismatch",
        ),
        BadObjects,
    ),
    (_any(r"unable to update url base from redirection", r"returned error: 30\d"), Redirected),
    (_any(r"returned error: 429"), TooManyRequests),
    (_any(r"returned error: 5\d\d"), ServerFailed),
    (_any(r"returned error: 403"), Refused),
    (
        _any(
            r"authentication failed",
            r"could not read (username|password)",
            r"returned error: 401",
            r"permission denied \(",
            r"invalid credentials",
        ),
        AuthenticationFailed,
    ),
    (
        _any(
            r"returned error: (404|410)",
            r"repository '.*' not found",
            r"does not appear to be a git repository",
            r"repository not found",
            r"no such file or directory",
        ),
        NotFound,
    ),
    (_any(r"certificate", r"\bssl\b", r"ssl_", r"gnutls", r"\btls\b"), TlsFailed),
    (_any(r"transport '.*' not allowed"), AccessRefused),
    (
        _any(
            r"could not resolve",
            r"failed to connect",
            r"couldn't connect",
            r"connection (refused|reset|timed out|closed)",
            r"early eof",
            r"hung up",
            r"operation too slow",
            r"rpc failed",
            r"unexpected disconnect",
            r"bad line length",
            r"protocol error",
            r"empty reply",
            r"invalid server response",
            r"not valid: is this a git repository",
            r"network is unreachable",
            r"no route to host",
            r"could not read from remote",
            r"malformed",
            r"proxy",
            r"unable to access",
        ),
        NetworkFailed,
    ),
)


# For what a remote wrote itself: over ssh, where a forge says in its own way what it refuses, in lines that git marks with
# "remote: ", and in ERR packets. Only causes that are the remote's: a disk that is full there is not ours. What a forge
# hides from a stranger comes before what it refuses, since it says "not found, or you may not see it".
REMOTE_RULES: Rules = (
    *(rule for rule in RULES if rule[1] in (CommitNotFound, AuthenticationFailed, NotFound)),
    (_any(r"\bkey (is|has) expired"), AuthenticationFailed),
    (
        _any(
            r"\b(repository|repo|project)\b.{0,200}\b(could not be found|not found|does(n't| not) exist|no longer exists)",
            r"\b(cannot|can't|could not|couldn't) find (the )?(repository|project)",
            r"no such (repository|project)",
            r"not a gerrit project",
        ),
        NotFound,
    ),
    (
        _any(
            r"requested too many times",
            r"too many requests",
            r"rate limit",
            r"throttl(ed|ing)",
            r"exceeding usage of resource",
            r"unable to handle this request due to load",
        ),
        TooManyRequests,
    ),
    (
        _any(
            r"internal server (connection )?error",
            r"internal api (unreachable|error \(5)",
            r"not available at this time",
            r"\b(temporarily|currently|service) unavailable\b",
            r"rpc error: code = (unavailable|deadlineexceeded|internal|resourceexhausted)",
            r"out of memory",
        ),
        ServerFailed,
    ),
    (
        _any(
            r"repository access denied",
            r"\bdenied by\b",
            r"\bpermission to .{1,200} denied\b",
            # The exception is what a system says whose firewall forbids a connection.
            r"(?<!operation )\bnot (permitted|authori[sz]ed|allowed)\b",
            r"\bsaml sso\b",
        ),
        Refused,
    ),
)
# The end of an attempt in which git has done nothing here yet: what else there is to read comes from ssh or the server.
NOTHING_DONE = "could not read from remote repository"
OF_SSH_OR_THE_SERVER: Rules = [rule for rule in RULES if not rule[1].local and rule[1] is not TlsFailed]
# Names that users and servers chose, in which any word may stand: URLs, and hosts where git, libcurl and ssh name them.
NAMES = re.compile(
    r"'?[a-z][a-z0-9+.-]{0,20}://\S*"
    r"|(?<!\S)\S+(?= port \d)"
    r"|(?<=could not resolve)( host| hostname| proxy)?:? \S+"
    r"|(?<=connection to )\S+(?= closed)"
    r"|(?<=timeout, server )\S+",
    re.IGNORECASE,
)
# Those of git. It marks each line of a remote, and knows fewer ends of lines than splitlines().
LINE_END = re.compile(r"[\r\n]+")
SHELL = "warning: setlocale:"
MARK, ERROR_PACKET = "remote:", "fatal: remote error: "
REFUSED = "The server refused the request; check the URL and the credential's rights."


def error_from(stderr: bytes, clean: Cleaner) -> GitError:
    """The error that git's standard error tells of; `clean` takes secrets out."""
    text = stderr.decode("utf-8", "replace")
    own, said = _told_apart(text)
    own_words = NAMES.sub("'…'", _cut(own))
    nothing_done = NOTHING_DONE in own_words.lower()
    kind = _kind(OF_SSH_OR_THE_SERVER if nothing_done else RULES, own_words)
    if kind is None or kind is NetworkFailed:
        # git itself has no better word than that the remote stopped.
        if nothing_done and (told := _told_instead(own, said, clean)):
            return told
        kind = _kind(REMOTE_RULES, _cut(said)) or kind
    return (kind or GitError)(detail=clean(text))


def remote_error_from(words: str, clean: Cleaner) -> GitError | None:
    """The error that a server tells of in its own words over ssh; None where they say nothing that is known here. It is
    never one of this machine's.
    """
    kind = _kind(REMOTE_RULES, _cut(_lines(words)))
    if kind is Refused:
        return refusal(words, clean)
    return kind(detail=clean(words)) if kind else None


def refusal(words: str, clean: Cleaner) -> Refused:
    """For a server that ended a request over ssh by itself, with these words or with none."""
    # Forges put frames around what they say.
    said = clean(" ".join(line for line in _lines(words) if _says_something(line)))
    if not said:
        return Refused(f"{REFUSED} It did not say why.")
    shown = said if len(said) <= SHOWN_CHARACTERS else said[:SHOWN_CHARACTERS] + "…"
    return Refused(f"{REFUSED} It said: {shown}", clean(words))


def _told_instead(own: Sequence[str], said: Sequence[str], clean: Cleaner) -> GitError | None:
    """What git was told where it can say itself only that there was no answer. Over ssh a server's lines need no mark, but
    those without one may be ssh's own, about a network: they count only where they are known.
    """
    before = takewhile(lambda line: NOTHING_DONE not in line.lower(), own)
    if known := remote_error_from("\n".join([*said, *before]), clean):
        return known
    return refusal("\n".join(said), clean) if any(map(_says_something, said)) else None


def _told_apart(text: str) -> tuple[list[str], list[str]]:
    """git's own lines, and those that the remote wrote: the marked ones, and all of an ERR packet, which git prints as it
    came before it ends.
    """
    own: list[str] = []
    said: list[str] = []
    in_packet = False
    for line in LINE_END.split(text):
        in_packet = in_packet or line.startswith(ERROR_PACKET)
        (said if in_packet or line.startswith(MARK) else own).append(line)
    return own, [_unmarked(line) for line in said]


def _lines(words: str) -> list[str]:
    """Those of a server, without what its shell has to say of languages."""
    return [_unmarked(line) for line in LINE_END.split(words) if SHELL not in line]


def _unmarked(line: str) -> str:
    return line.removeprefix(MARK).removeprefix(ERROR_PACKET).strip()


def _says_something(line: str) -> bool:
    return any(character.isalnum() for character in line)


def _cut(lines: Sequence[str]) -> str:
    """As much as rules are tried on: a remote can make git say much, and no pattern shall take its time over it."""
    return "\n".join(line[:LINE_CHARACTERS] for line in lines[-MAX_LINES:])


def _kind(rules: Rules, text: str) -> type[GitError] | None:
    return next((kind for pattern, kind in rules if pattern.search(text)), None)
