"""What a name in a tree may be, and how it is shown. Pure."""

import re
import unicodedata

MAX_COMPONENT_BYTES = 255  # NAME_MAX of Linux file systems
MAX_PATH_BYTES = 4096  # PATH_MAX
SHOWN_CHARACTERS = 200
# Characters that HFS+ leaves out when it compares names (git: utf8.c, next_hfs_char).
HFS_IGNORED = re.compile("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]")


def shown(path: bytes | str) -> str:
    """Fit for a log line and a page: control characters, line ends and marks that turn text round are
    escaped.
    """
    text = path.decode("utf-8", "backslashreplace") if isinstance(path, bytes) else path
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def is_dot_git(name: str) -> bool:
    """Whether some file system would take this name for `.git` (CVE-2014-9390 and its kin)."""
    folded = unicodedata.normalize("NFC", HFS_IGNORED.sub("", name)).casefold()
    folded = folded.split(":", 1)[0].rstrip(" .")
    return folded in (".git", "git~1")


def fault_of(name: bytes) -> str:
    """What is wrong with one component, as the end of a sentence; "" if nothing is."""
    if name in (b"", b".", b".."):
        return "its name is not one that a file can have"
    if b"/" in name or b"\0" in name:
        return "its name has a slash or a zero byte"
    if len(name) > MAX_COMPONENT_BYTES:
        return f"its name is longer than {MAX_COMPONENT_BYTES} bytes"
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        return "its name is not UTF-8"
    return "its name is .git, or looks like it to some file system" if is_dot_git(text) else ""
