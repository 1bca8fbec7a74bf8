"""The complete environment of a git child: what it may read, whom it may ask, and the credential, and nothing
else.

Everything is said by environment variables, so that no secret and no user's string stands in an argument list
(`/proc/<pid>/cmdline` is readable by everybody, `environ` by the same user alone). Settings go in as
GIT_CONFIG_COUNT/KEY/VALUE, which git (2.31 and newer) reads last, so they also win over a repository's own
config.
"""

import base64
import fcntl
import ipaddress
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ValidationError

from repos.urls import GitUrl, parse_git_url

SCHEMES = frozenset({"https", "http", "ssh", "file"})
KINDS = frozenset({"none", "basic", "token", "ssh"})
PROXY_VARIABLES = (
    "HTTPS_PROXY", "https_proxy", "http_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy",
)  # fmt: skip
CONNECT_SECONDS = 20
# A server that counts objects sends one five-byte keepalive every five seconds, so the floor has to be low;
# the deadline of the whole call is what ends a server that drips.
LOW_SPEED_BYTES, LOW_SPEED_SECONDS = 1, 60
# Seconds that a folder without its lock is left alone: it may be between its making and its locking.
SWEEP_GRACE_SECONDS = 60

# Mistakes that old tools made in the lines for people and dates, or in a mode's digits. They are in the
# history of many sound repositories and can't hurt a reader; every other finding of fsck refuses the pack.
HARMLESS_FSCK = (
    "missingEmail", "missingNameBeforeEmail", "missingSpaceBeforeDate", "missingSpaceBeforeEmail", "badDate",
    "badDateOverflow", "badEmail", "badName", "badTimezone", "zeroPaddedDate", "zeroPaddedFilemode",
    "multipleAuthors", "missingTaggerEntry",
)  # fmt: skip


class AccessError(Exception):
    """The remote can't be asked with what is registered; nothing was started. `cause` is a short stable
    id.
    """

    def __init__(self, cause: str, sentence: str) -> None:
        super().__init__(sentence)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class RemoteAccess:
    """How a remote is reached.

    `kind` is none, basic, token or ssh; `secret` is the password, the token or the text of a private key.
    `known_hosts` (ssh) and `ca_bundle` (https, PEM) are texts. `addresses` are the checked IP addresses of
    the host: if there are any, git connects to one of them and resolves nothing (https needs git 2.37).
    """

    url: str
    kind: str = "none"
    username: str = ""
    secret: str = field(default="", repr=False)
    known_hosts: str = ""
    ca_bundle: str = ""
    insecure_skip_tls_verify: bool = False
    addresses: tuple[str, ...] = ()

    def turned(self, tries: int) -> "RemoteAccess":
        """The same, with another address in front after each of so many tries: ssh is told the first one alone."""
        start = tries % max(len(self.addresses), 1)
        return replace(self, addresses=self.addresses[start:] + self.addresses[:start])

    @property
    def scheme(self) -> str:
        """https, http, ssh or file; AccessError for anything else."""
        head, separator, _ = self.url.partition("://")
        if not separator:
            return _registered(self.url).scheme
        if head in SCHEMES:
            return head
        raise AccessError("url", "The URL's scheme is not one of https, http, ssh and file: correct the URL.")

    @property
    def host(self) -> tuple[str, int]:
        """The name and port to connect to; port 0 is the scheme's own."""
        if "://" not in self.url:
            return _registered(self.url).host, 0
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 0


def _registered(url: str) -> GitUrl:
    """`user@host:path` as it is read when it is registered, so that both mean the same; AccessError for anything else."""
    try:
        return parse_git_url(url)
    except ValidationError as error:
        raise AccessError("address" if error.code == "address" else "url", " ".join(error.messages)) from None


@dataclass(frozen=True, slots=True)
class GitEnvironment:
    """`env` is everything a git child may see. `secrets` are the strings that must never be shown."""

    env: dict[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)


def local_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """For git commands that read or write a local repository and reach nothing else; `extra` are config
    values.
    """
    return {**_base(os.devnull, ""), **_as_variables({**_fixed_config(), **(extra or {})})}


@contextmanager
def git_environment(access: RemoteAccess, run_folder: Path | None = None) -> Iterator[GitEnvironment]:
    """The environment for one conversation with `access.url`; its temporary files are gone afterwards.

    The files (an empty home; key, known hosts, CA) lie in a folder of mode 0700 below `run_folder`
    (DATA_DIR/run by default) that stays locked while it is in use; what a killed process left is removed by
    sweep_run_folder(). AccessError if the access contradicts itself, or if ssh has no known host keys.
    """
    check_access(access)
    with _private_folder(run_folder or default_run_folder()) as folder:
        home = folder / "home"
        home.mkdir(mode=0o500)
        env = _base(str(home), access.scheme)
        config = {**_fixed_config(), "remote.origin.url": access.url}
        secrets = [access.secret, *_user_information(access.url)]
        if access.scheme in ("https", "http"):
            config.update(_http_config(access, folder))
            secrets.append(authorization_header(access).removeprefix("Authorization: Basic "))
            env.update({name: os.environ[name] for name in PROXY_VARIABLES if name in os.environ})
        elif access.scheme == "ssh":
            env["GIT_SSH_COMMAND"] = _ssh_command(access, folder)
            env["GIT_SSH_VARIANT"] = "ssh"
            secrets += [line for line in access.secret.splitlines() if line and not line.startswith("-----")]
        env.update(_as_variables(config))
        yield GitEnvironment(env, tuple(sorted({s for s in secrets if s}, key=len, reverse=True)))


def default_run_folder() -> Path:
    return Path(settings.DATA_DIR) / "run"


def sweep_run_folder(run_folder: Path | None = None, *, limit: int = 1000) -> int:
    """Remove the temporary folders whose owner is dead (nobody holds the lock); answers how many, `limit` at
    most.
    """
    removed = 0
    for folder in sorted((run_folder or default_run_folder()).glob("git-*"))[:limit]:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if time.time() - os.fstat(descriptor).st_mtime < SWEEP_GRACE_SECONDS:
                continue
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
    return removed


def abandoned_run_folders(
    older_than_seconds: float, run_folder: Path | None = None, *, limit: int = 1000
) -> list[Path]:
    """The temporary folders of that age whose owner is dead, `limit` at most; nothing is removed."""
    found = []
    for folder in sorted((run_folder or default_run_folder()).glob("git-*"))[:limit]:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if time.time() - os.fstat(descriptor).st_mtime > older_than_seconds:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found.append(folder)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
    return found


@contextmanager
def _private_folder(parent: Path) -> Iterator[Path]:
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="git-", dir=parent))
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def check_access(access: RemoteAccess) -> None:
    """Raises AccessError if the access contradicts itself, or if ssh has no known host keys."""
    scheme = access.scheme
    if access.kind not in KINDS:
        raise AccessError("credential", "The credential's kind is not one of none, basic, token and ssh.")
    if "\x00" in access.url or "\n" in access.url or "\r" in access.url:
        raise AccessError("url", "The URL has a control character: correct the URL.")
    if access.kind in ("basic", "token") and scheme not in ("https", "http"):
        raise AccessError("credential", f"A {access.kind} credential can't be used with a {scheme} URL: use a key.")
    if access.kind == "ssh" and scheme != "ssh":
        raise AccessError("credential", f"An ssh key can't be used with a {scheme} URL: use a token.")
    if access.kind == "ssh" and not access.secret.strip():
        raise AccessError("credential", "The credential has no private key: store it again.")
    if scheme == "ssh" and not access.known_hosts.strip():
        raise AccessError(
            "host-key",
            "No known host keys are stored for this ssh remote, so the server can't be told from an "
            "impostor: add "
            "the server's public host keys (known_hosts lines) to the credential.",
        )
    for address in access.addresses:
        ipaddress.ip_address(address)


def _base(home: str, protocol: str) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": home,
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",  # errors are told apart by git's English sentences
        "LANGUAGE": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        # Set and empty: git then asks no program at all, not even one that the environment or a config names.
        "GIT_ASKPASS": "",
        "SSH_ASKPASS": "",
        "SSH_ASKPASS_REQUIRE": "never",
        "GCM_INTERACTIVE": "never",
        "GIT_PROTOCOL_FROM_USER": "0",
        "GIT_ALLOW_PROTOCOL": protocol or "none",
        "GIT_NO_REPLACE_OBJECTS": "1",
        # What a partial mirror lacks is fetched in batches, and never one by one by whoever stumbles over it.
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_SSH_COMMAND": "false",
    }


def _fixed_config() -> dict[str, str]:
    return {
        "core.hooksPath": os.devnull,
        "core.fsmonitor": "false",
        "core.askPass": "",
        "core.attributesFile": os.devnull,
        "credential.helper": "",  # an empty value forgets the helpers named before it
        "gc.auto": "0",
        "gc.autoDetach": "false",
        "maintenance.auto": "false",
        "fetch.fsckObjects": "true",
        "transfer.fsckObjects": "true",
        "fetch.writeCommitGraph": "false",
        # Always a pack, never loose objects: a pack appears whole or not at all, so a killed fetch leaves no
        # commit whose files are missing.
        "fetch.unpackLimit": "1",
        "transfer.unpackLimit": "1",
        "fetch.recurseSubmodules": "false",
        "submodule.recurse": "false",
        "transfer.bundleURI": "false",
        "protocol.version": "2",
        "pack.threads": "2",
        **{f"fetch.fsck.{name}": "ignore" for name in HARMLESS_FSCK},
    }


def _http_config(access: RemoteAccess, folder: Path) -> dict[str, str]:
    config = {
        # git sends http.extraHeader to wherever a redirect leads, so no redirect is followed at all.
        "http.followRedirects": "false",
        "http.lowSpeedLimit": str(LOW_SPEED_BYTES),
        "http.lowSpeedTime": str(LOW_SPEED_SECONDS),
        "http.sslVerify": "false" if access.insecure_skip_tls_verify else "true",
        "http.emptyAuth": "false",
        "http.cookieFile": "",
    }
    if access.ca_bundle:
        config["http.sslCAInfo"] = str(_write(folder / "ca.pem", access.ca_bundle))
    if header := authorization_header(access):
        config["http.extraHeader"] = header
    # An address that stands in the URL needs no lookup, and git can't read an entry for one with colons.
    if access.addresses and not _is_address(access.host[0]):
        name, port = access.host
        addresses = ",".join(f"[{a}]" if ":" in a else a for a in access.addresses)
        config["http.curloptResolve"] = f"{name}:{port or (443 if access.scheme == 'https' else 80)}:{addresses}"
    return config


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def authorization_header(access: RemoteAccess) -> str:
    """The header; a token goes as a password too, because every forge takes it there, and few take Bearer."""
    if access.kind not in ("basic", "token"):
        return ""
    pair = f"{access.username or 'git'}:{access.secret}"
    return "Authorization: Basic " + base64.b64encode(pair.encode()).decode()


def _ssh_command(access: RemoteAccess, folder: Path) -> str:
    """git gives this to a shell, so every word is quoted; ssh expands % and splits at spaces, so paths are
    escaped.
    """
    known_hosts = _write(folder / "known_hosts", access.known_hosts.rstrip("\n") + "\n")
    options = {
        "BatchMode": "yes",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "PreferredAuthentications": "publickey",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": _ssh_path(known_hosts),
        "GlobalKnownHostsFile": os.devnull,
        "UpdateHostKeys": "no",
        "VerifyHostKeyDNS": "no",
        "CheckHostIP": "no",
        "ProxyCommand": "none",
        "PermitLocalCommand": "no",
        "ForwardAgent": "no",
        "ControlPath": "none",
        "ConnectTimeout": str(CONNECT_SECONDS),
        "ConnectionAttempts": "1",
        "ServerAliveInterval": "15",
        "ServerAliveCountMax": "3",
        "LogLevel": "ERROR",
    }
    if access.kind == "ssh":
        options["IdentityFile"] = _ssh_path(_write(folder / "key", access.secret.rstrip("\n") + "\n"))
    else:
        options["IdentityFile"] = "none"
    if access.addresses:
        name, port = access.host
        options["HostName"] = access.addresses[0]
        options["HostKeyAlias"] = f"[{name}]:{port}" if port not in (0, 22) else name
    words = ["ssh", "-F", os.devnull, "-T"]
    for name, value in options.items():
        words += ["-o", f"{name}={value}"]
    return shlex.join(words)


def _ssh_path(path: Path) -> str:
    return '"' + str(path).replace("%", "%%") + '"'


def _write(path: Path, text: str) -> Path:
    """ssh refuses a key file that others could read, so the mode is set before there is anything to read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
    return path


def _user_information(url: str) -> list[str]:
    """A password in the URL. Saving refuses such URLs; what is in the database from elsewhere is hidden
    anyway.
    """
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.password:
            return [parts.password]
    return []


def _as_variables(config: Mapping[str, str]) -> dict[str, str]:
    variables = {"GIT_CONFIG_COUNT": str(len(config))}
    for index, (key, value) in enumerate(config.items()):
        variables[f"GIT_CONFIG_KEY_{index}"] = key
        variables[f"GIT_CONFIG_VALUE_{index}"] = value
    return variables
