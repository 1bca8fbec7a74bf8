import os

import pytest

from tests.git_servers import GitServer, Repository, git
from tests.workers.fetch.conftest import Fetch
from workers.fetch.mirror import Mirror
from workers.fetch.packs import may_have


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_it_knows_what_git_knows(
    object_format: str, repository: Repository, server: GitServer, mirror: Mirror, fetch: Fetch
) -> None:
    other = Repository.make(server.root / "other.git", object_format=object_format)
    for number in range(3):
        fetch(server.url(other), other.commit({f"{n}": f"{n} {number}" for n in range(300)}))
    there = git("cat-file", "--batch-check=%(objectname)", "--batch-all-objects", folder=mirror.folder).split()
    assert len(there) > 900 and {object_id[:2] for object_id in there} >= {"00", "ff"}

    assert all(may_have(mirror.folder, object_id) for object_id in there)

    last = "0123456789abcdef"
    near = [object_id[:-1] + last[(last.index(object_id[-1]) + 1) % 16] for object_id in there]
    far = [os.urandom(len(there[0]) // 2).hex() for _ in range(300)]
    ends = ["0" * len(there[0]), "f" * len(there[0])]
    assert not any(may_have(mirror.folder, object_id) for object_id in [*near, *far, *ends])


def test_it_sees_an_object_that_is_in_no_pack(repository: Repository) -> None:
    assert may_have(repository.folder, repository.blob(b"x"))


@pytest.mark.parametrize("how", ["noise", "cut off", "empty"])
def test_what_can_not_be_read_may_have_everything(
    how: str, repository: Repository, mirror: Mirror, fetch: Fetch
) -> None:
    fetch(repository.file_url, repository.commit({str(n): str(n) for n in range(300)}))
    (index,) = mirror.folder.glob("objects/pack/*.idx")
    index.chmod(0o644)
    if how == "noise":
        index.write_bytes(os.urandom(2000))
    else:
        os.truncate(index, 1200 if how == "cut off" else 0)
    # An id in the middle of the names, where the index is cut.
    assert may_have(mirror.folder, "f0" + "1" * 38)


def test_a_mirror_without_packs_has_nothing(mirror: Mirror) -> None:
    assert not may_have(mirror.folder, "1" * 40)
