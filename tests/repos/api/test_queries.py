"""Lists cost the same number of queries however long they are."""

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from repos.models import Credential
from tests.repos.history import a_cluster, a_delivery, a_gitrepo, a_revision

pytestmark = pytest.mark.django_db


def populate(first: int, last: int) -> None:
    credential, _ = Credential.objects.get_or_create(name="team", defaults={"kind": "token", "secret": "x"})
    for number in range(first, last):
        gitrepo = a_gitrepo(f"repo-{number}", credential=credential)
        revision = a_revision(gitrepo)
        for name in (f"cluster-{number}", "shared"):
            a_delivery(revision, a_cluster(name), state="failed" if number % 2 else "applied")


@pytest.mark.parametrize(
    ("path", "most"),
    [
        ("gitrepos/", 7),
        ("gitrepos/?display_state=ErrApplied", 7),
        ("clusters/", 4),
        ("clustergroups/", 4),
        ("credentials/", 4),
    ],
)
def test_lists(api: APIClient, path: str, most: int) -> None:
    counts = []
    for first, last in ((0, 3), (3, 30)):
        populate(first, last)
        with CaptureQueriesContext(
            connection,
        ) as queries:
            assert api.get(f"/api/v1/{path}").status_code == 200
        counts.append(len(queries))
    assert counts[0] == counts[1] <= most


@pytest.mark.parametrize("path", ["revisions/", "jobs/", "deliveries/", "events/"])
def test_the_ledger(api: APIClient, path: str) -> None:
    gitrepo = a_gitrepo()
    counts = []
    for first, last in ((0, 3), (3, 30)):
        for number in range(first, last):
            a_delivery(a_revision(gitrepo), a_cluster(f"cluster-{number}"))
        with CaptureQueriesContext(connection) as queries:
            assert api.get(f"/api/v1/gitrepos/shop/{path}").status_code == 200
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 6
