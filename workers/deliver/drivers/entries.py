"""Which entries of a bundle may become files at a target.

The stage that makes bundles has the same rules; they are asked again here, because a bundle comes back from
a store, and whoever can write to that store must not get a file outside a release.
"""

from collections.abc import Mapping

from workers.content import LINK_MODE, Entry
from workers.deliver.drivers.base import DriverError

FILE_MODES = (0o644, 0o755)
MAX_FOLDERS = 100  # each open folder on the way down holds a file descriptor
MAX_LINK_BYTES = 4095  # Linux: PATH_MAX less the NUL
MAX_HOPS = 40  # Linux: MAXSYMLINKS; more is a loop for every reader


def shown(path: str | bytes) -> str:
    """A path as a message may hold it: in ASCII and cut, so that it can't forge a line of a log."""
    text = path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else path
    return ascii(text if len(text) <= 200 else text[:200] + "...")


def refuse(path: str | bytes, rule: str) -> DriverError:
    """The error for an entry that breaks a rule."""
    return DriverError(
        "entry_refused",
        f"The bundle's entry {shown(path)} {rule}; nothing was delivered. "
        "Change it in the repository, or sync again if the repository has no such entry.",
    )


def check_entry(entry: Entry) -> tuple[bytes, ...]:
    """The entry's path as bytes, part by part; DriverError "entry_refused" if it may not be delivered."""
    try:
        parts = tuple(entry.path.encode("utf-8", "surrogateescape").split(b"/"))
    except UnicodeEncodeError:
        raise refuse(entry.path, "has a name that is not text") from None
    if b"\0" in entry.path.encode("utf-8", "surrogateescape"):
        raise refuse(entry.path, "has a NUL in its name")
    if any(part in (b"", b".", b"..") for part in parts):
        raise refuse(entry.path, 'is absolute or has an empty part, "." or ".."')
    if any(_is_git(part) for part in parts):
        raise refuse(entry.path, 'has a part ".git"')
    if len(parts) > MAX_FOLDERS:
        raise refuse(entry.path, f"is more than {MAX_FOLDERS} folders deep")
    if entry.mode == LINK_MODE:
        _check_target(entry)
    elif entry.mode not in FILE_MODES:
        raise refuse(entry.path, "is neither a file nor a symbolic link")
    return parts


def _check_target(entry: Entry) -> None:
    try:
        target = entry.link_target.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise refuse(entry.path, "is a symbolic link to a name that is not text") from None
    if not target or b"\0" in target or len(target) > MAX_LINK_BYTES:
        raise refuse(entry.path, f"is a symbolic link to nothing, or to more than {MAX_LINK_BYTES} bytes")
    if target.startswith(b"/"):
        raise refuse(entry.path, "is an absolute symbolic link")
    if any(_is_git(part) for part in target.split(b"/")):
        raise refuse(entry.path, 'is a symbolic link into ".git"')


def _is_git(part: bytes) -> bool:
    """As git's fsck: Windows drops trailing dots and blanks and knows the short name."""
    return part.rstrip(b". ").lower() in (b".git", b"git~1")


def check_links(links: Mapping[bytes, bytes]) -> None:
    """Refuse links that leave the bundle or loop; ``links`` maps each link's path to its target.

    Counting ".." is not enough: ``a/b/..`` leaves the bundle if ``b`` is itself a link to the top. So each
    link is followed the way the kernel would, through the other links, and the top's parent is out of bounds.
    """
    for path in links:
        _follow(path, links)


def _follow(path: bytes, links: Mapping[bytes, bytes]) -> None:
    here: list[bytes] = []
    todo = path.split(b"/")[::-1]
    hops = 0
    while todo:
        part = todo.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            if not here:
                raise refuse(path, "is a symbolic link that leaves the repository")
            here.pop()
            continue
        here.append(part)
        target = links.get(b"/".join(here))
        if target is not None:
            hops += 1
            if hops > MAX_HOPS:
                raise refuse(path, "is a symbolic link that loops")
            here.pop()
            todo.extend(target.split(b"/")[::-1])
