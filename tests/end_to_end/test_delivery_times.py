"""Scenario P13: a commit everywhere at the same moment, delivered everywhere within the interval and the work itself."""

import time
from collections.abc import Callable
from datetime import datetime

import pytest

from tests.end_to_end.manifests import manifest, register_all
from tests.end_to_end.stack import Stack, wait_until
from tests.git_servers import make_many

pytestmark = pytest.mark.end_to_end

TICK = 1.0


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("count", "interval", "work_seconds"), [(30, 5, 30), (300, 30, 180)])
def test_p13_all_repositories_get_a_commit_at_the_same_moment(
    own_stack: Callable[..., Stack], count: int, interval: int, work_seconds: float
) -> None:
    """`work_seconds` is what fetching, bundling and delivering `count` commits may take on two busy cores."""
    stack = own_stack({"SYNC_PROCESSES": "2"})
    folder = stack.add_cluster("c")
    repositories = make_many(stack.repositories / "many", count)
    register_all(
        stack,
        (
            manifest(
                f"r{n}",
                repository.file_url,
                pollingInterval=f"{interval}s",
                paths=["deploy"],
                targets=[{"clusterName": "c"}],
            )
            for n, repository in enumerate(repositories)
        ),
    )
    applied = "SELECT count(*) FROM repos_delivery d JOIN repos_revision r ON r.id = d.applied_revision_id WHERE r.number = %s"
    wait_until("the first commit everywhere", lambda: stack.sql(applied, 1) == [(count,)], 400, every=0.5)

    commits = [r.commit({"deploy/app.yaml": f"second {n}\n"}) for n, r in enumerate(repositories)]
    pushed_until = time.time()
    bound = interval * 1.1 + TICK + work_seconds
    wait_until("the second commit everywhere", lambda: stack.sql(applied, 2) == [(count,)], bound + 60, every=0.25)

    ends = [row[0] for row in stack.sql("SELECT applied_at FROM repos_delivery")]
    waited = [_timestamp(end) - pushed_until for end in ends]
    assert max(waited) <= bound
    for n, commit in enumerate(commits):
        assert (folder / f"r{n}/current/deploy/app.yaml").read_text() == f"second {n}\n"
        if n % 10 == 0:
            status = stack.gitrepo(f"r{n}")["status"]
            assert (status["display_state"], status["commit"]) == ("Ready", commit)


def _timestamp(value: str | datetime) -> float:
    instant = value if isinstance(value, datetime) else datetime.fromisoformat(value + "+00:00")
    return instant.timestamp()
