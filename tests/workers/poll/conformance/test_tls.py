"""Certificates: whose word is taken for a server, and that no connection made without it serves one that asks for it."""

import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.workers.poll.conformance.answers import GOOD, MAIN, PLAIN, discovery
from tests.workers.poll.conformance.case import conclusion, git_says
from tests.workers.poll.conformance.conftest import Ask
from tests.workers.poll.conformance.stand_in import Close, StandIn, by_method, stand_in

HERE = [x509.IPAddress(ip_address("127.0.0.1"))]
SECRET = "t0p-s3cret-value"
GIT = by_method(GET=(discovery(),), POST=[GOOD])


class Authority:
    """One that signs, and what it signs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority {folder.name}")])
        self.certificate = self._sign(self.name, self.key, authority=True)
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def _sign(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        names: list[x509.IPAddress] | list[x509.DNSName] | None = None,
        *,
        days: int = 2,
        authority: bool = False,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        begins = now + timedelta(days=min(days, 0) - 1)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def context(self, names: list[x509.IPAddress] | list[x509.DNSName], *, days: int = 2) -> ssl.SSLContext:
        """A server's, with a certificate for these names that ends in so many days."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "git server")])
        certificate = self._sign(name, key, names, days=days)
        file = self.folder / f"{certificate.serial_number:x}.pem"
        file.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def serve(authority: Authority) -> Iterator[Callable[..., StandIn]]:
    """serve(names, days=2): a TLS server with a certificate of the authority."""
    running = []

    def run(names: list[x509.IPAddress] | list[x509.DNSName] = HERE, *, days: int = 2) -> StandIn:
        manager = stand_in(GIT, context=authority.context(names, days=days))
        running.append(manager)
        return manager.__enter__()

    yield run
    for manager in running:
        manager.__exit__(None, None, None)


Serve = Callable[..., StandIn]


def test_an_authority_of_ones_own(ask: Ask, serve: Serve, authority: Authority, tmp_path: Path) -> None:
    server = serve()
    for _ in range(3):
        assert ask(server.url(), ca_bundle=authority.pem).refs == PLAIN

    assert (server.connections, server.methods) == (1, ["GET", "POST", "POST", "POST"])
    (tmp_path / "ca.pem").write_text(authority.pem)
    assert git_says(server.url(), [MAIN], f"http.sslCAInfo={tmp_path / 'ca.pem'}") == PLAIN


REFUSED = {
    "nobody vouches for it": (HERE, 2, False),
    "it is another's": ([x509.DNSName("git.example.com")], 2, True),
    "it is over": (HERE, -2, True),
}


@pytest.mark.parametrize(("names", "days", "trusted"), REFUSED.values(), ids=REFUSED.keys())
def test_a_certificate_that_is_not_to_be_trusted(
    names: list[x509.IPAddress], days: int, trusted: bool, ask: Ask, serve: Serve, authority: Authority
) -> None:
    """Nothing of what was to be sent has been sent."""
    server = serve(names, days=days)
    bundle = authority.pem if trusted else ""
    answer = ask(server.url(), ca_bundle=bundle, kind="token", secret=SECRET)

    assert conclusion(answer, [MAIN]) == "tls"
    assert server.sent == []
    assert git_says(server.url(), [MAIN]) is None
    assert ask(server.url(), insecure_skip_tls_verify=True).refs == PLAIN


def test_the_bundle_of_another_authority(ask: Ask, serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    server = serve()

    assert conclusion(ask(server.url(), ca_bundle=Authority(tmp_path / "other").pem), [MAIN]) == "tls"
    assert server.sent == []


def test_a_bundle_that_holds_nothing(ask: Ask, serve: Serve) -> None:
    """The database may hold what a validator would refuse today."""
    server = serve()

    assert conclusion(ask(server.url(), ca_bundle="no certificate"), [MAIN]) == "tls"
    assert server.sent == []


def test_a_kept_connection_serves_only_those_who_would_have_made_it(
    ask: Ask, serve: Serve, authority: Authority
) -> None:
    """One remote looks away from the certificate, another of the same host does not, and a third one trusts its own CA."""
    server = serve()
    for _ in range(2):
        assert ask(server.url("a.git"), insecure_skip_tls_verify=True).refs == PLAIN
        before = len(server.sent)
        assert conclusion(ask(server.url("b.git"), kind="token", secret=SECRET), [MAIN]) == "tls"
        assert len(server.sent) == before
        assert ask(server.url("c.git"), ca_bundle=authority.pem).refs == PLAIN
    assert server.connections == 2 + 2


def test_an_authority_beside_others_is_no_one_elses(ask: Ask, serve: Serve, authority: Authority) -> None:
    """A bundle belongs to its remote: the next poll, with the same handle and without the bundle, is refused."""
    server = serve()
    assert ask(server.url(), ca_bundle=authority.pem).refs == PLAIN
    assert conclusion(ask(server.url("other.git")), [MAIN]) == "tls"


def test_a_server_without_tls_at_an_https_url(ask: Ask) -> None:
    with stand_in(GIT) as server:
        url = server.url().replace("http://", "https://")
        answer = ask(url, kind="token", secret=SECRET, seconds=1.5)

        # It may wait for the end of a request that it can't read.
        assert conclusion(answer, [MAIN]) in ("tls", "network", "timeout")
        assert server.sent == []


def test_a_server_that_ends_the_handshake(ask: Ask) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # without any certificate
    with stand_in(GIT, context=context) as server:
        assert conclusion(ask(server.url(), insecure_skip_tls_verify=True), [MAIN]) in ("tls", "network")


def test_an_answer_cut_off_below_tls_is_broken_off(ask: Ask, authority: Authority) -> None:
    """Without a length the end of the answer is the end of the connection, and anybody on the way can make one."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-result\r\nConnection: close\r\n\r\n"
    cut = (head + b"0000"[:2], Close())
    with stand_in(by_method(GET=(discovery(),), POST=[cut]), context=authority.context(HERE)) as server:
        assert conclusion(ask(server.url(), ca_bundle=authority.pem), [MAIN]) == "network"


def test_a_server_that_renews_its_certificate_between_two_polls(ask: Ask, authority: Authority) -> None:
    with stand_in(GIT, context=authority.context(HERE)) as server:
        assert ask(server.url(), ca_bundle=authority.pem).refs == PLAIN
        port = server.port
    with stand_in(GIT, context=authority.context(HERE), port=port) as server:
        assert ask(server.url(), ca_bundle=authority.pem).refs == PLAIN
    with stand_in(GIT, context=authority.context(HERE, days=-2), port=port) as server:
        assert conclusion(ask(server.url(), ca_bundle=authority.pem), [MAIN]) == "tls"
        assert server.sent == []
