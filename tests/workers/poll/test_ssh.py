"""Polls over ssh of a real sshd: what the asker of kept connections says, and git, which is right."""

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest
from pytest_django import Settings

from tests.git_servers import Repository
from tests.ssh_servers import KEY_TYPES, SshServer, make_key, public_key, ssh_server, why_not
from tests.workers.poll.ssh_asking import MAIN, Asking, git_engine, registered, ssh_engine
from tests.workers.refusals import REFUSALS
from workers.git_environment import RemoteAccess
from workers.poll.engine import PollRequest
from workers.poll.loop import LoopEngine

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "an sshd can be run")


@pytest.fixture(autouse=True)
def run_folder(settings: Settings, tmp_path: Path) -> None:
    settings.DATA_DIR = tmp_path / "data"


@pytest.fixture(params=["kept", "git"])
def engine(request: pytest.FixtureRequest) -> Iterator[LoopEngine]:
    with ssh_engine() if request.param == "kept" else git_engine() as engine:
        yield engine


@pytest.fixture
def kept() -> Iterator[LoopEngine]:
    with ssh_engine() as engine:
        yield engine


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    with ssh_server(tmp_path / "sshd") as server:
        yield server


@pytest.fixture
def ask(engine: LoopEngine, server: SshServer, tmp_path: Path) -> Asking:
    return registered(engine, server, tmp_path)


def again(server: SshServer, **settings: str) -> None:
    """Start the server with other settings."""
    server.stop()
    server.settings.update(settings)
    server.start()


# -- what it says --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["v2", "v0"])
def protocol(request: pytest.FixtureRequest, server: SshServer) -> None:
    """Whether the server lets a client choose the protocol."""
    if request.param == "v0":
        again(server, AcceptEnv="")


@pytest.mark.usefixtures("protocol")
def test_branches_and_tags(ask: Asking) -> None:
    repository, first = ask.repository, ask.repository.head()
    repository.tag("v1.0.0", first, message="a release")
    second = repository.commit({"a": "b"})
    repository.tag("v1.1.0", second)
    repository.git("update-ref", "refs/heads/main-2", first)

    assert ask(MAIN, "HEAD", "refs/heads/absent").refs == {MAIN: second, "HEAD": second}
    assert ask("refs/tags/v1.0.0").refs == {"refs/tags/v1.0.0": first}
    assert ask("refs/tags/*", MAIN).refs == {"refs/tags/v1.0.0": first, "refs/tags/v1.1.0": second, MAIN: second}


@pytest.mark.usefixtures("protocol")
def test_a_head_that_is_detached_or_not_born(ask: Asking) -> None:
    repository, commit = ask.repository, ask.repository.head()
    repository.git("update-ref", "--no-deref", "HEAD", commit)
    assert ask("HEAD", MAIN).refs == {"HEAD": commit, MAIN: commit}

    repository.git("symbolic-ref", "HEAD", "refs/heads/unborn")
    result = ask("HEAD", MAIN)
    assert (result.refs, result.error) == ({MAIN: commit}, None)


@pytest.mark.usefixtures("protocol")
def test_an_empty_repository_has_no_refs_and_no_error(ask: Asking, tmp_path: Path) -> None:
    empty = Repository.make(tmp_path / "served" / "empty.git")

    result = ask("HEAD", MAIN, url=ask.server.url(empty))

    assert (result.refs, result.error) == ({}, None)


@pytest.mark.usefixtures("protocol")
def test_sha256(ask: Asking, tmp_path: Path) -> None:
    repository = Repository.make(tmp_path / "served" / "long.git", object_format="sha256")
    commit = repository.commit({"a": "a"})

    assert len(commit) == 64
    assert ask(url=ask.server.url(repository)).refs == {MAIN: commit}


def test_a_path_that_a_shell_could_misread(ask: Asking, tmp_path: Path) -> None:
    repository = Repository.make(tmp_path / "served" / "it's a !$(shop) é.git")
    commit = repository.commit({"a": "a"})
    escaped = Path(str(repository.folder).replace("'", "%27").replace(" ", "%20").replace("é", "%C3%A9"))

    assert ask(url=ask.server.url(escaped)).refs == {MAIN: commit}


# -- keys ----------------------------------------------------------------------------------------------------------


# ssh-keygen writes ed25519 keys in its own form alone.
@pytest.mark.parametrize(
    ("kind", "form"),
    [("ed25519", ""), *((kind, form) for kind in ("ecdsa", "rsa") for form in ("", "PEM", "PKCS8"))],
)
def test_every_type_and_form_of_key(kept: LoopEngine, server: SshServer, tmp_path: Path, kind: str, form: str) -> None:
    ask = registered(kept, server, tmp_path)
    text = make_key(tmp_path / "other", kind, form=form)
    server.allow(tmp_path / "other")

    assert ("OPENSSH" in text) is not bool(form)
    assert ask(secret=text).refs == {MAIN: ask.repository.head()}
    # As a form on a page hands it over.
    assert ask(secret=text.replace("\n", "\r\n").strip(), known_hosts=server.known_hosts() * 2).error is None


def test_a_key_that_the_server_refuses(ask: Asking, tmp_path: Path) -> None:
    stranger = make_key(tmp_path / "stranger")

    assert ask.cause(secret=stranger) == "authentication"
    assert ask.cause(kind="none", secret="") == "authentication"


def test_no_account_goes_over_the_connection_of_another(kept: LoopEngine, server: SshServer, tmp_path: Path) -> None:
    ask = registered(kept, server, tmp_path)
    assert ask().error is None

    assert ask.cause(secret=make_key(tmp_path / "stranger")) == "authentication"
    assert ask.cause(kind="none", secret="") == "authentication"
    assert ask.cause(known_hosts=f"[127.0.0.1]:{server.port} {public_key(tmp_path / 'stranger')}") == "host-key"
    assert ask.cause(url=server.url(ask.repository).replace(f"{server.user}@", "nobody@")) == "authentication"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("encrypted", "passphrase"),
        ("no key at all", "can't be read"),
        ("half", "can't be read"),
        ("public", "can't be"),
    ],
)
def test_a_key_that_cannot_be_used_says_what_to_do(
    kept: LoopEngine, server: SshServer, tmp_path: Path, text: str, says: str
) -> None:
    ask = registered(kept, server, tmp_path)
    made = make_key(tmp_path / "made", passphrase="open-sesame" if text == "encrypted" else "")
    texts = {"encrypted": made, "half": made[: len(made) // 2], "public": (tmp_path / "made.pub").read_text()}

    error = ask(secret=texts.get(text, text)).error

    assert error is not None and error.cause == "credential" and says in error.message, error
    assert server.connections() == 0
    assert not any(line in error.message for line in made.splitlines())


def test_a_key_in_pem_with_a_passphrase(kept: LoopEngine, server: SshServer, tmp_path: Path) -> None:
    ask = registered(kept, server, tmp_path)
    for form in ("PEM", "PKCS8"):
        text = make_key(tmp_path / form, "rsa", form=form, passphrase="open-sesame")
        error = ask(secret=text).error
        assert error is not None and error.cause == "credential" and "passphrase" in error.message, (form, error)


def test_no_secret_is_said_or_logged(
    kept: LoopEngine, server: SshServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ask = registered(kept, server, tmp_path)
    stranger = make_key(tmp_path / "stranger")
    results = [
        ask(),
        ask(secret=stranger),
        ask(known_hosts="other.example.com ssh-ed25519 AAAA"),
        ask(url=server.url(tmp_path / "absent.git")),
    ]
    said = " ".join([repr(results), caplog.text])
    for line in [*ask.key.splitlines(), *stranger.splitlines()]:
        assert line.startswith("-----") or line not in said
    assert not [record for record in caplog.records if record.name.startswith("asyncssh")]


# -- host keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KEY_TYPES)
def test_each_type_of_host_key(engine: LoopEngine, tmp_path: Path, kind: str) -> None:
    """The server has all types, and only one of them is known."""
    with ssh_server(tmp_path / "sshd", host_key_types=KEY_TYPES) as server:
        ask = registered(engine, server, tmp_path)
        make_key(tmp_path / "wrong", kind)

        assert ask(known_hosts=server.known_hosts(kind)).error is None
        wrong = f"[127.0.0.1]:{server.port} {public_key(tmp_path / 'wrong')}\n"
        assert ask.cause(known_hosts=wrong) == "host-key"


def test_a_host_that_nobody_knows(ask: Asking) -> None:
    key = public_key(ask.server.host_key())
    assert ask.cause(known_hosts="") == "host-key"
    assert ask.cause(known_hosts=f"git.example.com {key}\n") == "host-key"
    # The key of this name at another port is not this server's.
    assert ask.cause(known_hosts=f"127.0.0.1 {key}\n") == "host-key"
    assert ask.cause(known_hosts=f"[127.0.0.1]:{ask.server.port + 1} {key}\n") == "host-key"


def test_a_type_of_host_key_that_the_server_does_not_have(ask: Asking, tmp_path: Path) -> None:
    make_key(tmp_path / "other", "ecdsa")

    assert ask.cause(known_hosts=f"[127.0.0.1]:{ask.server.port} {public_key(tmp_path / 'other')}\n") == "host-key"


def test_a_host_key_that_has_changed(ask: Asking, tmp_path: Path) -> None:
    known = ask.server.known_hosts()
    assert ask(known_hosts=known).error is None
    ask.server.stop()
    ask.server.host_key().unlink()
    ask.server.start()

    assert ask.cause(known_hosts=known) == "host-key"


def test_hashed_names_and_comments(ask: Asking, tmp_path: Path) -> None:
    path = tmp_path / "known"
    path.write_text(ask.server.known_hosts())
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", path], check=True, capture_output=True)

    assert "127.0.0.1" not in path.read_text()
    before = "# ours\n\nnot a line\nother.example.com ssh-ed25519 AAAA\n"
    assert ask(known_hosts=before + path.read_text()).error is None


def test_a_revoked_host_key(ask: Asking) -> None:
    known = ask.server.known_hosts()

    assert ask.cause(known_hosts=f"{known}@revoked * {public_key(ask.server.host_key())}\n") == "host-key"


def test_a_host_key_that_an_authority_has_signed(kept: LoopEngine, server: SshServer, tmp_path: Path) -> None:
    ask = registered(kept, server, tmp_path)
    make_key(tmp_path / "authority")
    make_key(tmp_path / "impostor")
    signing = f"ssh-keygen -q -s {tmp_path}/authority -h -I host -n 127.0.0.1 {server.host_key()}.pub"
    subprocess.run(signing.split(), check=True)
    again(server, HostCertificate=f"{server.host_key()}-cert.pub")
    line = f"@cert-authority [127.0.0.1]:{server.port} "

    assert ask(known_hosts=line + public_key(tmp_path / "authority")).error is None
    assert ask.cause(known_hosts=line + public_key(tmp_path / "impostor")) == "host-key"


def test_nothing_of_the_users_own_is_used(
    kept: LoopEngine, server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = registered(kept, server, tmp_path)
    folder = tmp_path / "home" / ".ssh"
    folder.mkdir(parents=True)
    (folder / "known_hosts").write_text(server.known_hosts())
    (folder / "id_ed25519").write_text(ask.key)
    (folder / "id_ed25519").chmod(0o600)
    (folder / "config").write_text(
        f"ProxyCommand touch {tmp_path}/proxied\nHostName 127.0.0.2\nStrictHostKeyChecking no\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    assert ask.cause(known_hosts="other.example.com ssh-ed25519 AAAA") == "host-key"
    assert ask.cause(kind="none", secret="") == "authentication"
    assert ask().error is None
    assert not (tmp_path / "proxied").exists()


def test_the_address_that_was_checked_is_connected_to(ask: Asking, settings: Settings) -> None:
    named = ask.server.url(ask.repository, host="localhost")
    known = ask.server.known_hosts(host="localhost")
    settings.GIT_ALLOWED_NETWORKS = ["127.0.0.0/8"]
    assert ask(url=named, known_hosts=known).error is None
    # The name counts, and not the address that it leads to.
    assert ask.cause(url=named) == "host-key"

    settings.GIT_ALLOWED_NETWORKS = []
    assert ask.cause(url=named, known_hosts=known) == "address"
    assert ask.cause() == "address"


# -- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_repository_that_is_not_there(ask: Asking, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()

    assert ask.cause(url=ask.server.url(tmp_path / "absent.git")) == "not-found"
    assert ask.cause(url=ask.server.url(tmp_path / "folder")) == "not-found"


def test_nobody_at_home(ask: Asking) -> None:
    ask.server.stop()

    assert ask.cause() == "network"


def test_an_access_that_contradicts_itself(ask: Asking) -> None:
    assert ask.cause(kind="token", secret="t0p-s3cret") == "credential"
    assert ask.cause(secret=" ") == "credential"
    assert ask.server.connections() == 0


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        ("echo ERROR: Repository not found. >&2; exit 1", "not-found"),
        ("printf '0025ERR access denied or not exported'; sleep 0.2", "git"),
        ("printf '001dERR Repository not found.'", "not-found"),
    ],
)
def test_what_a_server_says_instead(ask: Asking, command: str, cause: str) -> None:
    again(ask.server, ForceCommand=command)

    assert ask.cause() == cause


def test_a_refusal_in_a_forges_own_words(ask: Asking, tmp_path: Path) -> None:
    again(ask.server, ForceCommand=f"cat {tmp_path}/words >&2; exit 1")
    said = {}
    for words, cause in [*REFUSALS, ("remote: ERROR: On Sundays we rest.\n", "refused")]:
        (tmp_path / "words").write_text(words)
        found = ask.cause()
        # A connection may break on a busy machine: what counts is what the words mean when they come.
        said[words] = (found if found == cause else ask.cause(), cause)

    assert not {words: causes for words, causes in said.items() if len(set(causes)) > 1}


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        ("exit 0", "network"),
        ("exit 1", "refused"),
        ("echo On Sundays we rest. >&2", "refused"),
        # A server's troubles are not ours.
        ("echo No space left on device >&2; exit 1", "refused"),
        ("echo fatal: bad object HEAD >&2; exit 128", "refused"),
        ("printf '001bERR bad object HEAD'", "git"),
        ("printf '000eversion 2\\n'; exit 1", "refused"),
        # As Gitea does it.
        ("echo; printf 'error:\\nerror: Cannot find repository: x\\n' >&2; exit 1", "not-found"),
        ("echo; exit 1", "refused"),
        ("echo", "not-git"),
    ],
)
def test_an_end_by_the_server_itself_is_an_answer(
    kept: LoopEngine, server: SshServer, tmp_path: Path, command: str, cause: str
) -> None:
    ask = registered(kept, server, tmp_path)
    again(server, ForceCommand=command)

    assert ask.cause() == cause


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        ("echo On Sundays we rest. >&2; sleep 1; kill -9 $PPID; sleep 5", "network"),
        ("echo ERROR: Repository not found. >&2; sleep 1; kill -9 $PPID; sleep 5", "not-found"),
    ],
)
def test_a_broken_connection_is_no_answer_unless_there_was_one_before(
    kept: LoopEngine, server: SshServer, tmp_path: Path, command: str, cause: str
) -> None:
    ask = registered(kept, server, tmp_path)
    again(server, ForceCommand=command)

    assert ask.cause() == cause


def test_a_servers_words_are_shown_cut_and_clean(kept: LoopEngine, server: SshServer, tmp_path: Path) -> None:
    ask = registered(kept, server, tmp_path)
    again(server, ForceCommand="printf '\\033[31mOn Sundays\\007 we rest.\\n' >&2; yes rest | head -c 9000 >&2; exit 1")

    error = ask().error

    assert error is not None and error.message.isprintable() and len(error.message) < 300
    assert "rest" in error.message


def test_a_server_that_runs_nothing(kept: LoopEngine, tmp_path: Path) -> None:
    """It opens a channel, and refuses the command."""

    class Refuser(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return False

        def session_requested(self) -> asyncssh.SSHServerSession[bytes]:
            return asyncssh.SSHServerSession()

    key = make_key(tmp_path / "key")
    listening = asyncssh.listen("127.0.0.1", 0, server_factory=Refuser, server_host_keys=[tmp_path / "key"])
    listener = kept.loop.run_until_complete(listening)
    url = f"ssh://git@127.0.0.1:{listener.get_port()}/x.git"
    known = f"[127.0.0.1]:{listener.get_port()} {public_key(tmp_path / 'key')}\n"
    kept.start(PollRequest(1, RemoteAccess(url, "ssh", "", key, known), (MAIN,), 20.0, 10))
    (result,) = kept.wait(30.0)
    listener.close()

    assert result.error is not None and result.error.cause == "refused"


@pytest.mark.parametrize("command", ["echo Welcome", "echo 'This account is not available.'; sleep 60"])
def test_what_is_no_git(kept: LoopEngine, server: SshServer, tmp_path: Path, command: str) -> None:
    ask = registered(kept, server, tmp_path)
    again(server, ForceCommand=command)

    assert ask.cause() == "not-git"


def test_an_answer_that_breaks_off(kept: LoopEngine, server: SshServer, tmp_path: Path) -> None:
    ask = registered(kept, server, tmp_path)
    again(server, ForceCommand="printf '0011version 2\\n0013'")

    assert ask.cause() == "network"


def test_more_refs_than_allowed_are_refused(ask: Asking) -> None:
    for number in range(12):
        ask.repository.tag(f"v1.0.{number}", ask.repository.head())

    error = ask("refs/tags/*", max_refs=10).error

    assert error is not None and error.cause == "limit" and "GIT_MAX_REFS" in error.message
    assert ask(MAIN, max_refs=10).error is None


def test_an_answer_without_end_is_cut_off(kept: LoopEngine, server: SshServer, tmp_path: Path) -> None:
    ask = registered(kept, server, tmp_path)
    line = f"{ask.repository.head()} refs/tags/v"
    again(server, ForceCommand=f"yes '{len(line) + 5:04x}{line}'")

    error = ask(max_refs=10).error

    assert error is not None and error.cause == "limit"


def test_errors_without_end_are_not_kept(kept: LoopEngine, server: SshServer, tmp_path: Path) -> None:
    ask = registered(kept, server, tmp_path)
    again(server, ForceCommand="yes complaint | head -c 3000000 >&2; echo fatal: repository not found >&2")

    assert ask.cause() == "refused"  # the end was not kept
