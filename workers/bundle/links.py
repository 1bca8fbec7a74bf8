"""Where symbolic links lead, worked out on the listed paths alone. Pure: no file system is asked."""

from collections.abc import Collection, Mapping

from workers.bundle.names import is_dot_git

MAX_TARGET_BYTES = 4096
# As many as Linux follows in one path (path_resolution(7)).
MAX_FOLLOWED = 40


class LinkFault(Exception):  # a finding, not a failure
    """Why a link is refused, as the end of a sentence."""


def check_target(target: bytes) -> str:
    """The target as text; LinkFault if it alone is reason enough."""
    if not target or len(target) > MAX_TARGET_BYTES:
        raise LinkFault("its target is empty or too long")
    if target.startswith(b"/"):
        raise LinkFault("its target is absolute")
    try:
        text = target.decode("utf-8")
    except UnicodeDecodeError:
        raise LinkFault("its target is not UTF-8") from None
    if "\0" in text or "\\" in text:
        raise LinkFault("its target has a zero byte or a backslash")
    if any(is_dot_git(part) for part in text.split("/")):
        raise LinkFault("it points into .git")
    return text


def resolve(link: str, links: Mapping[str, str], files: Collection[str], folders: Collection[str]) -> str:
    """The path that `link` finally means, followed as a kernel would; LinkFault if it is none of those given.

    `links` are all links with their targets, `folders` all folders with "" for the root.
    """
    at = link.split("/")[:-1]
    left = links[link].split("/")[::-1]
    followed = 1
    while left:
        part = left.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if not at:
                raise LinkFault("its target is above the root")
            at.pop()
            continue
        here = "/".join([*at, part])
        if here in links:
            followed += 1
            if followed > MAX_FOLLOWED:
                raise LinkFault("it loops")
            left += links[here].split("/")[::-1]
        elif here in folders or (here in files and not left):
            at.append(part)
        else:
            raise LinkFault("its target is not among the selected paths; select the target too")
    final = "/".join(at)
    if final in folders and (not final or link.startswith(final + "/")):
        raise LinkFault("it loops: its target is a folder that it lies in")
    return final
