"""One running stack for the scenarios that share its settings; a scenario that needs others starts its own."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.stack import Stack, running_stack


@pytest.fixture(autouse=True, scope="session")
def _database_may_be_looked_at(django_db_blocker: Any) -> Iterator[None]:
    """The stack's database is its own; pytest-django's guard is for the tests' one."""
    with django_db_blocker.unblock():
        yield


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Two worker containers with default settings."""
    # A short path: a Unix socket's name has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="fs-"))
    with running_stack(folder) as running:
        yield running
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def own_stack() -> Iterator[Callable[..., Stack]]:
    """Starts a stack with settings of its own: own_stack({"GIT_TIMEOUT": "3s"}, workers=3)."""
    with ExitStack() as running:
        folder = Path(tempfile.mkdtemp(prefix="fs-"))
        running.callback(shutil.rmtree, folder, ignore_errors=True)

        def start(env: Mapping[str, str] | None = None, *, workers: int = 2) -> Stack:
            return running.enter_context(running_stack(folder, env, workers=workers))

        yield start
