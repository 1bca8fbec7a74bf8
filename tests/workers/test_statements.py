"""How many statements a commit takes on its way: what they cost is most of what it costs."""

from collections.abc import Callable
from pathlib import Path

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from repos import registration
from repos.models import Cluster, Delivery, GitRepo
from tests.core import MAIN, adopt_all, answered, delivery_of, fresh
from tests.git_servers import Repository
from tests.workers.test_sync import gitrepo, source
from workers import bundles, sync
from workers.deliver.session import claim_deliveries, deliver

__all__ = ["gitrepo", "source"]

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folders")]

# On PostgreSQL looks at its clock are among them. Beginnings and ends of transactions count where they are savepoints here.
MOST = {"forced": 14, "adopted": 17, "synced": 35, "claimed": 13, "delivered": 11}


def statements(step: Callable[[], object]) -> int:
    with CaptureQueriesContext(connection) as captured:
        step()
    return len(captured)


def test_what_one_commit_takes(gitrepo: GitRepo, source: Repository, settings: Settings, tmp_path: Path) -> None:
    settings.DELIVERY_DIRECTORY_ROOT = str(tmp_path)
    Cluster.objects.update(settings={"path": str(tmp_path / "target")})
    claimed: list[Delivery] = []
    for number in range(2):
        source.commit({"deploy/app.yaml": f"{number}"})
        counts = {"forced": statements(lambda: registration.force(gitrepo.pk))}
        answered(fresh(gitrepo).remote, {MAIN: source.head()})
        counts["adopted"] = statements(adopt_all)
        counts["synced"] = statements(lambda: sync.run_session(budget_seconds=60, stopping=lambda: False))
        counts["claimed"] = statements(lambda: claimed.extend(claim_deliveries(8)))
        counts["delivered"] = statements(lambda: deliver(claimed.pop(), bundles.open_bundle))
        assert delivery_of(gitrepo).state == Delivery.State.APPLIED
    assert {name: count for name, count in counts.items() if count > MOST[name]} == {}, counts
