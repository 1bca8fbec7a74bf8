"""What a Git URL may be, and when two of them name the same repository.

An allow-list throughout: https, ssh and `user@host:path`; http and file by a setting. Git itself also knows
transports that run commands (`ext::`), reads local paths, and takes a leading `-` for an option; none of that
reaches it from here. A message never repeats the URL, since a URL that is refused often has a password in it.
"""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote, unquote_to_bytes

from django.conf import settings
from django.core.exceptions import ValidationError

from repos.addresses import address_is_allowed, literal_addresses

__all__ = ["GitUrl", "address_is_allowed", "match_key_of", "parse_git_url"]

MAX_URL_LENGTH = 2048
DEFAULT_PORTS = {"https": 443, "http": 80, "ssh": 22, "file": 0}

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SCP_LIKE = re.compile(r"([^/:@]+)@(\[[^\]/]*\]|[^/:@\[\]]+):(.+)")
_AUTHORITY = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:.*)?")
_PORT = re.compile(r"[0-9]{1,5}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# RFC 3986's characters of a path, without `$`, which a shell or a configuration could expand.
_PATH = re.compile(r"[A-Za-z0-9._~!&'()*+,;=:@/%-]+")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")

# Where a host says that it ignores the case of a path.
_CASELESS_HOSTS = {"github.com", "gitlab.com", "bitbucket.org"}
# ssh on the port of https, as these hosts document it for networks that close port 22.
_SSH_OVER_HTTPS = {
    ("ssh.github.com", 443): "github.com",
    ("altssh.gitlab.com", 443): "gitlab.com",
    ("altssh.bitbucket.org", 443): "bitbucket.org",
}


@dataclass(frozen=True, slots=True)
class GitUrl:
    """A URL that passed every check which needs no network. Made by `parse_git_url` alone."""

    scheme: str  # https, http, ssh or file
    user: str  # of ssh only; "" where none is given
    host: str  # lower case, an IPv6 address without brackets; "" for file
    port: int  # always filled in; 0 for file
    path: str  # percent-escapes as given; relative (no leading slash) only in the form user@host:path
    normalised: str  # what git is given, and by which GitRepos share a Remote

    @property
    def host_key(self) -> tuple[str, int]:
        """The server: its name and port."""
        return self.host, self.port

    @property
    def match_key(self) -> str:
        """`host/path`, the same for every URL of a repository: see `match_key_of`."""
        return _match_key(self.scheme, self.host, self.port, self.path)

    @property
    def local_path(self) -> Path:
        """The folder that a file:// URL names, its percent-escapes decoded."""
        return Path(unquote(self.path))


@dataclass(frozen=True, slots=True)
class _Parts:
    """The pieces of a URL whose shape is right; nothing is said yet about whether it may be used."""

    scheme: str
    userinfo: str | None
    host: str
    port: int
    path: str


def parse_git_url(text: str) -> GitUrl:
    """The parts and the normalised form of `text`, a URL that git may be given.

    Checks syntax and literal addresses; a name is resolved, and its addresses checked with
    `address_is_allowed`, by who connects. A file:// URL is checked against the links on the disk at this
    moment: call again before using it. Raises ValidationError, whose message names the rule and never repeats
    the URL.
    """
    parts = _split(text)
    if parts.scheme == "http" and not settings.GIT_ALLOW_HTTP:
        _refuse("http", "http:// is not encrypted and is off here. Use https:// or ssh://, or set GIT_ALLOW_HTTP.")
    if parts.scheme == "file":
        return _file_url(parts)
    user = _checked_user(parts)
    _check_host(parts.host)
    _check_path(parts.path)
    normalised = _normalised(parts, user)
    if len(normalised) > MAX_URL_LENGTH:  # user@host:/path grows when it is written as ssh://user@host/path
        _refuse("too_long", f"A URL has at most {MAX_URL_LENGTH} characters.")
    return GitUrl(parts.scheme, user, parts.host, parts.port, parts.path, normalised)


def match_key_of(text: str) -> str | None:
    """The key by which webhooks and duplicates compare repositories, or None if `text` is no Git URL.

    The host in lower case and the path without a leading slash and `.git`, whatever the scheme and the user;
    a port that is not the scheme's own stays. Azure DevOps' forms (two hosts, `_git`, ssh `v3`) give one key.
    Reads what the settings would refuse too (http, a user name, a private host), because a sender may write a
    repository's URL in such a form.
    """
    try:
        parts = _split(text)
    except ValidationError:
        return None
    return _match_key(parts.scheme, parts.host, parts.port, parts.path)


def _refuse(code: str, message: str) -> NoReturn:
    raise ValidationError(message, code=code)


# -- shape ---------------------------------------------------------------------------------------------------


def _split(text: object) -> _Parts:
    """The pieces of `text`, or ValidationError if it has no shape that we know."""
    if not isinstance(text, str) or not text:
        _refuse("required", "Give the repository's URL as text.")
    if len(text) > MAX_URL_LENGTH:
        _refuse("too_long", f"A URL has at most {MAX_URL_LENGTH} characters.")
    if not all("!" <= character <= "~" for character in text):
        _refuse(
            "characters",
            "A URL has no spaces, control characters or characters outside ASCII. Write an "
            "international host in its xn-- form and other characters of the path as percent-escapes.",
        )
    if "$" in text or "\\" in text or "`" in text:
        _refuse("characters", "A URL has no $, backslash or backtick: nothing is expanded in it.")
    scheme = _SCHEME.match(text)
    if scheme is not None:
        return _split_url(scheme[1].lower(), text[scheme.end() :])
    scp_like = _SCP_LIKE.fullmatch(text)
    if scp_like is None:
        _unsupported()
    user, host, path = scp_like.groups()
    return _Parts("ssh", user, _host(host), DEFAULT_PORTS["ssh"], _collapsed(path))


def _split_url(scheme: str, rest: str) -> _Parts:
    if scheme not in DEFAULT_PORTS:
        _unsupported()
    if "?" in rest or "#" in rest:
        _refuse(
            "query",
            "A Git URL has no query and no fragment. Put a token into a credential and attach that to the GitRepo.",
        )
    authority, slash, path = rest.partition("/")
    before, at, place = authority.rpartition("@")
    userinfo = before if at else None
    host, port = _AUTHORITY.fullmatch(place), DEFAULT_PORTS[scheme]
    if host is None:
        _refuse(
            "host",
            "The host of the URL is neither a name nor an address; an IPv6 address stands in [brackets].",
        )
    if host[2] is not None:
        port = _port(host[2][1:])
    if scheme == "file":
        if authority:
            _refuse("host", "A file:// URL names no host: write file:///folder, with three slashes.")
        return _Parts(scheme, None, "", 0, _collapsed(slash + path))
    return _Parts(scheme, userinfo, _host(host[1]), port, _collapsed(slash + path))


def _unsupported() -> NoReturn:
    _refuse(
        "unsupported",
        "This is no URL that repositories are read from. Write https://host/path, ssh://user@host/path or "
        "user@host:path; local paths and other transports are not read.",
    )


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or not 1 <= int(text) <= 65535:
        _refuse(
            "port",
            "The port of the URL is a number from 1 to 65535. With a path after the colon, leave out ssh://.",
        )
    return int(text)


def _host(text: str) -> str:
    """`text` in lower case without brackets and without the root's dot; its syntax is checked."""
    if text.startswith("["):
        try:
            if "%" in text:
                raise ValueError("a scope")
            return ipaddress.IPv6Address(text[1:-1]).compressed
        except ValueError:
            _refuse("host", "What stands in [brackets] as the host of the URL is no IPv6 address.")
    host = text.lower().removesuffix(".")
    if not host:
        _refuse("host", "The URL has no host. Write https://host/path.")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        _refuse(
            "host",
            "The host of the URL is no valid name: labels of letters, digits and hyphens that "
            "neither begin nor end with a hyphen, joined by dots.",
        )
    return host


def _collapsed(path: str) -> str:
    """`path` with single slashes and none at its end, which servers take for the same."""
    return re.sub("/{2,}", "/", path).rstrip("/")


# -- what is allowed -----------------------------------------------------------------------------------------


def _checked_user(parts: _Parts) -> str:
    if parts.userinfo is None:
        return ""
    if parts.scheme != "ssh" or ":" in parts.userinfo:
        _refuse(
            "credentials",
            "A URL has no user name or password in it: everybody who sees the GitRepo would see "
            "them. Remove what stands before the @ and attach a credential.",
        )
    if not _USER.fullmatch(parts.userinfo):
        _refuse(
            "user",
            "The user in the URL begins with a letter or digit and has only letters, digits and . _ + - in it.",
        )
    return parts.userinfo


def _check_host(host: str) -> None:
    """Refuse a host that is known, without asking anybody, to be inside."""
    try:
        addresses = literal_addresses(host)
    except ValueError:
        # 2130706433, 0177.0.0.1, 0x7f.1 and 127.1 are all 127.0.0.1 to some readers and something else to
        # others.
        _refuse("address", "Write the address in the URL as four decimal numbers without leading zeros.")
    if addresses and not any(address_is_allowed(address) for address in addresses):
        _refuse(
            "address",
            "The host of the URL is a local, private or otherwise reserved address. Use a public "
            "one, or have the operator add its network to GIT_ALLOWED_NETWORKS.",
        )


def _check_path(path: str) -> None:
    if not path.strip("/"):
        _refuse("path", "The URL names a host but no repository: its path is empty.")
    if not _PATH.fullmatch(path):
        _refuse("path", "The path of the URL has a character that must be written as a percent-escape.")
    if _BAD_ESCAPE.search(path):
        _refuse(
            "path",
            "A % in the path of the URL begins an escape: two hexadecimal digits follow. Write % itself as %25.",
        )
    # git decodes the path of an ssh and a file URL, and servers decode the others.
    decoded = unquote_to_bytes(path)
    if any(byte < 0x20 or byte == 0x7F for byte in decoded) or b"\\" in decoded:
        _refuse("path", "The path of the URL has no control characters and no backslash, escaped or not.")
    if any(segment in (b".", b"..") for segment in decoded.split(b"/")):
        _refuse("path", "The path of the URL has no . or .. in it: write where it leads.")
    if decoded.lstrip(b"/").startswith((b"-", b":")):
        _refuse("path", "The path of the URL does not begin with - or a colon.")


def _file_url(parts: _Parts) -> GitUrl:
    root = settings.GIT_FILE_ROOT
    if not root:
        _refuse("file", "file:// URLs are off here. Use https:// or ssh://; an operator can set GIT_FILE_ROOT.")
    _check_path(parts.path)
    try:
        folder = Path(unquote_to_bytes(parts.path).decode()).resolve()
        inside = Path(root).resolve() in folder.parents
    except (OSError, RuntimeError, ValueError):
        inside = False
    if not inside:
        _refuse("file", "A file:// URL leads, links included, to a folder below GIT_FILE_ROOT.")
    return GitUrl("file", "", "", 0, parts.path, f"file://{parts.path}")


def _normalised(parts: _Parts, user: str) -> str:
    host = f"[{parts.host}]" if ":" in parts.host else parts.host
    at = f"{user}@" if user else ""
    if not parts.path.startswith("/"):
        # Relative to the user's home. ssh:// has no form for that which every server reads, so it stays as it
        # is.
        return f"{at}{host}:{parts.path}"
    port = "" if parts.port == DEFAULT_PORTS[parts.scheme] else f":{parts.port}"
    return f"{parts.scheme}://{at}{host}{port}{parts.path}"


# -- comparing -----------------------------------------------------------------------------------------------


def _match_key(scheme: str, host: str, port: int, path: str) -> str:
    name = unquote(path).strip("/")
    azure = _azure_key(host, name.split("/"))
    if azure is not None:
        return azure
    if scheme == "ssh" and (host, port) in _SSH_OVER_HTTPS:
        host, port = _SSH_OVER_HTTPS[host, port], DEFAULT_PORTS[scheme]
    if host in _CASELESS_HOSTS:
        name = name.lower()
    place = host if port == DEFAULT_PORTS[scheme] else f"{host}:{port}"
    return f"{place}/{name.removesuffix('.git').rstrip('/')}"


def _azure_key(host: str, names: list[str]) -> str | None:
    """The key of a repository in Azure DevOps, or None elsewhere.

    https://dev.azure.com/ORG/PROJECT/_git/REPO,
    https://ORG.visualstudio.com/[DefaultCollection/]PROJECT/_git/REPO, both without PROJECT where it has the
    repository's name, and git@ssh.dev.azure.com:v3/ORG/PROJECT/REPO with its older host.
    """
    if host in ("ssh.dev.azure.com", "vs-ssh.visualstudio.com"):
        if len(names) != 4 or names[0] != "v3":
            return None
        return "/".join(("dev.azure.com", *names[1:])).lower()
    if host == "dev.azure.com":
        organisation, names = names[0], names[1:]
    elif host.endswith(".visualstudio.com"):
        organisation = host.removesuffix(".visualstudio.com")
        if names[0].lower() == "defaultcollection":
            names = names[1:]
    else:
        return None
    if len(names) < 2 or names[-2].lower() != "_git":
        return None
    project = names[-3] if len(names) > 2 else names[-1]
    return f"dev.azure.com/{organisation}/{project}/{names[-1]}".lower()
