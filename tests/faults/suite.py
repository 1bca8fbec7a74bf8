"""The suite over the table: each fault in a world of its database, judged by the oracle."""

import pytest

# Each of these enters its faults into the table.
from tests.faults import broker, database, disks, processes, remotes  # noqa: F401
from tests.faults.conftest import REPORTS, Worlds
from tests.faults.judge import Report, judge, look
from tests.faults.table import FAULTS


def cases(kind: str) -> pytest.MarkDecorator:
    """Parametrizes a test with the name of every fault that a database of this `kind` can have."""
    names = [name for name, entry in FAULTS.items() if kind in entry.databases]
    return pytest.mark.parametrize("name", names, ids=[f"{kind}-{name}" for name in names])


def suffer(worlds: Worlds, kind: str, name: str) -> None:
    """Let the fault happen under load, and judge what is left."""
    entry = FAULTS[name]
    if reason := entry.needs():
        pytest.skip(reason)
    world = worlds.get(kind)
    report = Report(name, kind)
    try:
        before = look(world)
        world.pusher.start()
        entry.inject(world, report)
        world.clear_failpoints()
        world.pusher.stop()
        judge(world, report, before, clock=entry.clock, woken=entry.woken)
    except BaseException:
        # What comes next gets a world in which nothing is broken yet.
        world.pusher.stop()
        worlds.discard(kind)
        raise
    finally:
        report.keep(REPORTS)
