"""Fetching over HTTP from a real server that misbehaves."""

import os
import subprocess
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.git_servers import GitServer, Repository, git_server
from tests.workers.fetch.conftest import Fetch
from tests.workers.fetch.processes import processes_with
from workers.fetch import errors
from workers.fetch.errors import AccessRefused, GitError, GitTimeout, Redirected, TlsFailed
from workers.fetch.mirror import Mirror
from workers.git_environment import RemoteAccess

CANARY = "canary-8fb1c9a2"


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (401, "authentication"),
        (403, "refused"),
        (404, "not-found"),
        (410, "not-found"),
        (429, "rate-limit"),
        (500, "server"),
        (502, "server"),
        (503, "server"),
    ],
)
def test_a_status_has_a_cause(
    status: int, cause: str, repository: Repository, server: GitServer, mirror: Mirror, fetch: Fetch
) -> None:
    commit = repository.commit({"a": "x"})
    server.behaviour.status = status

    with pytest.raises(GitError) as caught:
        fetch(RemoteAccess(server.url(repository), "token", "", CANARY), commit)

    assert caught.value.cause == cause
    assert CANARY not in f"{caught.value!r} {caught.value.detail}"
    assert mirror.refs() == {}


@pytest.mark.parametrize("kind", ["token", "basic"])
def test_the_credential_is_sent(kind: str, root: Path, repository: Repository, fetch: Fetch) -> None:
    commit = repository.commit({"a": "x"})
    username = "git" if kind == "token" else "ada"
    with git_server(root, username=username, password=CANARY) as server:
        access = RemoteAccess(server.url(repository), kind, "" if kind == "token" else "ada", CANARY)
        fetch(access, commit)
        assert all(request.authorization.startswith("Basic ") for request in server.log)


def test_a_wrong_credential_is_refused_and_not_shown(root: Path, repository: Repository, fetch: Fetch) -> None:
    commit = repository.commit({"a": "x"})
    with git_server(root, username="git", password="right") as server, pytest.raises(GitError) as caught:
        fetch(RemoteAccess(server.url(repository), "token", "", CANARY), commit)
    assert caught.value.cause == "authentication"
    assert CANARY not in f"{caught.value!r} {caught.value.detail}"


def test_a_redirect_is_not_followed_and_the_other_host_sees_nothing(
    root: Path, repository: Repository, server: GitServer, fetch: Fetch
) -> None:
    commit = repository.commit({"a": "x"})
    with git_server(root) as other:
        server.behaviour.redirect_to = other.address
        with pytest.raises(Redirected):
            fetch(RemoteAccess(server.url(repository), "token", "", CANARY), commit)
        assert other.log == []


def test_a_page_instead_of_a_repository(
    repository: Repository, server: GitServer, mirror: Mirror, fetch: Fetch
) -> None:
    commit = repository.commit({"a": "x"})
    server.behaviour.body = b"<html>please log in</html>"
    with pytest.raises(GitError) as caught:
        fetch(server.url(repository), commit)
    # git takes it for a plain file server that lacks the commit. The poll, which comes next, knows better.
    assert caught.value.cause in ("network", "not-found", "commit-not-found")
    assert mirror.refs() == {}


def test_nobody_listens(fetch: Fetch) -> None:
    with pytest.raises(errors.NetworkFailed):
        fetch("http://127.0.0.1:1/x.git", "1" * 40)


@pytest.mark.parametrize("when", ["before the answer", "inside of the answer"])
def test_a_hanging_server_is_left_at_the_deadline(
    when: str, repository: Repository, server: GitServer, mirror: Mirror, run_folder: Path, fetch: Fetch
) -> None:
    commit = repository.commit({str(n): os.urandom(20_000) for n in range(20)})
    if when == "before the answer":
        server.behaviour.hang_before = True
    else:
        server.behaviour.hang_after_bytes = 100_000
    started = time.monotonic()

    with pytest.raises(GitTimeout):
        fetch(server.url(repository), commit, deadline_seconds=1.5)

    assert time.monotonic() - started < 6
    assert processes_with(f"GIT_DIR={mirror.folder}") == {}
    assert list(mirror.folder.glob("objects/pack/*")) == []
    assert list(run_folder.iterdir()) == []
    server.behaviour.hang_before, server.behaviour.hang_after_bytes = False, None
    fetch(server.url(repository), commit)


def test_the_token_is_in_no_argument_list(
    repository: Repository, server: GitServer, mirror: Mirror, fetch: Fetch
) -> None:
    commit = repository.commit({"a": "x"})
    server.behaviour.hang_before = True
    access = RemoteAccess(server.url(repository), "token", "", CANARY)
    seen: list[str] = []

    def look() -> None:
        request = server.wait_for_request()
        assert request.authorization
        seen.append(request.authorization.split(" ")[1])
        seen.extend(processes_with(f"GIT_DIR={mirror.folder}").values())

    thread = threading.Thread(target=look)
    thread.start()
    with pytest.raises(GitTimeout):
        fetch(access, commit, deadline_seconds=3)
    thread.join()

    encoded, *lines = seen
    assert any("remote-http" in line for line in lines)
    assert not [line for line in lines if CANARY in line or encoded in line]


def test_words_of_the_remote_are_shown_without_control_characters(
    repository: Repository, server: GitServer, fetch: Fetch
) -> None:
    server.behaviour.only = "git-upload-pack"
    message = b"ERR \x1b[31mred\x07 no space left on device\n"
    server.behaviour.content_type = "application/x-git-upload-pack-result"
    server.behaviour.body = b"%04x" % (len(message) + 4) + message
    commit = repository.commit({"a": "x"})
    with pytest.raises(GitError) as caught:
        fetch(server.url(repository), commit)
    assert "\x1b" not in caught.value.detail and "\x07" not in caught.value.detail


@pytest.mark.parametrize(
    "scheme", ["ext::sh -c true", "ftp://127.0.0.1/x", "fd::3", "/srv/x", "../x", "EXT::x", "git://h/x"]
)
def test_other_schemes_are_refused(scheme: str, fetch: Fetch) -> None:
    with pytest.raises(AccessRefused):
        fetch(scheme, "1" * 40)


class TestPlainFileServer:
    """A server without git behind it ("dumb HTTP") knows no depth."""

    def test_it_works(self, root: Path, repository: Repository, mirror: Mirror, fetch: Fetch) -> None:
        commit = repository.commit({"a": "x"})
        repository.git("update-server-info")

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *arguments: object) -> None:
                super().__init__(*arguments, directory=str(root))  # type: ignore[arg-type]

            def log_message(self, *arguments: object) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        try:
            fetch(f"http://127.0.0.1:{http.server_port}/shop.git", commit)
        finally:
            http.shutdown()
            http.server_close()
        assert mirror.refs() == {"1": commit}


class TestTls:
    @pytest.fixture
    def certificate(self, tmp_path: Path) -> tuple[Path, Path]:
        key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
        subprocess.run(
            [
                *(
                    "openssl",
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:prime256v1",
                    "-nodes",
                ),
                *(
                    "-keyout",
                    str(key),
                    "-out",
                    str(certificate),
                    "-days",
                    "2",
                    "-subj",
                    "/CN=git.example.com",
                ),
                *("-addext", "subjectAltName=DNS:git.example.com,IP:127.0.0.1"),
            ],
            check=True,
            capture_output=True,
        )
        return certificate, key

    @pytest.fixture
    def tls_server(self, certificate: tuple[Path, Path], server: GitServer) -> GitServer:
        server.use_tls(*certificate)
        return server

    def test_a_certificate_that_nobody_vouches_for_is_refused(
        self, repository: Repository, tls_server: GitServer, fetch: Fetch
    ) -> None:
        commit = repository.commit({"a": "x"})
        with pytest.raises(TlsFailed):
            fetch(RemoteAccess(tls_server.url(repository), "token", "", CANARY), commit)
        assert tls_server.log == []

    def test_its_own_bundle_vouches_for_it(
        self, repository: Repository, certificate: tuple[Path, Path], tls_server: GitServer, fetch: Fetch
    ) -> None:
        commit = repository.commit({"a": "x"})
        fetch(RemoteAccess(tls_server.url(repository), ca_bundle=certificate[0].read_text()), commit)

    def test_it_is_not_asked_for_if_the_user_says_so(
        self, repository: Repository, tls_server: GitServer, fetch: Fetch
    ) -> None:
        fetch(
            RemoteAccess(tls_server.url(repository), insecure_skip_tls_verify=True),
            repository.commit({"a": "x"}),
        )

    def test_the_checked_address_is_the_one_connected_to(
        self, repository: Repository, certificate: tuple[Path, Path], tls_server: GitServer, fetch: Fetch
    ) -> None:
        """git.example.com resolves to nothing here: git can only have used the address given."""
        url = tls_server.url(repository).replace("127.0.0.1", "git.example.com")
        access = RemoteAccess(url, ca_bundle=certificate[0].read_text(), addresses=("127.0.0.1",))
        fetch(access, repository.commit({"a": "x"}))

    def test_a_name_that_the_certificate_lacks_is_refused(
        self, repository: Repository, certificate: tuple[Path, Path], tls_server: GitServer, fetch: Fetch
    ) -> None:
        url = tls_server.url(repository).replace("127.0.0.1", "other.example.com")
        access = RemoteAccess(url, ca_bundle=certificate[0].read_text(), addresses=("127.0.0.1",))
        with pytest.raises(TlsFailed):
            fetch(access, repository.commit({"a": "x"}))
