"""The fault suite: each fault of the table on each database that can have it, judged by the oracle."""

import pytest

# Each of these enters its faults into the table.
from tests.faults import broker, database, disks, processes, remotes  # noqa: F401
from tests.faults.conftest import REPORTS, Worlds
from tests.faults.judge import Report, judge, look
from tests.faults.table import BOTH, FAULTS

pytestmark = [pytest.mark.faults, pytest.mark.end_to_end]

CASES = [(kind, name) for kind in BOTH for name, entry in FAULTS.items() if kind in entry.databases]


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind}-{name}" for kind, name in CASES])
def test_nothing_is_lost(worlds: Worlds, kind: str, name: str) -> None:
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
