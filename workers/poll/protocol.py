"""Git's wire protocol as far as a poll speaks it: what a server advertises, and the refs that it names. Pure.

The sources of the rules are git's own documents gitprotocol-common, gitprotocol-pack, gitprotocol-http and gitprotocol-v2;
packets of refs are read by dulwich. An answer counts only if it is whole: what ends before its flush packet is broken off,
and a ref that it lacks is not a ref that is gone.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from dulwich.client import read_pkt_refs_v1, read_pkt_refs_v2
from dulwich.errors import GitProtocolError
from dulwich.protocol import CAPABILITIES_REF, pkt_line

# It names every attribute of a ref that it does not know, and a server may invent as many as it likes.
logging.getLogger("dulwich").setLevel(logging.ERROR)

AGENT = b"agent=fleetsync"
UPLOAD_PACK = b"git-upload-pack"
PEELED = "^{}"
OBJECT_IDS = {"sha1": re.compile("[0-9a-f]{40}").fullmatch, "sha256": re.compile("[0-9a-f]{64}").fullmatch}
FLUSH, DELIMITER, RESPONSE_END = 0, 1, 2
LENGTH = 4
ERROR = b"ERR "
LENGTH_DIGITS = b"0123456789abcdefABCDEF"
# What git allows in no name, and what no database or terminal should get from a stranger.
CONTROL = re.compile(r"[\x00-\x20\x7f]")


class NotGit(Exception):
    """The bytes are no answer of a Git server."""


class BrokenOff(Exception):
    """The answer ends before its end."""


class RemoteSaid(Exception):
    """The server answered with an ERR packet; `str()` is what it wrote, which may be anything."""


@dataclass(frozen=True, slots=True)
class Advertisement:
    """What a server says of a repository before it is asked anything.

    `version` is the protocol's: 2, or 0 and 1, whose advertisement has all `refs` ({full name: commit}, tags peeled).
    """

    version: int
    object_format: str = "sha1"
    refs: dict[str, str] = field(default_factory=dict)


def read_advertisement(data: bytes, *, service: bool) -> Advertisement:
    """The advertisement in `data`: the body of `info/refs` (`service`: it may begin with a section that names the service,
    and some servers leave that out before `version 2`), or what an upload-pack says first over ssh.

    Raises NotGit, BrokenOff or RemoteSaid.
    """
    packets, rest = _section(data)
    if service and not packets:
        # Over http an empty repository says so behind the name of the service.
        raise NotGit
    if service and packets[0].rstrip(b"\n") == b"# service=" + UPLOAD_PACK:
        # gitprotocol-http: a flush follows the line; servers that leave it out are known.
        packets = packets[1:] or _section(rest)[0]
    if not packets:
        return Advertisement(0)
    first = packets[0].rstrip(b"\n")
    if first.startswith(ERROR):
        raise RemoteSaid(first.removeprefix(ERROR).decode("utf-8", "replace"))
    if first == b"version 2":
        return _version_2(packets[1:])
    if first.startswith(b"version ") and first != b"version 1":
        raise NotGit
    return _version_0(packets[1:], 1) if first == b"version 1" else _version_0(packets, 0)


def _version_2(packets: Sequence[bytes]) -> Advertisement:
    capabilities = dict(_capability(packet) for packet in packets)
    if "ls-refs" not in capabilities:
        raise NotGit
    object_format = capabilities.get("object-format", "sha1")
    if object_format not in OBJECT_IDS:
        raise NotGit
    return Advertisement(2, object_format)


def _capability(packet: bytes) -> tuple[str, str]:
    name, _, value = packet.rstrip(b"\n").decode("utf-8", "replace").partition("=")
    return name, value


def _version_0(packets: Sequence[bytes], version: int) -> Advertisement:
    if not packets:
        return Advertisement(version)
    # A shallow repository names its boundary behind its refs.
    packets = [packet for packet in packets if not packet.startswith(b"shallow ")]
    try:
        found, capabilities = read_pkt_refs_v1(packets)
    except GitProtocolError as error:
        raise RemoteSaid(str(error)) from None
    except (ValueError, AssertionError):
        raise NotGit from None
    formats = [c.removeprefix(b"object-format=").decode() for c in capabilities if c.startswith(b"object-format=")]
    object_format = formats[0] if formats else "sha1"
    refs: dict[str, str] = {}
    peeled: dict[str, str] = {}
    for name, commit in found.items():
        if name == CAPABILITIES_REF:
            continue
        text = name.decode("utf-8", "replace")
        if text.endswith(PEELED):
            peeled[text.removesuffix(PEELED)] = commit.decode("ascii", "replace")
        else:
            refs[text] = commit.decode("ascii", "replace")
    return Advertisement(version, object_format, _checked(refs | peeled, object_format))


def ls_refs_request(asked: Sequence[str], object_format: str) -> bytes:
    """The command `ls-refs` for full names, `HEAD`, and prefixes that end in `*`; the answer may hold more than was asked
    for, because a server takes each as a prefix.
    """
    packets = [b"command=ls-refs\n", AGENT]
    # A server that names no format is one of before it had a choice, and would refuse the word.
    if object_format != "sha1":
        packets.append(b"object-format=" + object_format.encode())
    arguments = [b"peel\n", *(b"ref-prefix " + name.removesuffix("*").encode() + b"\n" for name in asked)]
    return b"".join([*map(pkt_line, packets), b"0001", *map(pkt_line, arguments), b"0000"])


def read_refs(data: bytes, object_format: str) -> dict[str, str]:
    """The refs in the answer to ls_refs_request(), {full name: commit}, tags peeled; a HEAD that is not born is absent.

    Raises NotGit, BrokenOff or RemoteSaid.
    """
    packets, _ = _section(data)
    try:
        found, _, peeled = read_pkt_refs_v2(packets)
    except GitProtocolError as error:
        raise RemoteSaid(str(error)) from None
    except (ValueError, IndexError):
        raise NotGit from None
    found.update(peeled)
    refs = {
        name.decode("utf-8", "replace"): commit.decode("ascii", "replace") for name, commit in found.items() if commit
    }
    return _checked(refs, object_format)


def _checked(refs: dict[str, str], object_format: str) -> dict[str, str]:
    is_id = OBJECT_IDS.get(object_format)
    if is_id is None or not all(map(is_id, refs.values())):
        raise NotGit
    if "" in refs or CONTROL.search("".join(refs)):
        raise NotGit
    return refs


def section_end(data: bytes | bytearray) -> int | None:
    """Where the first section of what has come so far ends: just behind its flush packet; None if that is still to come.

    Raises NotGit.
    """
    at = 0
    while (size := _length(data, at)) is not None:
        at += max(size, LENGTH)
        if size == FLUSH:
            return at
    return None


def _section(data: bytes) -> tuple[list[bytes], bytes]:
    """The packets before the first flush packet, and what follows it."""
    packets: list[bytes] = []
    at = 0
    while (size := _length(data, at)) is not None:
        if size == FLUSH:
            return packets, data[at + LENGTH :]
        if size < LENGTH:
            raise NotGit
        packets.append(data[at + LENGTH : at + size])
        at += size
    # A server that gives up says why, and ends without a flush.
    if packets and packets[-1].startswith(ERROR):
        raise RemoteSaid(packets[-1].removeprefix(ERROR).decode("utf-8", "replace"))
    raise BrokenOff


def _length(data: bytes | bytearray, at: int) -> int | None:
    """The length of the packet at `at`, its own four digits counted; None if it is not all there."""
    digits = data[at : at + LENGTH]
    # What can't become a length is no Git, however little of it has come; int() would take more than digits.
    if digits.strip(LENGTH_DIGITS):
        raise NotGit
    if len(digits) < LENGTH:
        return None
    size = int(digits, 16)
    if size == LENGTH - 1:
        raise NotGit
    return size if at + size <= len(data) else None
