"""Security cases 6 and 7 where a worker connects."""

import socket
from typing import Any

import pytest
from pytest_django import Settings

from workers.addresses import connects_directly, resolved, with_allowed
from workers.git_environment import PROXY_VARIABLES, AccessError, RemoteAccess

SHOP = RemoteAccess("https://git.example.com/shop.git")


def answers(*addresses: str) -> list[Any]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in addresses]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.8",
        "169.254.169.254",
        "100.64.0.1",
        "::1",
        "::ffff:127.0.0.1",
        "fe80::1%eth0",
        "fd00::1",
        "0.0.0.0",
    ],
)
def test_a_name_that_leads_to_a_private_address_is_refused(settings: Settings, address: str) -> None:
    settings.GIT_ALLOWED_NETWORKS = []
    with pytest.raises(AccessError, match="GIT_ALLOWED_NETWORKS") as refusal:
        with_allowed(SHOP, answers(address))
    assert refusal.value.cause == "address"


def test_only_allowed_addresses_are_connected_to(settings: Settings) -> None:
    settings.GIT_ALLOWED_NETWORKS = ["10.1.0.0/16"]
    found = with_allowed(SHOP, answers("127.0.0.1", "93.184.215.14", "10.1.2.3", "10.2.0.1", "93.184.215.14"))
    assert found.addresses == ("93.184.215.14", "10.1.2.3")


def test_a_name_of_this_machine_is_resolved_and_refused(settings: Settings) -> None:
    settings.GIT_ALLOWED_NETWORKS = []
    with pytest.raises(AccessError):
        resolved(RemoteAccess("https://localhost/shop.git"))
    settings.GIT_ALLOWED_NETWORKS = ["127.0.0.0/8"]
    assert resolved(RemoteAccess("https://localhost/shop.git")).addresses == ("127.0.0.1",)


def test_a_name_that_is_unknown_says_so() -> None:
    with pytest.raises(AccessError, match="cannot be resolved"):
        resolved(RemoteAccess("https://nowhere.invalid/shop.git"))


def test_a_file_and_what_goes_through_a_proxy_are_not_resolved_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not connects_directly(RemoteAccess("file:///srv/shop.git"))
    assert connects_directly(SHOP)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com:3128")
    assert not connects_directly(SHOP)
    assert connects_directly(RemoteAccess("ssh://git@git.example.com/shop.git"))


@pytest.mark.parametrize(
    ("variables", "url", "directly"),
    [
        ({"https_proxy": "http://p:1", "no_proxy": "git.example.com"}, "https://git.example.com/shop.git", True),
        ({"https_proxy": "http://p:1", "NO_PROXY": ".example.com"}, "https://git.example.com:8443/shop.git", True),
        ({"https_proxy": "http://p:1", "no_proxy": "other.example.com"}, "https://git.example.com/shop.git", False),
        ({"all_proxy": "http://p:1", "no_proxy": "*"}, "https://git.example.com/shop.git", True),
        ({"all_proxy": "http://p:1"}, "http://git.example.com/shop.git", False),
        ({"https_proxy": "http://p:1"}, "http://git.example.com/shop.git", True),
        ({"HTTP_PROXY": "http://p:1"}, "http://git.example.com/shop.git", True),
        ({"no_proxy": "other.example.com"}, "https://git.example.com/shop.git", True),
    ],
)
def test_a_host_that_needs_no_proxy_is_checked_here(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str, directly: bool
) -> None:
    for name in (*PROXY_VARIABLES, "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert connects_directly(RemoteAccess(url)) is directly
