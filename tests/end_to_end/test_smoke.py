"""The main job, end to end."""

import pytest

from tests.end_to_end.stack import Stack
from tests.git_servers import Repository

pytestmark = pytest.mark.end_to_end


def test_a_registered_repository_is_delivered_and_so_is_its_next_commit(stack: Stack) -> None:
    repository = Repository.make(stack.repositories / "smoke.git")
    first = repository.commit({"deploy/app.yaml": b"one\n"})
    folder = stack.add_cluster("smoke")
    stack.add_gitrepo(
        "smoke",
        repository.file_url,
        branch="main",
        paths=["deploy"],
        polling_interval="2s",
        targets=[{"cluster": "smoke"}],
    )

    stack.wait_delivered("smoke", first)
    assert (folder / "smoke/current/deploy/app.yaml").read_text() == "one\n"

    second = repository.commit({"deploy/app.yaml": b"two\n"})
    stack.wait_delivered("smoke", second)
    assert (folder / "smoke/current/deploy/app.yaml").read_text() == "two\n"
