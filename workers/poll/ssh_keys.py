"""Whom an ssh connection trusts and as whom it speaks, from what is stored with the credential and from nothing else."""

from collections.abc import Iterator
from typing import Any

import asyncssh

from workers.git_environment import AccessError, RemoteAccess

SSH_PORT = 22
# Those that OpenSSH takes by default; its order, the strongest first. A signature over SHA-1 (`ssh-rsa`) is not among them.
HOST_KEY_ALGORITHMS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521",
    "rsa-sha2-512", "rsa-sha2-256",
)  # fmt: skip
# Those of OpenSSH; first what costs least here, where each packet is small (measured: a poll takes a fifth less than with
# chacha20-poly1305).
ENCRYPTION_ALGORITHMS = (
    "aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com",
    "aes128-ctr", "aes192-ctr", "aes256-ctr",
)  # fmt: skip
CERTIFICATE = "-cert-v01@openssh.com"
RSA = "ssh-rsa"
KINDS = ("ssh-ed25519", "ecdsa-sha2-", RSA)


def connection_options(access: RemoteAccess) -> dict[str, Any]:
    """What asyncssh is told for a connection to the host of `access`: all that it would else look for in the user's home, in
    an agent or in the environment is off, and so is everything but a public key. AccessError if the key can't be used.
    """
    name, port = access.host
    trusted = trusted_keys(access.known_hosts, name, port or SSH_PORT)
    key = private_key(access.secret) if access.kind == "ssh" else None
    return {
        "config": None,
        "known_hosts": trusted,
        "server_host_key_algs": host_key_algorithms(*trusted),
        "host_key_alias": name,
        "x509_trusted_certs": None,
        # An empty list would mean the user's own keys.
        "client_keys": None if key is None else [key],
        "public_key_auth": key is not None,
        "preferred_auth": ["publickey"],
        "password_auth": False,
        "kbdint_auth": False,
        "host_based_auth": False,
        "gss_host": None,
        "gss_kex": False,
        "gss_auth": False,
        "agent_path": None,
        "agent_forwarding": False,
        "x11_forwarding": False,
        "proxy_command": None,
        "tunnel": None,
        "compression_algs": ["none"],
        "encryption_algs": ENCRYPTION_ALGORITHMS,
        "kex_algs": "-*-sha1",
        "request_pty": False,
        "send_env": None,
        "env": None,
        "encoding": None,
        # There is one deadline, of who waits for the connection.
        "login_timeout": 0,
        "connect_timeout": None,
    }


Trusted = tuple[list[asyncssh.SSHKey], list[asyncssh.SSHKey], list[asyncssh.SSHKey]]


def trusted_keys(known_hosts: str, name: str, port: int) -> Trusted:
    """The host's keys, the authorities that may sign its key, and the keys that are revoked, by known_hosts lines for `name`,
    or for `[name]:port` where the port is not 22. A line that can't be read is passed over, as ssh does.
    """
    pattern = name if port == SSH_PORT else f"[{name}]:{port}"
    keys: Trusted = ([], [], [])
    for line in _readable(known_hosts):
        try:
            # The name alone decides: no address, and no second look without the port.
            found = asyncssh.import_known_hosts(line).match(pattern, "", None)
        except ValueError:
            continue
        for mine, more in zip(keys, found[:3], strict=True):
            mine.extend(more)
    return keys


def _readable(known_hosts: str) -> Iterator[str]:
    """The lines that name somebody; names in lower case and none empty or a network, since those would match too much."""
    for line in known_hosts.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        at = 1 if words[0].startswith("@") else 0
        if len(words) < at + 3:
            continue
        if not words[at].startswith("|"):
            words[at] = ",".join(p for p in words[at].lower().split(",") if p.strip("!") and "/" not in p)
        if words[at]:
            yield " ".join(words)


def host_key_algorithms(
    keys: list[asyncssh.SSHKey], authorities: list[asyncssh.SSHKey], revoked: list[asyncssh.SSHKey]
) -> list[str]:
    """What to ask the server to prove itself with: a key that is known, before others, so that its key of another type is
    not shown instead. The others are there to be refused as unknown keys.
    """
    known = {key.algorithm.decode() for key in keys if key not in revoked}
    first = [name for name in HOST_KEY_ALGORITHMS if (RSA if name.startswith("rsa-") else name) in known]
    certified = [name + CERTIFICATE for name in HOST_KEY_ALGORITHMS] if authorities else []
    return certified + first + [name for name in HOST_KEY_ALGORITHMS if name not in first]


def private_key(text: str) -> asyncssh.SSHKey:
    """The key in OpenSSH's or a PEM format. AccessError, which says what to do, if it can't be used."""
    try:
        key = asyncssh.import_private_key(text.strip() + "\n")
    except asyncssh.KeyEncryptionError:
        raise _encrypted() from None
    except (asyncssh.KeyImportError, ValueError) as error:
        if "passphrase" in str(error).lower():
            raise _encrypted() from None
        raise AccessError(
            "credential",
            "The credential's private key can't be read: store the whole text of an ed25519, ecdsa or rsa key, with its "
            "first and last line.",
        ) from None
    if not key.algorithm.decode().startswith(KINDS):
        raise AccessError("credential", "The credential's private key is of a type not used here: use an ed25519 key.")
    return key


def _encrypted() -> AccessError:
    return AccessError(
        "credential",
        "The credential's private key is encrypted with a passphrase, which nobody is there to type: store a key without "
        "one (ssh-keygen -p removes it).",
    )
