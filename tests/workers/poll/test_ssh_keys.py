"""The rules of ssh without a server: which keys of a host are trusted, and what a server is asked for."""

import subprocess
from pathlib import Path

import pytest

from tests.git_servers import ENVIRONMENT
from workers.git_environment import AccessError
from workers.poll.ssh import path_of, quoted
from workers.poll.ssh_connections import user_of
from workers.poll.ssh_keys import HOST_KEY_ALGORITHMS, Trusted, host_key_algorithms, trusted_keys

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
NOTHING: Trusted = ([], [], [])


@pytest.mark.parametrize(
    ("line", "name", "port", "found"),
    [
        (f"git.example.com {KEY}", "git.example.com", 22, True),
        (f"git.example.com {KEY} a comment", "git.example.com", 22, True),
        (f"a.example.com,git.example.com {KEY}", "git.example.com", 22, True),
        (f"Git.Example.COM {KEY}", "git.example.com", 22, True),
        (f"*.example.com {KEY}", "git.example.com", 22, True),
        (f"*.example.com,!git.example.com {KEY}", "git.example.com", 22, False),
        (f"example.com {KEY}", "git.example.com", 22, False),
        (f"[git.example.com]:2222 {KEY}", "git.example.com", 2222, True),
        (f"[git.example.com]:2222 {KEY}", "git.example.com", 22, False),
        (f"[*.example.com]:2222 {KEY}", "git.example.com", 2222, True),
        (f"git.example.com {KEY}", "git.example.com", 2222, False),
        # An empty name, or a network, would let a key stand for hosts that nobody named.
        (f"other.example.com, {KEY}", "git.example.com", 22, False),
        (f", {KEY}", "git.example.com", 22, False),
        (f"10.0.0.0/8 {KEY}", "10.1.2.3", 22, False),
        ("git.example.com ssh-ed25519 AAAA", "git.example.com", 22, False),
        ("git.example.com", "git.example.com", 22, False),
        (f"@marked git.example.com {KEY}", "git.example.com", 22, False),
        (f"|1|broken {KEY}", "git.example.com", 22, False),
        (f"#git.example.com {KEY}", "git.example.com", 22, False),
    ],
)
def test_which_lines_speak_for_a_host(line: str, name: str, port: int, found: bool) -> None:
    keys, authorities, revoked = trusted_keys(line, name, port)

    assert (len(keys), authorities, revoked) == (int(found), [], [])


def test_a_bad_line_hides_no_other() -> None:
    keys, authorities, revoked = trusted_keys(
        f"@what\n|2|x|y {KEY}\n@revoked git.example.com {KEY}\n@cert-authority *.example.com {KEY}\ngit.example.com {KEY}\n",
        "git.example.com",
        22,
    )
    assert (len(keys), len(authorities), len(revoked)) == (1, 1, 1)


def test_known_keys_are_asked_for_first_and_others_not_left_out() -> None:
    keys, _, _ = trusted_keys(f"a {KEY}", "a", 22)

    assert host_key_algorithms(*NOTHING) == list(HOST_KEY_ALGORITHMS)
    assert host_key_algorithms(keys, [], [])[0] == "ssh-ed25519"
    assert sorted(host_key_algorithms(keys, [], [])) == sorted(HOST_KEY_ALGORITHMS)
    assert host_key_algorithms([], keys, [])[0] == "ssh-ed25519-cert-v01@openssh.com"
    assert "ssh-rsa" not in host_key_algorithms(keys, keys, [])


URLS = (
    "ssh://git@git.example.com/team/shop.git",
    "ssh://git@git.example.com:2222/team/shop.git",
    "ssh://git@git.example.com/~ada/shop.git",
    "ssh://git@git.example.com/team/it%27s%20%21.git",
    "ssh://git@git.example.com/team/%C3%A9.git",
    "git@git.example.com:team/shop.git",
    "git@git.example.com:/team/shop.git",
    "git@git.example.com:~ada/shop.git",
    "git@git.example.com:/~ada/shop.git",
    "git@git.example.com:team/100%25.git",
    "ssh.example.com:v3/team/project/shop",
    "a+b@git.example.com:team/shop.git",
    "git@[2001:db8::1]:team/shop.git",
    "ssh://git@[2001:db8::1]/team/shop.git",
)


@pytest.mark.parametrize("url", URLS)
def test_a_server_is_asked_as_git_asks_it(url: str, tmp_path: Path) -> None:
    """git's own command, caught by a program in ssh's place."""
    spy = tmp_path / "spy"
    spy.write_text(f'#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done >{tmp_path}/words\nexit 1\n')
    spy.chmod(0o755)
    environment = {**ENVIRONMENT, "GIT_SSH": str(spy), "GIT_SSH_VARIANT": "ssh"}
    subprocess.run(["git", "ls-remote", url], env=environment, capture_output=True)
    *_, account, command, _ = (tmp_path / "words").read_bytes().split(b"\0")

    assert b"git-upload-pack " + quoted(path_of(url)) == command
    if b"@" in account:
        assert user_of(url) == account.partition(b"@")[0].decode()


@pytest.mark.parametrize("url", ["git@git.example.com:-option", "git@git.example.com:", "ssh://git@git.example.com"])
def test_a_path_that_would_be_an_option(url: str) -> None:
    with pytest.raises(AccessError):
        path_of(url)
