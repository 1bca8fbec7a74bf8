"""System checks: relations between settings that no default can promise, each with what to set.

`manage.py` runs them before a command. Web, beat and workers are not always started by it, so they call
refuse_to_start_with_errors themselves: a control plane without its secrets does not start.
"""

import ipaddress
import logging
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
from cryptography.fernet import Fernet
from django.conf import settings
from django.core.checks import WARNING, CheckMessage, Error, Tags, register, run_checks
from django.core.exceptions import ImproperlyConfigured

from fleetsync import limits
from fleetsync.celery import QUEUES
from fleetsync.redis import redis_client

# Seconds for the two short transactions around a poll: its claim and the writing of its result.
LEASE_MARGIN = 5
# A lease that is renewed is so every third of it. Below this a database that takes a moment costs it.
SHORTEST_LEASE = 3
# Seconds between two tries of a worker to reach its broker, at most (kombu's), with one try's time.
BROKER_RETRY = 35
# sizeof(sockaddr_un.sun_path) is 108 on Linux, with the closing NUL.
MAX_SOCKET_PATH = 107
# `cat-file --batch-command` is of 2.36, and http.curloptResolve of 2.37.
OLDEST_GIT = (2, 37)
# What Django's own security.W009 asks of a key.
MIN_SECRET_KEY = 50
MIN_SECRET_KEY_CHARACTERS = 5

_COUNTS = (
    "GITREPO_RECONCILER_WORKERS",
    "GIT_HOST_CONCURRENCY",
    "GIT_HOST_BREAKER",
    "GIT_MAX_REFS",
    "DELIVERY_WORKERS",
    "DELIVERY_CLUSTER_CONCURRENCY",
    "BUNDLE_MAX_BYTES",
    "BUNDLE_MAX_FILES",
    "BUNDLE_MAX_FILE_BYTES",
    "CONTROL_PROCESSES",
    "POLL_PROCESSES",
    "SYNC_PROCESSES",
    "DELIVER_PROCESSES",
    "WEB_PROCESSES",
    "WEB_THREADS",
)
_PARTS = ("GITREPO_POLLING_JITTER", "DELIVERY_MAX_REMOVED_PART")
_DURATIONS = (
    "GITREPO_SYNC_PERIOD",
    "GITREPO_POLLING_INTERVAL",
    "GITREPO_BACKOFF_CAP",
    "GIT_TIMEOUT",
    "GIT_FETCH_TIMEOUT",
    "DELIVERY_TIMEOUT",
    "POLL_LEASE",
    "JOB_LEASE",
    "DELIVERY_LEASE",
    "SESSION_BUDGET",
    "STOP_GRACE",
    "WATCHDOG",
    "RETENTION_AGE",
    "RETENTION_EVENT_AGE",
    "RETENTION_HISTORY_AGE",
    "BUNDLE_GRACE",
    "MIRROR_UNUSED",
)


def _error(number: int, sentence: str, hint: str) -> Error:
    return Error(sentence, hint=hint, id=f"fleetsync.E{number:03}")


def _warning(number: int, sentence: str, hint: str) -> CheckMessage:
    return CheckMessage(WARNING, sentence, hint=hint, id=f"fleetsync.W{number:03}")


@register("fleetsync")
def check_times(**_: Any) -> list[CheckMessage]:
    """E001 to E005, W006 and W007: leases outlast deadlines, hard limits outlast what a healthy task takes."""
    found: list[CheckMessage] = [
        _error(1, f"{name} is not above 0.", f"Set {name} to a duration such as 30s.")
        for name in _DURATIONS
        if getattr(settings, name) <= 0
    ]
    needed = settings.GIT_TIMEOUT + LEASE_MARGIN
    if needed >= settings.POLL_LEASE:
        sentence = (
            f"POLL_LEASE ({settings.POLL_LEASE:g}s) does not outlast GIT_TIMEOUT plus {LEASE_MARGIN} s: "
            "a poll that is merely slow would be claimed by a second worker."
        )
        hint = f"Set POLL_LEASE above {needed:g}s, lower GIT_TIMEOUT, or leave POLL_LEASE unset."
        found.append(_error(2, sentence, hint))
    for queue, drain, timeout in (
        ("poll", "POLL_DRAIN", "GIT_TIMEOUT"),
        ("sync", "SYNC_DRAIN", "GIT_FETCH_TIMEOUT"),
        ("deliver", "DELIVERY_DRAIN", "DELIVERY_TIMEOUT"),
    ):
        limit = limits.hard_limit(queue)
        if limit <= settings.SESSION_BUDGET + getattr(settings, timeout) + LEASE_MARGIN:
            sentence = (
                f"The hard limit of a {queue} session ({limit} s) does not outlast SESSION_BUDGET plus {timeout}: "
                "a healthy session would be killed while it drains."
            )
            found.append(_error(3, sentence, f"Raise fleetsync.limits.{drain}."))
    if settings.GIT_FETCH_TIMEOUT < settings.GIT_TIMEOUT:
        sentence = "GIT_FETCH_TIMEOUT is below GIT_TIMEOUT: a fetch begins by asking for refs and needs more."
        found.append(_error(4, sentence, "Set GIT_FETCH_TIMEOUT to GIT_TIMEOUT or more; 10m is the default."))
    for name in ("JOB_LEASE", "DELIVERY_LEASE"):
        if getattr(settings, name) < SHORTEST_LEASE:
            sentence = (
                f"{name} is below {SHORTEST_LEASE} s: it is renewed every third of it, and a database that takes a "
                "moment to answer would give running work to a second worker."
            )
            found.append(_error(5, sentence, f"Set {name} to {SHORTEST_LEASE}s or more; 60s is the default."))
    if settings.GITREPO_BACKOFF_CAP < settings.GITREPO_POLLING_INTERVAL:
        sentence = (
            "GITREPO_BACKOFF_CAP is below GITREPO_POLLING_INTERVAL: no wait after an error is longer than the "
            "interval, and what ends its workers does so once in each."
        )
        hint = "Set GITREPO_BACKOFF_CAP to several times the interval; 5m is the default."
        found.append(_warning(6, sentence, hint))
    if settings.WATCHDOG < BROKER_RETRY:
        sentence = (
            f"WATCHDOG is below {BROKER_RETRY} s: when the broker comes back, a worker may take so long to notice, "
            "and would be ended although it is well."
        )
        found.append(_warning(7, sentence, f"Set WATCHDOG to {BROKER_RETRY}s or more; 60s is the default."))
    return found


@register("fleetsync")
def check_numbers(**_: Any) -> list[CheckMessage]:
    """E010 to E014 and E016: numbers in their range, queues and networks that exist."""
    found: list[CheckMessage] = [
        _error(10, f"{name} is below 1: nothing would ever run.", f"Set {name} to 1 or more.")
        for name in _COUNTS
        if getattr(settings, name) < 1
    ]
    found += [
        _error(11, f"{name} is not between 0 and 1.", f"Set {name} to a part of the whole, such as 0.10.")
        for name in _PARTS
        # NaN fails this comparison as well.
        if not 0 <= getattr(settings, name) <= 1
    ]
    unknown = [name for name in settings.WORKER_QUEUES if name not in QUEUES]
    if unknown or not settings.WORKER_QUEUES:
        found.append(
            _error(
                12,
                f"WORKER_QUEUES names {', '.join(map(repr, unknown)) or 'no queue at all'}.",
                f"Set WORKER_QUEUES to one or more of {','.join(QUEUES)}.",
            )
        )
    for network in settings.GIT_ALLOWED_NETWORKS:
        try:
            ipaddress.ip_network(network)
        except ValueError:
            hint = "Write each as 10.1.0.0/16 or fd00::/8, with the bits after the mask 0."
            found.append(_error(13, f"GIT_ALLOWED_NETWORKS has {network!r}, which is not a network.", hint))
    root = Path(settings.GIT_FILE_ROOT)
    if settings.GIT_FILE_ROOT and (not root.is_absolute() or root == Path("/")):
        hint = "Set GIT_FILE_ROOT to the one folder whose repositories file:// may name, or leave it empty."
        found.append(_error(14, "GIT_FILE_ROOT is not an absolute folder below /.", hint))
    if settings.GIT_PARTIAL_CLONE not in ("auto", "off"):
        sentence = f"GIT_PARTIAL_CLONE is {settings.GIT_PARTIAL_CLONE!r}, which is neither auto nor off."
        found.append(_error(16, sentence, "Set GIT_PARTIAL_CLONE to auto or off; auto is the default."))
    return found


@register("fleetsync")
def check_retention(**_: Any) -> list[CheckMessage]:
    """E040 to E042: what is in use outlives its work, and what is kept is not nothing."""
    found: list[CheckMessage] = [
        _error(40, f"{name} is below 1: nothing would be kept.", f"Set {name} to 1 or more.")
        for name in ("RETENTION_REVISIONS", "RETENTION_EVENTS")
        if getattr(settings, name) < 1
    ]
    longest = max(limits.hard_limit("sync"), limits.hard_limit("deliver"))
    if longest >= settings.BUNDLE_GRACE:
        sentence = (
            f"BUNDLE_GRACE ({settings.BUNDLE_GRACE:g}s) does not outlast the longest job ({longest} s): "
            "a bundle could be removed while it is made or delivered."
        )
        hint = f"Set BUNDLE_GRACE above {longest}s (6h is the default), or lower GIT_FETCH_TIMEOUT."
        found.append(_error(41, sentence, hint))
    if settings.MIRROR_MAX_BYTES < 0 or 0 < settings.MIRROR_MAX_BYTES < settings.GIT_FETCH_MAX_BYTES:
        sentence = "MIRROR_MAX_BYTES is below GIT_FETCH_MAX_BYTES: one fetch alone could be over the limit."
        hint = (
            "Set MIRROR_MAX_BYTES to GIT_FETCH_MAX_BYTES or more, or to 0 for no limit; or lower GIT_FETCH_MAX_BYTES."
        )
        found.append(_error(42, sentence, hint))
    return found


@register("fleetsync")
def check_broker(**_: Any) -> list[CheckMessage]:
    """E020 to E022: the broker's address, and in production who can reach it."""
    parts = urlsplit(settings.REDIS_URL)
    if parts.scheme not in ("redis", "rediss", "redis+socket"):
        hint = "Set REDIS_URL to redis://:password@host:6379/0, rediss://… or redis+socket:///path."
        return [_error(20, f"REDIS_URL has the scheme {parts.scheme!r}, which is not Redis'.", hint)]
    if parts.scheme == "redis+socket":
        if len(parts.path.encode()) > MAX_SOCKET_PATH:
            sentence = f"The socket's path in REDIS_URL is longer than {MAX_SOCKET_PATH} bytes, the kernel's limit."
            return [_error(21, sentence, "Set DATA_DIR to a shorter path, or REDIS_URL to another socket or host.")]
        private = parts.password or _only_ours(Path(parts.path))
    else:
        private = parts.password
    if not settings.DEBUG and not private:
        sentence = "DEBUG is off and everybody who reaches the broker may send it messages: it has no password."
        return [_error(22, sentence, "Set REDIS_URL to redis://:password@host:6379/0, or to a socket of mode 0700.")]
    return []


def _only_ours(socket: Path) -> bool:
    """True if the socket, or a folder on its way, keeps other users out; also if it does not exist yet."""
    try:
        if not socket.stat().st_mode & stat.S_IWOTH:
            return True
        return any(not folder.stat().st_mode & stat.S_IXOTH for folder in socket.parents)
    except OSError:
        return True


@register("fleetsync", Tags.security)
def check_secrets(**_: Any) -> list[CheckMessage]:
    """E030 to E034: with DEBUG off there is no made-up key to fall back on."""
    found: list[CheckMessage] = list(_encryption_key_errors())
    if settings.DEBUG:
        return found
    if settings.FAILPOINTS_DIR:
        sentence = "DEBUG is off and FAILPOINTS_DIR is set: whoever writes there can stop any process."
        found.append(_error(34, sentence, "Unset FAILPOINTS_DIR: it is for tests."))
    try:
        key = settings.SECRET_KEY
    except ImproperlyConfigured:  # Django's own refusal of an empty one
        key = ""
    if len(key) < MIN_SECRET_KEY or len(set(key)) < MIN_SECRET_KEY_CHARACTERS or key.startswith("django-insecure-"):
        sentence = "DEBUG is off and SECRET_KEY is missing or weak: sessions could be forged."
        hint = (
            f"Set SECRET_KEY (or SECRET_KEY_FILE) to {MIN_SECRET_KEY} or more random characters: "
            "python3 -c 'import secrets; print(secrets.token_urlsafe(50))'"
        )
        found.append(_error(30, sentence, hint))
    if not settings.ALLOWED_HOSTS:
        sentence = "DEBUG is off and ALLOWED_HOSTS is empty: every request would be refused."
        found.append(_error(33, sentence, "Set ALLOWED_HOSTS to the names that users reach this by, comma-separated."))
    return found


def _encryption_key_errors() -> Iterator[Error]:
    hint = (
        "Set ENCRYPTION_KEYS (or ENCRYPTION_KEYS_FILE), newest first: "
        "python3 -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'"
    )
    if not settings.ENCRYPTION_KEYS:
        yield _error(31, "ENCRYPTION_KEYS is empty: credentials could not be kept.", hint)
    for position, key in enumerate(settings.ENCRYPTION_KEYS, 1):
        try:
            Fernet(key)
        except ValueError:
            # The key itself is never shown: it may be a good one with a stray character.
            yield _error(32, f"Key number {position} in ENCRYPTION_KEYS is not a Fernet key.", hint)


def check_eviction() -> list[CheckMessage]:
    """E023 and W024: the broker throws no message away when its memory is full.

    Not registered, because it asks the broker: `manage.py check` works where that is away. One that does not answer is
    no error, since a worker waits for it, and one that does not tell is a warning.
    """
    try:
        answer = redis_client().config_get("maxmemory-policy")
    except redis.ResponseError as error:  # managed services forbid CONFIG
        sentence = f"The broker does not say what it does when its memory is full ({error})."
        return [_warning(24, sentence, "See that its maxmemory-policy is noeviction.")]
    except (redis.RedisError, OSError):
        return []
    policy = dict(answer).get("maxmemory-policy", "noeviction")
    if policy == "noeviction":
        return []
    sentence = (
        f"The broker's maxmemory-policy is {policy}: with its memory full it would throw away messages and whole "
        "queues without a word, instead of refusing new ones."
    )
    return [_error(23, sentence, "Set maxmemory-policy to noeviction in the broker's configuration.")]


def check_git() -> list[CheckMessage]:
    """E025: the git on the PATH is new enough. Not registered: only workers need one. If it is missing, each job says so."""
    try:
        said = subprocess.run(["git", "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = re.match(r"git version (\d+)\.(\d+)", said)
    if found is None or (int(found[1]), int(found[2])) >= OLDEST_GIT:
        return []
    oldest = ".".join(map(str, OLDEST_GIT))
    sentence = f"The git on the PATH is {found[1]}.{found[2]}, and {oldest} is the oldest that can be used."
    return [_error(25, sentence, f"Install git {oldest} or newer on the worker's PATH.")]


def refuse_to_start_with_errors(*, uses_broker: bool = False, uses_git: bool = False) -> None:
    """Ends the process with status 1 and a line for each failed system check; returns if there is none.

    `uses_broker`: the broker is asked as well; `uses_git`: git is.
    """
    log = logging.getLogger(__name__)
    try:
        asked = [*(check_eviction() if uses_broker else ()), *(check_git() if uses_git else ())]
        found = [message for message in (*run_checks(), *asked) if not message.is_silenced()]
    except Exception:
        # Celery's signals would swallow it and go on.
        log.critical("Not started: the system checks themselves failed", exc_info=True)
        sys.exit(1)
    failed = [message for message in found if message.is_serious()]
    for message in asked:
        if not message.is_serious():
            log.warning("%s %s (%s)", message.msg, message.hint or "", message.id)
    for message in failed:
        log.critical("Not started: %s %s (%s)", message.msg, message.hint or "", message.id)
    if failed:
        sys.exit(1)
