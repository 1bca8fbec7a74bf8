"""Names are resolved and checked where we connect, and the address that was checked is the one that is connected to.

What was public when the GitRepo was saved may be private when it is polled (DNS rebinding).
"""

import asyncio
import os
import socket
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from repos.addresses import address_is_allowed
from workers.git_environment import PROXY_VARIABLES, AccessError, RemoteAccess


def connects_directly(access: RemoteAccess) -> bool:
    """Whether this machine resolves the host's name: not for a file, and not where a proxy does."""
    proxied = access.scheme in ("https", "http") and any(
        os.environ.get(name) for name in PROXY_VARIABLES if not name.lower().startswith("no_")
    )
    return access.scheme != "file" and not proxied


def with_allowed(access: RemoteAccess, found: Iterable[Any]) -> RemoteAccess:
    """`access` with those of the addresses `found` (as getaddrinfo gives them) that may be connected to.

    AccessError if there is none. Pure but for the settings.
    """
    addresses = dict.fromkeys(str(info[4][0]).partition("%")[0] for info in found)
    allowed = tuple(address for address in addresses if address_is_allowed(address))
    if not allowed:
        raise private_address()
    return replace(access, addresses=allowed)


def private_address() -> AccessError:
    """For a name that leads to no address which may be connected to."""
    return AccessError(
        "address",
        "The host's name leads to a private address, which is refused: correct the url, or have the operator add the "
        "network to GIT_ALLOWED_NETWORKS.",
    )


def _unknown() -> AccessError:
    return AccessError("network", "The host's name cannot be resolved: correct the url, or look at this machine's DNS.")


def resolved(access: RemoteAccess) -> RemoteAccess:
    """`access` with its checked addresses. Raises AccessError. Blocks for as long as the resolver does."""
    if not connects_directly(access):
        return access
    try:
        return with_allowed(access, socket.getaddrinfo(*_question(access), type=socket.SOCK_STREAM))
    except (socket.gaierror, UnicodeError):
        raise _unknown() from None


async def resolved_soon(access: RemoteAccess) -> RemoteAccess:
    """The same without blocking the event loop."""
    if not connects_directly(access):
        return access
    loop = asyncio.get_running_loop()
    try:
        return with_allowed(access, await loop.getaddrinfo(*_question(access), type=socket.SOCK_STREAM))
    except (socket.gaierror, UnicodeError):
        raise _unknown() from None


def _question(access: RemoteAccess) -> tuple[str, int | None]:
    name, port = access.host
    return name, port or None
