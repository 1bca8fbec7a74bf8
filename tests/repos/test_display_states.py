"""The display state in SQL is the one that people are shown."""

import itertools

import pytest

from repos.display_states import with_display_state
from repos.models import GitRepo
from repos.status import DISPLAY_STATES, display_state, facts_of
from tests.repos.history import a_cluster, a_delivery, a_gitrepo, a_revision, failing

JOBS = [
    (),
    (("succeeded", 0),),
    (("pending", 0),),
    (("failed", 2),),
    (("superseded", 0), ("running", 0)),
    (("running", 1),),
]
DELIVERIES = [(), ("applied",), ("waiting",), ("applied", "held"), ("waiting", "failed", "held"), ("removed", "kept")]


@pytest.mark.django_db
def test_every_combination() -> None:
    clusters = [a_cluster(name) for name in ("a", "b", "c")]
    combinations = itertools.product(JOBS, DELIVERIES, (False, True), ("", "remote", "ref"))
    for number, (jobs, deliveries, paused, error) in enumerate(combinations):
        gitrepo = a_gitrepo(f"repo-{number}", paused=paused)
        for state, failures in jobs:
            revision = a_revision(gitrepo, job=state, failures=failures)
        if jobs:
            for cluster, state in zip(clusters, deliveries, strict=False):
                GitRepo.objects.filter(pk=gitrepo.pk).update(wanted_revision=revision)
                if not revision.records.filter(cluster=cluster).exists():
                    a_delivery(revision, cluster, state=state)
        if error == "remote":
            failing(gitrepo)
        elif error:
            GitRepo.objects.filter(pk=gitrepo.pk).update(ref_error="branch main does not exist")
    rows = list(with_display_state(GitRepo.objects.select_related("remote", "wanted_revision")))
    facts = facts_of(rows)
    assert {row.name: row.shown_state for row in rows} == {row.name: display_state(facts[row.pk]) for row in rows}
    assert {row.shown_state for row in rows} == set(DISPLAY_STATES), "each of them is met"
