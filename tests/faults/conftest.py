"""Choosing faults (all, or a seeded share), going on where a run was stopped, and the worlds that they happen in."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.stack import ROOT
from tests.faults.table import BOTH
from tests.faults.world import World
from tests.postgresql import programs

OUT = ROOT / "var" / "faults"
REPORTS = OUT / "reports.jsonl"
PASSED = OUT / "passed.json"
FAILED = OUT / "failed.txt"


def pytest_configure(config: pytest.Config) -> None:
    """One seed for this process and for those that it starts, so that they choose alike."""
    os.environ["FAULTS_SEED"] = os.environ.get("FAULTS_SEED") or str(random.randrange(10**6))
    os.environ["CHAOS_SEED"] = os.environ.get("CHAOS_SEED") or str(random.randrange(10**6))


def pytest_report_header() -> str:
    share = os.environ.get("FAULTS_SHARE") or "1/1"
    return f"faults: SHARE={share} SEED={os.environ['FAULTS_SEED']}; chaos: SEED={os.environ['CHAOS_SEED']}"


def database_of(item: pytest.Item) -> str:
    return next((database for database in BOTH if f"[{database}" in item.name), "")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """FAULTS_SHARE=1/3 keeps a random third of the table for each database, by FAULTS_SEED; FAULTS_RESUME=1 leaves out
    what has passed since the last run from the start.
    """
    mine = [item for item in items if database_of(item) and item.path.is_relative_to(ROOT / "tests/faults")]
    faults = [item for item in mine if item.get_closest_marker("faults")]
    dropped: set[pytest.Item] = set()
    if share := os.environ.get("FAULTS_SHARE"):
        part, whole = (int(number) for number in share.split("/"))
        for database in BOTH:
            shuffled = [item for item in faults if database_of(item) == database]
            random.Random(f"{os.environ['FAULTS_SEED']} {database}").shuffle(shuffled)
            dropped.update(shuffled[len(shuffled) * part // whole :])
    if os.environ.get("FAULTS_RESUME") and PASSED.exists():
        passed = set(json.loads(PASSED.read_text()))
        dropped.update(item for item in faults if item.nodeid in passed)
    if dropped:
        config.hook.pytest_deselected(items=list(dropped))
        items[:] = [item for item in items if item not in dropped]


def pytest_sessionstart(session: pytest.Session) -> None:
    if not os.environ.get("FAULTS_RESUME") and not hasattr(session.config, "workerinput"):
        PASSED.unlink(missing_ok=True)
        REPORTS.unlink(missing_ok=True)
        FAILED.unlink(missing_ok=True)
        for folder in OUT.glob("logs-*"):
            shutil.rmtree(folder)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed and "tests/faults/" in report.nodeid and "PYTEST_XDIST_WORKER" not in os.environ:
        # At once: a whole run takes long.
        OUT.mkdir(parents=True, exist_ok=True)
        with FAILED.open("a") as file:
            file.write(f"== {report.nodeid} ({report.when})\n{report.longreprtext}\n")
    is_mine = report.when == "call" and report.passed and "tests/faults/" in report.nodeid
    if is_mine and "PYTEST_XDIST_WORKER" not in os.environ:
        passed = json.loads(PASSED.read_text()) if PASSED.exists() else []
        OUT.mkdir(parents=True, exist_ok=True)
        PASSED.write_text(json.dumps([*passed, report.nodeid]))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the faults cost, a line each."""
    if not REPORTS.exists():
        return
    terminalreporter.section("what the faults cost")
    rows = [json.loads(line) for line in REPORTS.read_text().splitlines()]
    for row in rows:
        notes = ", ".join(f"{name}: {value}" for name, value in row["notes"].items())
        terminalreporter.write_line(
            f"{row['database'][:6]} {row['fault'][:60]:60} late {row['late']:5.1f} s, longest gap {row['longest_gap']:5.1f} s, "
            f"{row['commits']:3} commits, {row['fenced']} late writes dropped; {notes}"[:300]
        )
    total = {key: sum(row[key] for row in rows) for key in ("polls", "commits", "fenced", "superseded")}
    terminalreporter.write_line(f"{len(rows)} faults, {total}")


@pytest.fixture(autouse=True, scope="session")
def _database_may_be_looked_at(django_db_blocker: Any) -> Iterator[None]:
    """The worlds' databases are their own; pytest-django's guard is for the tests' one."""
    with django_db_blocker.unblock():
        yield


class Worlds:
    """One world for each database, which goes on from fault to fault until one of them fails in it."""

    def __init__(self) -> None:
        self.kept: dict[str, World] = {}

    def get(self, database: str) -> World:
        if database == "postgresql" and programs() is None:
            pytest.skip("PostgreSQL's server programs are not installed: apt install postgresql")
        for other in [name for name in self.kept if name != database]:
            self.discard(other)
        if database not in self.kept:
            self.kept[database] = World(database)
        return self.kept[database]

    def discard(self, database: str) -> None:
        if world := self.kept.pop(database, None):
            keep_logs(world)
            world.close()

    def close(self) -> None:
        for database in list(self.kept):
            self.discard(database)


def keep_logs(world: World) -> None:
    """The logs of each world, in the order in which they ended, for whoever wants to know why."""
    number = len(list(OUT.glob(f"logs-{world.database}-*"))) + 1
    folder = OUT / f"logs-{world.database}-{number}"
    folder.mkdir(parents=True)
    for log in world.stack.logs.glob("*.log"):
        Path(folder / log.name).write_bytes(log.read_bytes())


@pytest.fixture(scope="session")
def worlds() -> Iterator[Worlds]:
    found = Worlds()
    yield found
    found.close()


@pytest.fixture
def a_world() -> Iterator[Callable[..., World]]:
    """Worlds with settings of their own: a_world("sqlite", env={…})."""
    made: list[World] = []

    def make(database: str, **options: Any) -> World:
        if database == "postgresql" and programs() is None:
            pytest.skip("PostgreSQL's server programs are not installed: apt install postgresql")
        made.append(World(database, **options))
        return made[-1]

    yield make
    for world in made:
        keep_logs(world)
        world.close()
