"""What is written down twice says the same: compose.yaml and README.md as processes.py and settings.py."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import call_command
from pytest_django import Settings

from fleetsync import processes
from fleetsync.alive import alive_file
from fleetsync.celery import QUEUES, app

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
SECRETS = ("SECRET_KEY", "ENCRYPTION_KEYS", "ALLOWED_HOSTS", "POSTGRES_PASSWORD", "REDIS_PASSWORD")


def settings_read() -> set[str]:
    """The names of the variables that settings.py reads."""
    text = (ROOT / "fleetsync" / "settings.py").read_text()
    return set(re.findall(r"\b(?:env\.\w+|seconds)\(\s*\"([A-Z][A-Z_]+)\"", text))


def test_the_readme_names_every_setting_once() -> None:
    text = (ROOT / "README.md").read_text()
    table = text.split("## Settings")[1].split("\n## ")[0]
    named = re.findall(r"^\| ([A-Z][A-Z_]+) \|", table, re.M)
    assert len(named) == len(set(named))
    assert set(named) == settings_read()


def test_the_readme_starts_with_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text().split("\n")
    assert [line.split("#")[0].strip() for line in lines[2:4]] == ["make run", "make test"]


@pytest.mark.parametrize(("service", "command"), [("web", "web"), ("beat", "beat"), ("worker", "work")])
def test_a_container_runs_what_the_list_says(service: str, command: str) -> None:
    python, manage, *rest = processes.manage(command)
    assert SERVICES[service]["command"] == [Path(python).name.rstrip("0123456789."), Path(manage).name, *rest]


@pytest.mark.parametrize("command", ["web", "beat"])
def test_the_commands_become_what_the_list_says(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: became.append(arguments))
    call_command(command, skip_checks=True)
    assert became == [getattr(processes, command)()]


def test_compose_asks_for_every_secret_and_has_no_default_for_one() -> None:
    text = (ROOT / "compose.yaml").read_text()
    for name in SECRETS:
        assert re.search(rf"\${{{name}:\?", text), f"{name} is not required"
        assert not re.search(rf"\${{{name}(:-|-|}})", text), f"{name} may be empty somewhere"


def test_compose_sets_only_what_settings_read() -> None:
    for name in ("web", "beat", "worker", "migrate"):
        assert set(SERVICES[name]["environment"]) <= settings_read()


def test_compose_keeps_redis_whole() -> None:
    command = SERVICES["redis"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert command[command.index("--appendonly") + 1] == "yes"
    assert "--requirepass" in command


@pytest.mark.parametrize("service", ["web", "beat", "worker", "migrate"])
def test_containers_have_no_rights_to_spare(service: str) -> None:
    assert SERVICES[service]["read_only"] is True
    assert SERVICES[service]["cap_drop"] == ["ALL"]
    if service != "migrate":
        assert "healthcheck" in SERVICES[service]
        assert SERVICES[service]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


def test_a_worker_container_has_time_to_stop() -> None:
    grace = int(SERVICES["worker"]["environment"]["STOP_GRACE"].removesuffix("s"))
    assert int(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) > grace + 5


@pytest.mark.parametrize("name", ["beat", "work"])
def test_the_health_check_finds_the_sign_of_life(name: str, settings: Settings, tmp_path: Path) -> None:
    settings.DATA_DIR = tmp_path
    service = {"beat": "beat", "work": "worker"}[name]
    command = SERVICES[service]["healthcheck"]["test"][1].replace("$$", "$").replace("/data", str(tmp_path))
    assert subprocess.run(["sh", "-c", command], capture_output=True).returncode != 0
    alive_file(name).parent.mkdir()
    alive_file(name).touch()
    assert subprocess.run(["sh", "-c", command]).returncode == 0
    os.utime(alive_file(name), (0, 0))
    assert subprocess.run(["sh", "-c", command]).returncode != 0


def test_docker_agrees() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed")
    environment = {**os.environ, **dict.fromkeys(SECRETS, "x")}
    command = [docker, "compose", "config", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_image_has_what_it_copies() -> None:
    kept = (ROOT / ".dockerignore").read_text()
    for source in re.findall(r"^COPY (\S+) ", (ROOT / "Dockerfile").read_text(), re.M):
        assert (ROOT / source).exists()
        assert f"!{source}\n" in kept


def test_every_queue_has_a_worker_of_its_own(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "resolver", lambda: {"RES_OPTIONS": "timeout:2 attempts:2"})
    settings.WORKER_QUEUES = list(QUEUES)
    children = processes.workers()
    assert [child.name for child in children] == list(QUEUES)
    for child in children:
        assert child.argv[child.argv.index("--queues") + 1] == f"{child.name},{processes.own_queue(child.name)}"
        assert child.env == {
            processes.OWN_QUEUE: processes.own_queue(child.name),
            "RES_OPTIONS": "timeout:2 attempts:2",
        }
        assert "--without-gossip" in child.argv
        assert "--without-mingle" in child.argv
        assert "--without-heartbeat" in child.argv
    assert len({child.argv[child.argv.index("--hostname") + 1] for child in children}) == len(children)


@pytest.mark.parametrize(
    ("variable", "file", "becomes"),
    [
        (None, "nameserver 192.0.2.1\n", {"RES_OPTIONS": "timeout:2 attempts:2"}),
        (None, "options edns0 trust-ad\n", {"RES_OPTIONS": "timeout:2 attempts:2"}),
        (None, None, {"RES_OPTIONS": "timeout:2 attempts:2"}),
        (None, "options edns0 timeout:1\n", {}),
        (None, "options attempts:5\n", {}),
        ("timeout:7", "", {}),
        ("", "", {}),
    ],
)
def test_how_long_names_are_looked_up_is_left_to_whoever_says_it(
    variable: str | None, file: str | None, becomes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RES_OPTIONS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RES_OPTIONS", variable)
    if file is not None:
        (tmp_path / "resolv.conf").write_text(file)
    monkeypatch.setattr(processes, "RESOLV_CONF", tmp_path / "resolv.conf")
    assert processes.resolver() == becomes


def test_make_run_stops_the_doors_before_the_workers() -> None:
    order = {child.name: child.stop_order for child in processes.services()}
    redis = processes.redis(Path("/x/redis.sock"), Path("/x"))
    workers = {order[queue] for queue in QUEUES}
    assert order["web"] <= order["beat"] < min(workers) <= max(workers) < redis.stop_order


def test_celery_reads_json_alone() -> None:
    assert app.conf.accept_content == ["json"]
    assert app.conf.task_serializer == "json"
    assert app.conf.result_accept_content in (None, ["json"])


def test_the_makefile_has_what_the_readme_says() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for name in set(re.findall(r"\bmake ([a-z]+)", (ROOT / "README.md").read_text())):
        assert name in targets, f"README.md says make {name}"
