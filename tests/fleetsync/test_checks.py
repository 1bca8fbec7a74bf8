"""The system checks: which setting breaks which rule, and that no process starts over a broken one."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.checks import CheckMessage
from pytest_django import Settings

from fleetsync import checks, limits, processes
from fleetsync.redis import redis_client
from tests.fleetsync.conftest import RedisServer

ROOT = Path(__file__).resolve().parents[2]
KEY = Fernet.generate_key().decode()
STRONG = "k7PpX2vQeWz9uYtRsLmNaBcDfGhJ4561_-aBcDeFgHiJkLmNoPqR"

# What production sets; each case below breaks one of these.
PRODUCTION: dict[str, Any] = {
    "DEBUG": False,
    "SECRET_KEY": STRONG,
    "ENCRYPTION_KEYS": [KEY],
    "ALLOWED_HOSTS": ["fleetsync.example.com"],
    "REDIS_URL": "redis://:password@redis:6379/0",
}

Check = Callable[[], list[CheckMessage]]


def found(check: Check) -> list[str]:
    return [str(message.id).removeprefix("fleetsync.") for message in check()]


@pytest.mark.parametrize(
    "check",
    [checks.check_times, checks.check_numbers, checks.check_retention, checks.check_broker, checks.check_secrets],
    ids=lambda c: c.__name__,
)
@pytest.mark.parametrize("changes", [{}, PRODUCTION], ids=["bare machine", "production"])
def test_the_defaults_are_right(settings: Settings, check: Check, changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        setattr(settings, name, value)
    assert check() == []


@pytest.mark.parametrize(
    ("check", "changes", "ids"),
    [
        (checks.check_times, {"POLL_LEASE": 35.0, "GIT_TIMEOUT": 30.0}, ["E002"]),
        (checks.check_times, {"POLL_LEASE": 35.1, "GIT_TIMEOUT": 30.0}, []),
        (checks.check_times, {"GIT_TIMEOUT": 3600.0}, ["E002", "E004"]),
        (checks.check_times, {"GIT_FETCH_TIMEOUT": 10.0}, ["E004"]),
        (checks.check_times, {"GITREPO_BACKOFF_CAP": 0.0}, ["E001", "W006"]),
        (checks.check_times, {"SESSION_BUDGET": 0.0}, ["E001"]),
        (checks.check_times, {"JOB_LEASE": 3.0, "DELIVERY_LEASE": 3.0}, []),
        (checks.check_times, {"JOB_LEASE": 2.9}, ["E005"]),
        (checks.check_times, {"DELIVERY_LEASE": 1.0}, ["E005"]),
        (checks.check_times, {"GITREPO_BACKOFF_CAP": 10.0}, ["W006"]),
        (checks.check_times, {"WATCHDOG": 5.0}, ["W007"]),
        (checks.check_numbers, {"GITREPO_POLLING_JITTER": -0.1}, ["E011"]),
        (checks.check_numbers, {"GITREPO_POLLING_JITTER": 1.1}, ["E011"]),
        (checks.check_numbers, {"GITREPO_POLLING_JITTER": float("nan")}, ["E011"]),
        (checks.check_numbers, {"GITREPO_POLLING_JITTER": 1.0}, []),
        (checks.check_numbers, {"DELIVERY_MAX_REMOVED_PART": 50.0}, ["E011"]),
        (checks.check_numbers, {"GITREPO_RECONCILER_WORKERS": 0}, ["E010"]),
        (checks.check_numbers, {"GIT_HOST_CONCURRENCY": 0}, ["E010"]),
        (checks.check_numbers, {"POLL_PROCESSES": 0, "DELIVERY_WORKERS": -1}, ["E010", "E010"]),
        (checks.check_numbers, {"WORKER_QUEUES": ["poll", "pol"]}, ["E012"]),
        (checks.check_numbers, {"WORKER_QUEUES": []}, ["E012"]),
        (checks.check_numbers, {"GIT_ALLOWED_NETWORKS": ["10.0.0.0/8", "fd00::/8"]}, []),
        (checks.check_numbers, {"GIT_ALLOWED_NETWORKS": ["10.0.0.1/8"]}, ["E013"]),
        (checks.check_numbers, {"GIT_ALLOWED_NETWORKS": ["intranet", "10.0.0.0/8"]}, ["E013"]),
        (checks.check_numbers, {"GIT_FILE_ROOT": "var"}, ["E014"]),
        (checks.check_numbers, {"GIT_FILE_ROOT": "/"}, ["E014"]),
        (checks.check_numbers, {"GIT_PARTIAL_CLONE": "off"}, []),
        (checks.check_numbers, {"GIT_PARTIAL_CLONE": "on"}, ["E016"]),
        (checks.check_times, {"RETENTION_AGE": 0.0, "MIRROR_UNUSED": -1.0}, ["E001", "E001"]),
        (checks.check_retention, {"RETENTION_REVISIONS": 0, "RETENTION_EVENTS": -1}, ["E040", "E040"]),
        (checks.check_retention, {"RETENTION_REVISIONS": 1, "RETENTION_EVENTS": 1}, []),
        (checks.check_retention, {"BUNDLE_GRACE": 740.0}, ["E041"]),
        (checks.check_retention, {"BUNDLE_GRACE": 741.0}, []),
        (checks.check_retention, {"DELIVERY_TIMEOUT": 6 * 3600.0}, ["E041"]),
        (checks.check_retention, {"MIRROR_MAX_BYTES": -1}, ["E042"]),
        (checks.check_retention, {"MIRROR_MAX_BYTES": 2 * 1024**3 - 1}, ["E042"]),
        (checks.check_retention, {"MIRROR_MAX_BYTES": 2 * 1024**3}, []),
        (checks.check_broker, {"REDIS_URL": "amqp://guest@localhost//"}, ["E020"]),
        (checks.check_broker, {"REDIS_URL": "redis+socket:///" + "x" * 106}, []),
        (checks.check_broker, {"REDIS_URL": "redis+socket:///" + "x" * 107}, ["E021"]),
        (checks.check_broker, {**PRODUCTION, "REDIS_URL": "redis://redis:6379/0"}, ["E022"]),
        (checks.check_broker, {**PRODUCTION, "REDIS_URL": "redis://user@redis:6379/0"}, ["E022"]),
        (checks.check_broker, {**PRODUCTION, "REDIS_URL": "rediss://:pw@redis:6379/0"}, []),
        (checks.check_broker, {**PRODUCTION, "REDIS_URL": "redis+socket:///run/ours/redis.sock"}, []),
        (checks.check_secrets, {**PRODUCTION, "SECRET_KEY": ""}, ["E030"]),
        (checks.check_secrets, {**PRODUCTION, "SECRET_KEY": "short"}, ["E030"]),
        (checks.check_secrets, {**PRODUCTION, "SECRET_KEY": "a" * 60}, ["E030"]),
        (checks.check_secrets, {**PRODUCTION, "ENCRYPTION_KEYS": []}, ["E031"]),
        (checks.check_secrets, {**PRODUCTION, "ENCRYPTION_KEYS": [KEY, "not-a-key"]}, ["E032"]),
        (checks.check_secrets, {"ENCRYPTION_KEYS": ["ä" * 32]}, ["E032"]),
        (checks.check_secrets, {**PRODUCTION, "ALLOWED_HOSTS": []}, ["E033"]),
    ],
    ids=lambda value: str(value)[-60:] if isinstance(value, dict) else None,
)
def test_a_broken_relation_has_its_error(
    settings: Settings, check: Check, changes: dict[str, Any], ids: list[str]
) -> None:
    for name, value in changes.items():
        setattr(settings, name, value)
    assert found(check) == ids
    assert all(message.hint for message in check())


@pytest.fixture
def broker(settings: Settings, redis_server: RedisServer) -> Iterator[RedisServer]:
    redis_client.cache_clear()
    settings.REDIS_URL = redis_server.url
    yield redis_server
    redis_client.cache_clear()


@pytest.mark.parametrize(("policy", "ids"), [("noeviction", []), ("allkeys-lru", ["E023"]), ("volatile-ttl", ["E023"])])
def test_a_broker_that_throws_messages_away_is_refused(broker: RedisServer, policy: str, ids: list[str]) -> None:
    broker.client.config_set("maxmemory-policy", policy)

    assert found(checks.check_eviction) == ids
    assert not ids or policy in checks.check_eviction()[0].msg


def test_a_broker_that_does_not_tell_is_warned_of(broker: RedisServer) -> None:
    broker.client.acl_setuser("default", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-config"])

    assert found(checks.check_eviction) == ["W024"]


def test_a_broker_that_is_away_is_no_error(broker: RedisServer) -> None:
    broker.stop()

    assert checks.check_eviction() == []


@pytest.mark.parametrize("command", [processes.beat(), processes.worker("poll")], ids=["beat", "worker"])
def test_no_process_starts_on_such_a_broker(command: list[str], redis_server: RedisServer, tmp_path: Path) -> None:
    redis_server.client.config_set("maxmemory-policy", "allkeys-lru")
    environment = {"PATH": os.environ["PATH"], "DATA_DIR": str(tmp_path), "REDIS_URL": redis_server.url}

    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert "fleetsync.E023" in done.stdout + done.stderr
    check = subprocess.run(processes.manage("check"), env=environment, cwd=ROOT, capture_output=True, timeout=60)
    assert check.returncode == 0  # which asks no broker


def git_that_says(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "git"
    program.write_text(f"#!/bin/sh\necho '{text}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("said", "ids"),
    [
        ("git version 2.34.1", ["E025"]),
        ("git version 2.37.0", []),
        ("git version 2.47.1.windows.2", []),
        ("git version 3.0.0-rc1", []),
        ("something else", []),
    ],
)
def test_an_old_git_is_refused(said: str, ids: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git_that_says(said, tmp_path, monkeypatch)
    assert found(checks.check_git) == ids


def test_without_git_each_job_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checks.check_git() == []


def test_no_worker_starts_with_an_old_git(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git_that_says("git version 2.30.2", tmp_path, monkeypatch)
    environment = {"PATH": os.environ["PATH"], "DATA_DIR": str(tmp_path), "REDIS_URL": redis_server.url}

    done = subprocess.run(
        processes.worker("sync"), env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 1
    assert "fleetsync.E025" in done.stdout + done.stderr


def test_a_key_is_never_shown(settings: Settings) -> None:
    settings.ENCRYPTION_KEYS = ["hunter2-nearly-a-key"]
    assert "hunter2" not in str(checks.check_secrets())


def test_a_socket_open_to_all_is_not_private(settings: Settings, redis_server: Any) -> None:
    settings.DEBUG = False
    settings.REDIS_URL = redis_server.url
    redis_server.socket.chmod(0o777)
    assert found(checks.check_broker) == []  # nobody else gets into its folder
    redis_server.folder.chmod(0o755)
    assert found(checks.check_broker) == ["E022"]
    redis_server.socket.chmod(0o700)
    assert found(checks.check_broker) == []


@pytest.mark.parametrize(
    ("queue", "seconds"),
    [("control", 120), ("poll", 80), ("sync", 740), ("deliver", 140)],
    ids=str,
)
def test_hard_limits_by_default(settings: Settings, queue: str, seconds: int) -> None:
    settings.SESSION_BUDGET, settings.GIT_TIMEOUT, settings.GIT_FETCH_TIMEOUT = 20.0, 30.0, 600.0
    settings.DELIVERY_TIMEOUT = 60.0
    assert limits.hard_limit(queue) == seconds


@pytest.mark.parametrize(
    "command",
    [
        processes.manage("work"),
        processes.beat(),
        processes.worker("poll"),
        processes.web(),
        [sys.executable, "-c", "import fleetsync.wsgi"],
    ],
    ids=["work", "beat", "worker", "web", "another WSGI server"],
)
def test_no_process_starts_without_its_secrets(command: list[str], tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "DEBUG": "off",
        "DATA_DIR": str(tmp_path),
        "PORT": "0",
        "SECRET_KEY": STRONG,
        "REDIS_URL": "redis://localhost:1/0",
        "ALLOWED_HOSTS": "fleetsync.example.com",
    }
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "fleetsync.E022" in done.stdout + done.stderr
    assert "fleetsync.E031" in done.stdout + done.stderr


@pytest.mark.parametrize("value", ["1d", "soon", "-5s"])
def test_a_duration_that_is_none_is_refused_by_name(value: str, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "DATA_DIR": str(tmp_path), "GIT_TIMEOUT": value}
    done = subprocess.run(
        processes.manage("check"), env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "GIT_TIMEOUT: a duration" in done.stderr
