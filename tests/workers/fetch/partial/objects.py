"""What is in a partial mirror, and who reads it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from tests.git_servers import GitServer, git
from workers.fetch.mirror import Mirror
from workers.fetch.reader import GitObjectReader

PLENTY = 10_000_000
AnyReader = Callable[..., AbstractContextManager[GitObjectReader]]


def files(reader: GitObjectReader, commit: str, *folders: str) -> dict[str, str]:
    """Path and id of the files in those folders of the commit."""
    top = {item.name.decode(): item for item in reader.tree(reader.root_tree(commit))}
    return {
        f"{folder}/{item.name.decode()}": item.object_id
        for folder in folders
        for item in reader.tree(top[folder].object_id)
    }


def read(reader: GitObjectReader, ids: Sequence[str]) -> list[bytes]:
    return [blob.read() for blob in reader.blobs(ids)]


def present(mirror: Mirror) -> set[str]:
    """The ids of all objects that are in the mirror."""
    lines = git("cat-file", "--batch-check", "--batch-all-objects", folder=mirror.folder).splitlines()
    return {line.split()[0] for line in lines}


def fetches(server: GitServer) -> int:
    return len([request for request in server.requests("git-upload-pack") if request.method == "POST"])
