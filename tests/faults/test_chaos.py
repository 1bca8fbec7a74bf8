"""`make chaos SECONDS= SEED=`: faults at random over at least two hundred repositories, and the oracle at the end."""

import os
import sys
from collections.abc import Callable

import pytest

# Each of these enters its faults into the table.
from tests.faults import broker, database, disks, processes, remotes  # noqa: F401
from tests.faults.chaos import chaos
from tests.faults.conftest import REPORTS
from tests.faults.judge import judge, look
from tests.faults.table import BOTH
from tests.faults.world import World

pytestmark = [pytest.mark.chaos, pytest.mark.end_to_end]

SECONDS = float(os.environ.get("CHAOS_SECONDS") or 60)
SEED = int(os.environ["CHAOS_SEED"])
REPOSITORIES = 200


def say(text: str) -> None:
    """Past pytest's capture: a long run shows how far it has come."""
    sys.__stderr__ and sys.__stderr__.write(f"{text}\n")


@pytest.mark.timeout(SECONDS + 600)
@pytest.mark.parametrize("kind", os.environ.get("CHAOS_DATABASES", ",".join(BOTH)).split(","))
def test_nothing_is_lost_in_chaos(a_world: Callable[..., World], kind: str) -> None:
    say(f"\nchaos on {kind}: CHAOS_SECONDS={SECONDS:g} CHAOS_SEED={SEED}")
    world = a_world(kind, gitrepos=4)
    world.follow(REPOSITORIES - 4, "chaos", interval="10s")
    world.anyone = True
    before = look(world)
    report = chaos(world, SECONDS, SEED, say)
    report.late = world.settle(240)
    # Nothing is lost. What `stale_git_locks` left lies in a mirror until its next fetch, and the commit that it pushed for that
    # may have been taken back before anybody saw it: hence one more, which stays.
    for one in world.followed:
        one.push()
    try:
        judge(world, report, before, woken=True, settle_seconds=240)
    finally:
        report.keep(REPORTS)
        say(f"{report}")
