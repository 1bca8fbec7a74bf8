"""In every normal state the doctor finds no error: a false alarm is as bad as a miss."""

from collections.abc import Callable

import pytest

from repos import registration
from repos.doctor.examination import examine
from repos.models import GitRepo
from tests.repos.doctor.house import NORMAL, aged, delivered, errors, resynced

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("state", NORMAL, ids=lambda state: state.__name__)
def test_a_normal_state_is_no_error(state: Callable[[str], object]) -> None:
    resynced()
    state("shop")
    aged()

    assert errors() == []


def test_a_house_full_of_normal_states_is_well() -> None:
    resynced()
    for number, state in enumerate(NORMAL):
        state(f"repo-{number}")
    aged()

    report = examine()

    assert [finding for finding in report.findings if finding.severity == "error"] == []
    assert report.healthy and report.errors == 0
    assert report.totals["failing"] >= 4 and report.totals["held"] == 1 and report.totals["crashed"] == 1
    assert report.warnings == len(report.findings)


def test_an_empty_house_is_well() -> None:
    assert errors() == []


def test_who_moves_to_another_remote_is_no_error() -> None:
    resynced()
    gitrepo = delivered()
    registration.edit(gitrepo.pk, {"insecure_skip_tls_verify": True})
    aged()

    assert GitRepo.objects.get().remote_id != gitrepo.remote_id
    assert errors() == []
