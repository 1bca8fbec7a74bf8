"""Proof that the suite can fail: each safety is taken out of the program, and a fault shows that it is gone.

The program is changed as it is imported (mutants/sitecustomize.py). That each of these faults passes with the program as it
is, is the suite's own matter.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.stack import ROOT

# Each of these enters its faults into the table.
from tests.faults import broker, database, disks, processes, remotes  # noqa: F401
from tests.faults.judge import Report, judge, look
from tests.faults.table import FAULTS
from tests.faults.world import World

pytestmark = [pytest.mark.faults, pytest.mark.end_to_end]

FOLDER = Path(__file__).parent / "mutants"
# What is taken out, and the fault that has to notice it, on a database that can have it.
NOTICED = [
    ("sqlite", "no_fence", "frozen_at_poll.store"),
    ("sqlite", "no_reclaim", "p5_child_killed_in_the_middle_of_a_poll"),
    ("sqlite", "no_check_of_requests", "d1_a_force_while_the_answer_to_an_older_question_is_written"),
    ("sqlite", "no_comparison_at_the_target", "frozen_at_deliver.apply"),
    ("postgresql", "no_second_look_at_the_claim", "claims_that_choose_at_the_same_moment"),
]


def test_each_mutant_is_tried() -> None:
    assert {mutant for _, mutant, _ in NOTICED} == set(json.loads((FOLDER / "mutants.json").read_text()))


@pytest.mark.parametrize(("kind", "mutant", "name"), NOTICED, ids=[f"{kind}-{mutant}" for kind, mutant, _ in NOTICED])
def test_the_suite_notices_what_is_missing(a_world: Callable[..., World], kind: str, mutant: str, name: str) -> None:
    path = os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH", ""), str(ROOT)]))
    world = a_world(kind, env={"PYTHONPATH": path, "FLEETSYNC_MUTANT": mutant}, gitrepos=4)
    entry, report = FAULTS[name], Report(name, kind)
    before = look(world)
    world.pusher.start()
    with pytest.raises(AssertionError) as noticed:
        entry.inject(world, report)
        world.clear_failpoints()
        world.pusher.stop()
        judge(world, report, before, clock=entry.clock, woken=entry.woken, settle_seconds=25)
    assert "not found" not in str(noticed.value)
