"""pygit2's list of a remote's heads, in threads.

python -m bench.peers.libgit2 -polls=2000 -in-flight=50 http://127.0.0.1:PORT
"""

import importlib
import tempfile
import threading
from typing import Any

from bench.peers import from_command_line, measure_threads

# It is no part of ours, and not installed with it.
pygit2: Any = importlib.import_module("pygit2")
# A repository for each thread: libgit2 does not share one between threads.
_local = threading.local()


def _repository() -> Any:
    if not hasattr(_local, "repository"):
        _local.folder = tempfile.TemporaryDirectory(prefix="libgit2-")
        _local.repository = pygit2.init_repository(_local.folder.name, bare=True)
    return _local.repository


def poll(url: str, branch: str) -> str:
    remote = _repository().remotes.create_anonymous(url)
    heads = remote.list_heads() if hasattr(remote, "list_heads") else remote.ls_remotes()
    for head in heads:
        name, oid = (head["name"], head["oid"]) if isinstance(head, dict) else (head.name, head.oid)
        if name == branch:
            return str(oid)
    return ""


if __name__ == "__main__":
    task = from_command_line()
    measure_threads(poll, task, warm_up=4 * task.in_flight)
