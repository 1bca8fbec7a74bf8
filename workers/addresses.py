"""Names are resolved and checked where we connect, and the address that was checked is the one that is connected to.

What was public when the GitRepo was saved may be private when it is polled (DNS rebinding).
"""

import asyncio
import os
import socket
from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from urllib.request import proxy_bypass

from repos.addresses import address_is_allowed
from workers.git_environment import AccessError, RemoteAccess

# As libcurl reads them: HTTP_PROXY in capitals is not among them, because a web server sets that from a header.
PROXIES = {
    "http": ("http_proxy", "all_proxy", "ALL_PROXY"),
    "https": ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"),
}


def connects_directly(access: RemoteAccess) -> bool:
    """Whether this machine resolves the host's name: not for a file, and not where a proxy does."""
    if access.scheme not in PROXIES:
        return access.scheme != "file"
    if not any(os.environ.get(name) for name in PROXIES[access.scheme]):
        return True
    # Read as Python does, which knows names and suffixes, and no networks: a host that libcurl alone excepts by its network
    # is taken for one behind the proxy.
    excepted = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return bool(proxy_bypass(access.host[0], {"no": excepted}))


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
