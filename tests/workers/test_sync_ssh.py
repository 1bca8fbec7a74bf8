"""The sync stage over ssh, from a real sshd."""

import socket
from pathlib import Path
from typing import Any

import pytest

from repos.models import Credential, SyncJob
from tests.core import MAIN, adopt_all, answered, later, register
from tests.git_servers import Repository
from tests.ssh_servers import make_key, ssh_server, why_not
from workers.git_environment import RemoteAccess
from workers.sync import run_session

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("folders"),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "an sshd can be run"),
]


def test_the_next_try_goes_to_the_next_address_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ssh is told one address alone, and the first one may be that of a machine which is down."""
    source = Repository.make(tmp_path / "served" / "shop.git")
    source.commit({"app.yaml": "a"})
    with ssh_server(tmp_path / "sshd") as server:
        key = tmp_path / "key"
        make_key(key)
        server.allow(key)
        credential = Credential.objects.create(
            name="key", kind="ssh", secret=key.read_text(), known_hosts=server.known_hosts()
        )
        gitrepo = register(url=server.url(source), credential=credential)
        answered(gitrepo.remote, {MAIN: source.head()})
        adopt_all()
        found: list[Any] = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 0)) for a in ("127.0.0.9", "127.0.0.1")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

        causes = []
        for _ in range(2):
            run_session(budget_seconds=20, stopping=lambda: False)
            job = SyncJob.objects.get(gitrepo=gitrepo)
            causes.append((job.state, job.last_error.partition(".")[0]))
            SyncJob.objects.filter(due_at__isnull=False).update(due_at=later(-1))

    assert [state for state, _ in causes] == [SyncJob.State.FAILED, SyncJob.State.SUCCEEDED], causes


@pytest.mark.parametrize(
    ("addresses", "tries", "becomes"),
    [
        ((), 3, ()),
        (("a",), 3, ("a",)),
        (("a", "b", "c"), 0, ("a", "b", "c")),
        (("a", "b", "c"), 1, ("b", "c", "a")),
        (("a", "b", "c"), 5, ("c", "a", "b")),
    ],
)
def test_which_address_is_tried_first(addresses: tuple[str, ...], tries: int, becomes: tuple[str, ...]) -> None:
    assert RemoteAccess("git@example.com:a.git", addresses=addresses).turned(tries).addresses == becomes
