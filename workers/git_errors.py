"""What can go wrong between this machine and a Git remote; workers/git_words.py tells it apart by what git and forges write.

`cause` is stable and may be stored and counted. `str(error)` is for the user and says what to do; `detail` is
the end of what git said, without secrets and control characters.
"""
# the names say what is the case; many of them are no error of ours

import errno
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

Cleaner = Callable[[str], str]
DETAIL_CHARACTERS = 600


class GitError(Exception):
    """Base of them all. `local` is whether the fault is on this machine and not the remote's."""

    cause: str = "git"
    local = False
    sentence = "git failed for a reason that is not known here. Read the detail, and try the same on a command line."

    def __init__(self, sentence: str = "", detail: str = "") -> None:
        super().__init__(sentence or self.sentence)
        self.detail = detail


class AuthenticationFailed(GitError):
    cause = "authentication"
    sentence = "The server refused the credential. Check that it is right, not expired, and may read the repository."


class AccessRefused(GitError):
    """What is registered contradicts itself; nothing was sent."""

    cause = "access"
    sentence = "The remote can't be asked with what is registered. Check the URL and the credential."

    def __init__(self, sentence: str = "", detail: str = "", cause: str = "") -> None:
        super().__init__(sentence, detail)
        self.cause = cause or type(self).cause


class Refused(GitError):
    cause = "refused"
    sentence = "The server refused the request (403). Check the credential's rights on this repository."


class NotFound(GitError):
    cause = "not-found"
    sentence = "The server has no such repository, or hides it from this credential. Check the URL and the rights."


class CommitNotFound(GitError):
    cause = "commit-not-found"
    sentence = (
        "The remote does not have this commit any more, or gives no commit by its id. Wait for the next "
        "poll, "
        "or correct the commit."
    )


class ObjectsRefused(GitError):
    """`detail` says why; a mirror with every file needs no such request."""

    cause = "objects-refused"
    sentence = "The server does not give files by their ids, so the mirror has to be fetched with all of its files."


class Redirected(GitError):
    cause = "redirect"
    sentence = "The server answered with a redirect, which is not followed. Register the repository's new URL."


class TooManyRequests(GitError):
    cause = "rate-limit"
    sentence = "The server asks for fewer requests (429). It is tried again later; use a longer polling interval."


class HostPatience(GitError):
    """Nobody was asked: the host wants to be left alone for `seconds` more, and what is needed is not here."""

    cause = "rate-limit"
    sentence = "The server asked to be left alone for a while. It is asked after that."

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


class ServerFailed(GitError):
    cause = "server"
    sentence = "The server failed to answer (5xx). It is tried again later; tell its operator if it stays so."


class NetworkFailed(GitError):
    cause = "network"
    sentence = "The connection to the server failed or broke off. Check the name, the port and the network between."


class TlsFailed(GitError):
    cause = "tls"
    sentence = "The server's certificate is not trusted. Give the right CA bundle, or have the certificate renewed."


class HostKeyFailed(GitError):
    cause = "host-key"
    sentence = (
        "The server's ssh host key is unknown or has changed. Ask its operator, then store the right host "
        "key with "
        "the credential."
    )


class GitTimeout(GitError):
    cause = "timeout"
    sentence = "git was stopped because its time was over. Check the server, or raise GIT_FETCH_TIMEOUT."


class LimitExceeded(GitError):
    """`setting` names what an operator can raise."""

    cause = "limit"

    def __init__(self, setting: str, sentence: str, detail: str = "") -> None:
        super().__init__(sentence, detail)
        self.setting = setting


class BadObjects(GitError):
    cause = "bad-objects"
    sentence = "The remote sent objects that git's checks refuse. Run git fsck in the repository and repair it."


class DiskFull(GitError):
    cause = "disk-full"
    local = True
    sentence = "There is no space left for mirrors on this worker. Free some, or give MIRROR_DIR a bigger disk."


class DiskRefused(GitError):
    cause = "disk"
    local = True
    sentence = "The mirror's folder can't be written. Check that MIRROR_DIR is writable for the worker."


class MirrorCorrupt(GitError):
    cause = "corrupt"
    local = True
    sentence = "The mirror is damaged. It is removed and fetched anew."


class MirrorBusy(GitError):
    cause = "busy"
    local = True
    sentence = "Another process works on this mirror. The job is tried again when it has ended."


class GitMissing(GitError):
    cause = "git-missing"
    local = True
    sentence = "git could not be started. Install git 2.37 or newer on the worker's PATH."


def error_from_os(error: OSError) -> GitError:
    """An error of the disk, in these words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFull(detail=error.strerror or "")
    return DiskRefused(detail=error.strerror or "")


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raise error_from_os() for an OSError in the block."""
    try:
        yield
    except OSError as error:
        raise error_from_os(error) from error


def cleaner(secrets: Iterable[str] = ()) -> Cleaner:
    """A function that makes git's words fit to be shown: no secret, no user information, no control
    character.
    """
    hidden = sorted({secret for secret in secrets if secret}, key=len, reverse=True)

    def clean(text: str) -> str:
        for secret in hidden:
            text = text.replace(secret, "***")
        # Only what may be shown, and some more in front so that no user information is cut in two.
        text = text[-4 * DETAIL_CHARACTERS :]
        text = re.sub(r"([a-zA-Z][a-zA-Z0-9+.-]{0,20}://)[^/\s@]{0,500}:[^/\s@]{0,500}@", r"\1***@", text)
        text = re.sub(r"(?i)(authorization:\s*\w+)\s+\S+", r"\1 ***", text)
        text = "".join(c if c.isprintable() else " " for c in text)
        text = re.sub(r" {2,}", " ", text).strip()
        return text if len(text) <= DETAIL_CHARACTERS else "…" + text[-DETAIL_CHARACTERS:]

    return clean
