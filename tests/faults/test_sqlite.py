"""The fault suite on SQLite; a file for each database, so that each has a process of its own (`--dist loadfile`)."""

import pytest

from tests.faults.conftest import Worlds
from tests.faults.suite import cases, suffer

pytestmark = [pytest.mark.faults, pytest.mark.end_to_end]


@cases("sqlite")
def test_nothing_is_lost(worlds: Worlds, name: str) -> None:
    suffer(worlds, "sqlite", name)
