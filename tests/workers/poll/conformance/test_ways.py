"""Where a poll goes: redirects, credentials, proxies, and the address that was checked."""

import base64
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from pytest_django import Settings

from tests.core import A
from tests.workers.poll.conformance.answers import GOOD, MAIN, PLAIN, discovery, http, status, v0
from tests.workers.poll.conformance.case import conclusion, git_says
from tests.workers.poll.conformance.conftest import Ask
from tests.workers.poll.conformance.stand_in import NOT_FOUND, Close, Reply, Script, Sent, by_method, stand_in
from tests.workers.poll.conformance.test_tls import HERE, Authority
from workers.poll import curl

SECRET = "t0p-s3cret-value"
PAIR = base64.b64encode(f"git:{SECRET}".encode()).decode()
QUESTION = "/info/refs?service=git-upload-pack"
V2 = (discovery(),)
GIT = by_method(GET=V2, POST=[GOOD])
CODES = ["301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"]


def to(place: str, line: str = "301 Moved Permanently") -> Reply:
    return status(line, f"Location: {place}", body=b"<html>moved</html>", kind="text/html")


def forwards(table: dict[str, str], then: Script = GIT, line: str = "301 Moved Permanently") -> Script:
    """A server that redirects the questions at these paths, and answers those everywhere else."""

    def script(sent: Sent) -> Reply:
        path = sent.target.partition("/info/refs")[0]
        return to(table[path], line) if sent.method == "GET" and path in table else then(sent)

    return script


# -- redirects -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", CODES)
def test_a_redirect_on_the_same_host_is_followed_once(line: str, ask: Ask) -> None:
    """As GitLab sends it to the name with `.git`: the first question alone. The place is remembered."""
    with stand_in(lambda sent: NOT_FOUND) as server:
        server.script = forwards({"/team/shop": f"{server.address}/team/shop.git{QUESTION}"}, line=line)
        for _ in range(3):
            assert ask(server.url("team/shop")).refs == PLAIN

        assert [sent.target for sent in server.sent] == [
            f"/team/shop{QUESTION}", f"/team/shop.git{QUESTION}", *["/team/shop.git/git-upload-pack"] * 3,
        ]  # fmt: skip
        assert git_says(server.url("team/shop"), [MAIN]) == PLAIN


def test_a_redirect_without_a_host_is_one_on_the_same_host(ask: Ask) -> None:
    with stand_in(forwards({"/team/shop": f"/team/shop.git{QUESTION}"})) as server:
        assert ask(server.url("team/shop")).refs == PLAIN


def test_a_repository_that_moved(ask: Ask) -> None:
    """GitHub and Gitea redirect questions at the old name; what is known of the old place is no more use."""
    with stand_in(GIT) as server:
        assert ask(server.url("old/shop.git")).refs == PLAIN
        server.take()
        moved = forwards({"/old/shop.git": f"{server.address}/new/shop.git{QUESTION}"})
        server.script = lambda sent: (
            to("/new/shop.git/git-upload-pack", "307 Temporary Redirect")
            if sent.target.startswith("/old") and sent.method == "POST"
            else moved(sent)
        )
        assert ask(server.url("old/shop.git")).refs == PLAIN
        assert [(sent.method, sent.target.split("/")[1]) for sent in server.take()] == [
            ("POST", "old"), ("GET", "old"), ("GET", "new"), ("POST", "new"),
        ]  # fmt: skip
        assert ask(server.url("old/shop.git")).refs == PLAIN
        assert [(sent.method, sent.target.split("/")[1]) for sent in server.take()] == [("POST", "new")]


def test_a_repository_that_moved_and_moved_back(ask: Ask) -> None:
    with stand_in(lambda sent: NOT_FOUND) as server:
        server.script = forwards({"/old.git": f"{server.address}/new.git{QUESTION}"})
        assert ask(server.url("old.git")).refs == PLAIN
        server.script = lambda sent: GIT(sent) if sent.target.startswith("/old.git") else NOT_FOUND
        server.take()
        assert ask(server.url("old.git")).refs == PLAIN
        assert [(sent.method, sent.target.split("/")[1]) for sent in server.sent] == [
            ("POST", "new.git"), ("GET", "old.git"), ("POST", "old.git"),
        ]  # fmt: skip


def test_a_redirect_that_ends_while_its_target_answers_on(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing would tell of that, so it is asked for again."""
    monkeypatch.setattr(curl, "BELIEVED_SECONDS", 0.5)
    with stand_in(lambda sent: NOT_FOUND) as server:
        server.script = forwards({"/old.git": f"{server.address}/new.git{QUESTION}"})
        assert ask(server.url("old.git")).redirected_to == server.url("new.git")
        server.script = GIT
        server.take()
        assert ask(server.url("old.git")).redirected_to == server.url("new.git")
        time.sleep(0.6)
        for _ in range(2):
            assert ask(server.url("old.git")).redirected_to == ""
        assert [(sent.method, sent.target.split("/")[1]) for sent in server.take()] == [
            ("POST", "new.git"), ("GET", "old.git"), ("POST", "old.git"), ("POST", "old.git"),
        ]  # fmt: skip


def test_a_redirect_to_a_server_of_version_0(ask: Ask) -> None:
    old = by_method(GET=[discovery(v0([(MAIN, A)]))])
    with stand_in(lambda sent: NOT_FOUND) as server:
        server.script = forwards({"/shop": f"{server.address}/shop.git{QUESTION}"}, old)
        for _ in range(2):
            assert ask(server.url("shop")).refs == PLAIN


def test_redirects_in_a_circle(ask: Ask) -> None:
    with stand_in(lambda sent: NOT_FOUND) as server:
        server.script = forwards({"/a": f"{server.address}/b{QUESTION}", "/b": f"{server.address}/a{QUESTION}"})
        assert conclusion(ask(server.url("a")), [MAIN]) == "redirect"
        assert len(server.sent) <= 5


def test_a_redirect_to_a_login_page(ask: Ask) -> None:
    with stand_in(lambda sent: NOT_FOUND) as server:
        server.script = by_method(GET=[to(f"{server.address}/users/sign_in?return=%2Fteam")])
        error = ask(server.url("shop")).error

        assert error is not None and error.cause == "redirect" and "credential" in error.message
        assert server.methods == ["GET"]


@pytest.mark.parametrize("line", CODES)
def test_a_redirect_to_another_host_is_not_followed(line: str, ask: Ask) -> None:
    """Not with the credential, nor without it: which host is polled is the operator's to say."""
    with stand_in(GIT, host="127.0.0.2") as other, stand_in(GIT) as elsewhere, stand_in(GIT) as server:
        for target in (other, elsewhere):
            server.script = by_method(GET=[to(f"{target.address}/shop.git{QUESTION}", line)])
            answer = ask(server.url("shop.git"), kind="token", secret=SECRET)
            assert conclusion(answer, [MAIN]) == "redirect"
            assert answer.error is not None and f"127.0.0.{1 + (target is other)}" in answer.error.message
        assert (other.connections, elsewhere.connections) == (0, 0)
        assert server.methods == ["GET"] * 2


@pytest.mark.parametrize(
    "place",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "gopher://127.0.0.1:1/x",
        "//127.0.0.2/shop.git",
        "",
        "http://",
        "http://[",
        "http://127.0.0.1:99999999/x",
        "javascript:alert(1)",
    ],
)
@pytest.mark.parametrize("suffix", ["", QUESTION])
def test_redirects_that_lead_nowhere(place: str, suffix: str, ask: Ask) -> None:
    with stand_in(by_method(GET=[to(place + suffix)])) as server:
        answer = ask(server.url(), kind="token", secret=SECRET)

    assert answer.error is not None and answer.error.cause in ("redirect", "not-git", "network")
    assert set(server.methods) == {"GET"} and len(server.sent) <= 5


def test_a_redirect_names_no_secret(ask: Ask) -> None:
    with stand_in(lambda sent: NOT_FOUND) as server:
        server.script = by_method(GET=[to(f"http://ada:{SECRET}@example.com/x?token={SECRET}")])
        error = ask(server.url()).error

    assert error is not None and error.cause == "redirect" and SECRET not in error.message


def test_a_redirect_with_another_user_changes_no_credential(ask: Ask) -> None:
    """Who asks is not the server's to choose."""
    with stand_in(lambda sent: NOT_FOUND) as server:
        server.script = forwards({"/a": f"http://eve:pw@127.0.0.1:{server.port}/b{QUESTION}"})
        ask(server.url("a"), kind="token", secret=SECRET)

        assert {sent.header("Authorization") for sent in server.sent} == {f"Basic {PAIR}"}


# -- credentials ---------------------------------------------------------------------------------------------------------


def guarded(sent: Sent) -> Reply:
    if sent.header("Authorization") != f"Basic {PAIR}":
        return status("401 Unauthorized", 'WWW-Authenticate: Basic realm="git"')
    return GIT(sent)


@pytest.mark.parametrize("access", [{"kind": "token"}, {"kind": "basic", "username": "git"}], ids=["token", "basic"])
def test_a_credential_goes_along_from_the_first_request(access: dict[str, str], ask: Ask) -> None:
    """One request that is right costs less than one that is refused and another."""
    with stand_in(guarded) as server:
        for _ in range(2):
            assert ask(server.url(), secret=SECRET, **access).refs == PLAIN

        assert server.methods == ["GET", "POST", "POST"]
        assert [sent.header("Authorization") for sent in server.sent] == [f"Basic {PAIR}"] * 3


def test_a_credential_is_its_remotes_alone(ask: Ask) -> None:
    """The next remote of the same host uses the same handle and the same connection, and sends nothing of it: not when it
    is asked what it speaks, nor in the rounds after that, when all send the same kind of request.
    """
    remotes = [{"kind": "token", "secret": SECRET}, {}, {"kind": "token", "secret": "other"}, {}]
    with stand_in(GIT) as server:
        for turn in range(3):
            for number, access in enumerate(remotes):
                assert ask(server.url(f"r{number}.git"), **access).refs == PLAIN
                sent = server.take()
                assert len(sent) == (1 if turn else 2)
                for one in sent:
                    assert bool(one.header("Authorization")) == bool(access)
                    assert (PAIR in one.header("Authorization")) == (access.get("secret") == SECRET)
        assert server.connections == 1


def test_a_wrong_credential_is_not_tried_again_and_not_shown(ask: Ask) -> None:
    with stand_in(guarded) as server:
        for _ in range(2):
            error = ask(server.url(), kind="token", secret="wr0ng-s3cret").error
            assert error is not None and error.cause == "authentication"
            assert "wr0ng" not in error.message
        assert server.methods == ["GET", "GET"]


@pytest.mark.parametrize("challenge", ["Basic realm=x", "Negotiate", "NTLM", "Digest realm=x, nonce=y", "Bearer", ""])
def test_no_challenge_makes_it_say_more(challenge: str, ask: Ask) -> None:
    said = status("401 Unauthorized", *([f"WWW-Authenticate: {challenge}"] if challenge else []))
    with stand_in(by_method(GET=[said])) as server:
        assert conclusion(ask(server.url(), kind="token", secret=SECRET), [MAIN]) == "authentication"
        assert server.methods == ["GET"]


def test_a_credential_that_expires_between_two_polls(ask: Ask) -> None:
    with stand_in(guarded) as server:
        assert ask(server.url(), kind="token", secret=SECRET).refs == PLAIN
        server.take()
        server.script = lambda sent: status("401 Unauthorized")
        assert conclusion(ask(server.url(), kind="token", secret=SECRET), [MAIN]) == "authentication"
        assert server.methods in (["POST"], ["POST", "GET"])
        server.script = guarded
        assert ask(server.url(), kind="token", secret=SECRET).refs == PLAIN


def test_a_secret_with_line_ends_sends_no_header_of_its_own(ask: Ask) -> None:
    with stand_in(GIT) as server:
        ask(server.url(), kind="token", secret="a\r\nX-Evil: yes")
        assert all(not sent.all("X-Evil") for sent in server.sent)


def test_the_users_netrc_is_not_read(ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login ada password {SECRET}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with stand_in(GIT) as server:
        assert ask(server.url()).refs == PLAIN
        assert all(not sent.header("Authorization") for sent in server.sent)


# -- proxies -------------------------------------------------------------------------------------------------------------


def test_a_proxy_for_http(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """It resolves the name, which nobody here knows."""
    with stand_in(GIT) as proxy:
        monkeypatch.setenv("http_proxy", proxy.address)
        for _ in range(2):
            assert ask("http://git.invalid/shop.git", kind="token", secret=SECRET).refs == PLAIN

        assert [sent.target for sent in proxy.sent] == [
            f"http://git.invalid/shop.git{QUESTION}", *["http://git.invalid/shop.git/git-upload-pack"] * 2,
        ]  # fmt: skip
        assert {sent.header("Host") for sent in proxy.sent} == {"git.invalid"}
        assert proxy.connections == 1


def test_those_who_need_no_proxy(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in(GIT) as proxy, stand_in(GIT) as server:
        monkeypatch.setenv("http_proxy", proxy.address)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert ask(server.url()).refs == PLAIN
        assert (len(server.sent), proxy.connections) == (2, 0)


@pytest.mark.parametrize("line", ["407 Proxy Authentication Required", "502 Bad Gateway", "403 Forbidden"])
def test_a_proxy_that_will_not(line: str, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in(by_method(CONNECT=[(http(b"", status=line),)], GET=[(http(b"", status=line),)])) as proxy:
        monkeypatch.setenv("https_proxy", proxy.address)
        monkeypatch.setenv("http_proxy", proxy.address)
        secure = ask("https://git.invalid/shop.git", kind="token", secret=SECRET)
        plain = ask("http://git.invalid/shop.git")

        assert secure.error is not None and plain.error is not None
        assert proxy.methods == ["CONNECT", "GET"]
        assert PAIR not in str(proxy.sent[0].headers)


@contextmanager
def tunnel() -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that connects everything to the port that is asked for, on this machine: its address, and what it was told."""
    listener = socket.create_server(("127.0.0.1", 0))
    told: list[bytes] = []

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(65536):
                target.sendall(chunk)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def serve(client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(1)
        told.append(head)
        port = int(head.split(b" ")[1].rpartition(b":")[2])
        server = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        threading.Thread(target=pump, args=(server, client), daemon=True).start()
        pump(client, server)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", told
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_a_proxy_for_https_sees_no_credential(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    authority = Authority(tmp_path_factory.mktemp("ca"))
    with stand_in(guarded, context=authority.context(HERE)) as server, tunnel() as (proxy, told):
        monkeypatch.setenv("https_proxy", proxy)
        for _ in range(3):
            answer = ask(server.url(), kind="token", secret=SECRET, ca_bundle=authority.pem)
            assert answer.refs == PLAIN, answer

        assert server.methods == ["GET", "POST", "POST", "POST"]
        assert len(told) == 1 and told[0].startswith(f"CONNECT 127.0.0.1:{server.port} ".encode())
        assert b"uthorization: Basic" not in told[0]


# -- addresses -----------------------------------------------------------------------------------------------------------


def test_a_private_address_is_not_connected_to(ask: Ask, settings: Settings) -> None:
    settings.GIT_ALLOWED_NETWORKS = []
    with stand_in(GIT) as server:
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
            answer = ask(f"http://{host}:{server.port}/shop.git", kind="token", secret=SECRET)
            assert conclusion(answer, [MAIN]) == "address", host
            assert answer.error is not None and "GIT_ALLOWED_NETWORKS" in answer.error.message
        assert server.connections == 0


def test_only_the_networks_that_are_allowed(ask: Ask, settings: Settings) -> None:
    settings.GIT_ALLOWED_NETWORKS = ["127.0.0.1/32"]
    with stand_in(GIT, host="127.0.0.2") as other, stand_in(GIT) as server:
        assert conclusion(ask(other.url()), [MAIN]) == "address"
        assert ask(server.url()).refs == PLAIN
        assert other.connections == 0


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1"])
def test_an_address_in_another_spelling_is_the_same_address(host: str, ask: Ask, settings: Settings) -> None:
    settings.GIT_ALLOWED_NETWORKS = []
    with stand_in(GIT) as server:
        assert ask(f"http://{host}:{server.port}/shop.git").error is not None
        assert server.connections == 0


def test_an_address_is_checked_at_every_new_connection(ask: Ask, settings: Settings) -> None:
    """What may be connected to when a remote is polled for the first time may be forbidden the next time."""
    closing = by_method(GET=[(*discovery(), Close())], POST=[(*GOOD, Close())])
    with stand_in(closing) as server:
        assert ask(server.url()).refs == PLAIN
        settings.GIT_ALLOWED_NETWORKS = []
        time.sleep(0.1)
        assert conclusion(ask(server.url()), [MAIN]) == "address"
        assert len(server.sent) == server.connections == 2


@pytest.mark.parametrize("url", ["http://no-such-host.invalid/shop.git", "http://127.0.0.1:9/shop.git"])
def test_nobody_at_home(url: str, ask: Ask) -> None:
    assert conclusion(ask(url), [MAIN]) == "network"
