"""Which addresses a Git server may have: public ones, and those that an operator lists.

Asked twice: about the literal host of a URL when it is saved, and about every address that a worker connects
to.
"""

import ipaddress
import re
from functools import lru_cache

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# As inet_aton and the URL standard read it: a host whose last label is a number is an IPv4 address in some
# notation.
_NUMBER = re.compile(r"0[xX][0-9A-Fa-f]*|[0-9]+")

# IANA's special-purpose registries (RFC 6890 and its successors) and multicast. Written out because what
# `ipaddress.is_global` says differs between Python's patch releases.
_RESERVED_IPV4: tuple[IPNetwork, ...] = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by carrier-grade NAT; a cloud's metadata lies here too
        "127.0.0.0/8",
        "168.63.129.16/32",  # public by number, but a cloud's own service for its virtual machines
        "169.254.0.0/16",  # link-local, where most metadata services are
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_RESERVED_IPV6: tuple[IPNetwork, ...] = tuple(
    ipaddress.IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)

_LOCAL_NAMES = {
    "localhost",
    "localhost.localdomain",
    "localhost4",
    "localhost6",
    "ip6-localhost",
    "ip6-loopback",
}
_METADATA_NAMES = {
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "instance-data",
    "instance-data.ec2.internal",
}


def address_is_allowed(ip: str | IPAddress) -> bool:
    """Whether a worker may connect to `ip`: it is public, or inside one of settings.GIT_ALLOWED_NETWORKS.

    An IPv4 address inside an IPv6 one (`::ffff:a.b.c.d`, NAT64's `64:ff9b::a.b.c.d`) is judged as the IPv4
    address that it reaches. Text that is no address is not allowed. Raises ImproperlyConfigured for a setting
    that is no list of CIDR.
    """
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    inner = _reached_ipv4(address)
    for network in _allowed_networks(tuple(settings.GIT_ALLOWED_NETWORKS)):
        if address in network or (inner is not None and inner in network):
            return True
    judged = inner or address
    if isinstance(judged, ipaddress.IPv4Address):
        return not any(judged in network for network in _RESERVED_IPV4)
    return judged in _GLOBAL_IPV6 and not any(judged in network for network in _RESERVED_IPV6)


def _reached_ipv4(address: IPAddress) -> ipaddress.IPv4Address | None:
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


@lru_cache(maxsize=8)
def _allowed_networks(texts: tuple[str, ...]) -> tuple[IPNetwork, ...]:
    try:
        return tuple(ipaddress.ip_network(text.strip(), strict=False) for text in texts if text.strip())
    except ValueError as error:
        raise ImproperlyConfigured(f"GIT_ALLOWED_NETWORKS: {error}. Write networks like 10.0.0.0/8.") from error


def literal_addresses(host: str) -> list[str]:
    """The addresses that `host` is known to have without asking a name server; none for a name that must be
    resolved.

    `host` is in lower case, an IPv6 address without brackets. Names of this machine and of clouds' metadata
    services count as the addresses that they stand for. Raises ValueError for a number that is no plain
    dotted IPv4 address.
    """
    if ":" in host:
        return [host]
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        return [str(ipaddress.IPv4Address(host))]
    if host in _LOCAL_NAMES or host.endswith(".localhost"):
        return ["127.0.0.1", "::1"]
    return ["169.254.169.254"] if host in _METADATA_NAMES else []
