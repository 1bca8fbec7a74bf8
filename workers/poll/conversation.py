"""One poll over http(s), as a machine of states: what to send next, and what an answer means. Pure.

The first time a server is asked what it speaks (GET info/refs); what it said is remembered, and from then on a poll is one
POST of `ls-refs`. Any surprise in the answer to that means: forget it, and ask anew. The rules are those of git's
gitprotocol-http and gitprotocol-v2.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError

from repos.heads import only_asked
from repos.urls import parse_git_url
from workers.git_errors import (
    AuthenticationFailed,
    GitError,
    LimitExceeded,
    NetworkFailed,
    NotFound,
    Redirected,
    Refused,
    ServerFailed,
    TooManyRequests,
    cleaner,
)
from workers.git_words import error_from
from workers.poll.engine import PollError, PollRequest
from workers.poll.protocol import BrokenOff, NotGit, RemoteSaid, ls_refs_request, read_advertisement, read_refs

NOT_GIT = PollError(
    "not-git",
    "The server answered with something that is not Git, such as a login page. Check the URL and the credential.",
)
BROKEN_OFF = PollError(NetworkFailed.cause, NetworkFailed.sentence)
INFO_REFS = "/info/refs?service=git-upload-pack"
ADVERTISEMENT = "application/x-git-upload-pack-advertisement"
RESULT = "application/x-git-upload-pack-result"
DUMB_LINE = re.compile(rb"[0-9a-f]{40}(?:[0-9a-f]{24})?\trefs/[^\n]{1,4096}\n")
MOST_REDIRECTS = 3
REDIRECTS = frozenset({301, 302, 303, 307, 308})
DEFAULT_PORTS = {"https": 443, "http": 80}
STATUSES: Mapping[int, type[GitError]] = {
    401: AuthenticationFailed,
    403: Refused,
    404: NotFound,
    407: NetworkFailed,
    410: NotFound,
    429: TooManyRequests,
}


@dataclass(frozen=True, slots=True)
class Known:
    """What a remote was heard to speak. `base` is its URL without the service, where the last redirect led."""

    base: str
    version: int
    object_format: str = "sha1"
    # Plain files behind a web server: left to git.
    dumb: bool = False


class Ask(NamedTuple):
    """What to send: a POST of `body`, or a GET if that is None."""

    url: str
    body: bytes | None


class Answer(NamedTuple):
    """What came back. `redirect` is the absolute URL of a Location header."""

    status: int
    content_type: str
    body: bytes
    redirect: str = ""
    retry_after_seconds: float | None = None


class Refs(NamedTuple):
    """The refs that the server named, {full name: commit}, tags peeled."""

    refs: dict[str, str]


class LeftToGit:
    """This remote speaks what only git can read."""


Conclusion = Refs | PollError | LeftToGit


@lru_cache(maxsize=4096)
def _request(asked: tuple[str, ...], object_format: str) -> bytes:
    return ls_refs_request(asked, object_format)


class Conversation:
    """Send ask(), give the answer to take(), and again until that concludes something; `known` is then what to remember
    (None: nothing is).
    """

    __slots__ = ("base", "discovered", "known", "redirects", "request")

    def __init__(self, request: PollRequest, known: Known | None) -> None:
        self.request = request
        self.known = known if known and known.version == 2 else None
        self.base = self.known.base if self.known else base_of(request.access.url)
        self.discovered = False
        self.redirects = 0

    def ask(self) -> Ask:
        if self.known is None:
            return Ask(self.base + INFO_REFS, None)
        return Ask(self.base + "/git-upload-pack", _request(self.request.refs, self.known.object_format))

    @property
    def redirected_to(self) -> str:
        """Where a redirect led, "" where none did."""
        return "" if self.base == base_of(self.request.access.url) else self.base

    def take(self, answer: Answer) -> Conclusion | None:
        """What follows from the answer to ask(); None: ask again."""
        return self._discover(answer) if self.known is None else self._listed(answer)

    def _listed(self, answer: Answer) -> Conclusion | None:
        known, surprise = self.known, NOT_GIT
        if known and answer.status == HTTPStatus.OK and _media_type(answer) == RESULT:
            try:
                return self._bounded(read_refs(answer.body, known.object_format))
            except RemoteSaid as said:
                surprise = remote_error(str(said))
            except BrokenOff:
                surprise = BROKEN_OFF
            except NotGit:
                pass
        elif error := status_error(answer):
            surprise = error
            # It would say the same again.
            if error.retry_after_seconds is not None or error.cause == TooManyRequests.cause:
                return error
            # So would this one now. It may be an older server, which fails at the question: the next poll asks what it speaks.
            if error.cause == ServerFailed.cause:
                self.known = None
                return error
        if self.discovered:
            self.known = None
            return surprise
        self.known = None
        self.base = base_of(self.request.access.url)
        return None

    def _discover(self, answer: Answer) -> Conclusion | None:
        if answer.status in REDIRECTS:
            return self._redirected(answer)
        if answer.status != HTTPStatus.OK:
            return status_error(answer) or NOT_GIT
        if _media_type(answer) != ADVERTISEMENT:
            if _media_type(answer) != "text/html" and DUMB_LINE.match(answer.body):
                self.known = Known(self.base, 0, dumb=True)
                return LeftToGit()
            return NOT_GIT
        try:
            heard = read_advertisement(answer.body, service=True)
        except RemoteSaid as said:
            return remote_error(str(said))
        except BrokenOff:
            return BROKEN_OFF
        except NotGit:
            return NOT_GIT
        if heard.version < 2:
            return self._bounded(heard.refs)
        self.discovered = True
        self.known = Known(self.base, heard.version, heard.object_format)
        return None

    def _bounded(self, refs: dict[str, str]) -> Conclusion:
        if not refs.keys() <= set(self.request.refs):
            refs = only_asked(refs, self.request.refs)
        return Refs(refs) if len(refs) <= self.request.max_refs else too_many(self.request)

    def _redirected(self, answer: Answer) -> PollError | None:
        """Follow it if it stays with the host, and leads to the same question there."""
        target = answer.redirect.removesuffix(INFO_REFS)
        self.redirects += 1
        if (
            target != answer.redirect
            and self.redirects <= MOST_REDIRECTS
            and _origin(target) == _origin(self.base)
            and _is_well_formed(target)
        ):
            self.base = target
            return None
        return PollError(Redirected.cause, _redirect_sentence(target))


def base_of(url: str) -> str:
    return url.rstrip("/")


def too_many(request: PollRequest) -> PollError:
    return PollError(
        LimitExceeded.cause,
        f"the repository has more than {request.max_refs} refs: raise GIT_MAX_REFS, or follow a branch by name",
    )


def remote_error(said: str) -> PollError:
    """What an ERR packet means, told apart as git's own words for it are."""
    failure = error_from(f"fatal: remote error: {said}".encode(), cleaner())
    return PollError(failure.cause, str(failure))


def status_error(answer: Answer) -> PollError | None:
    """The error that a status says; None where it says none."""
    kind = STATUSES.get(answer.status)
    if kind is None and answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        kind = ServerFailed
    if kind is not None:
        error = PollError(kind.cause, kind.sentence)
    elif answer.status >= HTTPStatus.BAD_REQUEST:
        error = PollError(
            NOT_GIT.cause, f"The server answered {answer.status}, which is no answer of Git: check the URL."
        )
    else:
        return None
    return replace(error, retry_after_seconds=answer.retry_after_seconds)


def speaks_git(answer: Answer) -> bool:
    """Whether the server says that this is Git."""
    return answer.status == HTTPStatus.OK and _media_type(answer) in (ADVERTISEMENT, RESULT)


def _media_type(answer: Answer) -> str:
    return answer.content_type.partition(";")[0].strip().lower()


def _origin(url: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and user of a URL; nothing that equals another where it can't be read."""
    try:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORTS.get(parts.scheme, 0)
    except ValueError:
        return "", url, 0, ""
    return parts.scheme, (parts.hostname or "").lower(), port, parts.username or ""


def _is_well_formed(url: str) -> bool:
    """A redirect leads only to what may be registered."""
    try:
        parse_git_url(url)
    except ValidationError:
        return False
    return True


def _redirect_sentence(target: str) -> str:
    """Names the place without what may be secret in it (user and query)."""
    scheme, host, port, _ = _origin(target)
    if scheme not in DEFAULT_PORTS or not host:
        return Redirected.sentence
    shown = host if port == DEFAULT_PORTS[scheme] else f"{host}:{port}"
    place = cleaner()(f"{scheme}://{shown}{urlsplit(target).path}")[:200]
    return (
        f"The server redirects to {place}, which is not followed. Register the repository's URL there, if it is yours; a "
        "login page means that the credential is missing or wrong."
    )
