"""What a mirror's folder looks like on disk (gitrepository-layout(5)), made and tidied without starting
git.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

HEAD = "ref: refs/heads/none\n"
CORE = "[core]\n\trepositoryformatversion = {version}\n\tfilemode = true\n\tbare = true\n"
SHA256 = "[extensions]\n\tobjectformat = sha256\n"
# git itself reads nothing of this. That blobs may be missing is told to the commands that must know it (partial.py), so
# that no other one ever fetches what it stumbles over.
PARTIAL = "[fleetsync]\n\tpartial = true\n"
# What a mirror is made and removed as, always under its lock. Earlier versions put their process id for the 0.
NEW, OLD = ".new-0", ".old-0"
# git's temporary files: packs on their way in, packs being rewritten, loose objects. A `.keep` is what a
# fetch puts beside its new pack until the ref is written.
TEMPORARY = ("tmp_*", ".tmp-*", "*.keep", "incoming-*", "tmp_objdir-*")


def object_format(commit: str) -> str:
    return "sha1" if len(commit) == 40 else "sha256"


def config(kind: str, *, partial: bool) -> str:
    """The one text that a mirror's config may have. A version of this code that knows no partial mirrors takes such a
    mirror for a stranger's, and makes it anew.
    """
    sha256 = kind == "sha256"
    text = CORE.format(version=int(sha256))
    return text + (SHA256 if sha256 else "") + (PARTIAL if partial else "")


def make(folder: Path, kind: str, *, partial: bool = False) -> None:
    """An empty bare repository at `folder`, which appears whole or not at all."""
    new = folder.with_name(folder.name + NEW)
    shutil.rmtree(new, ignore_errors=True)
    for name in ("objects/info", "objects/pack", "refs/fleetsync", "info"):
        (new / name).mkdir(parents=True)
    (new / "config").write_text(config(kind, partial=partial))
    (new / "HEAD").write_text(HEAD)
    new.rename(folder)


def is_ours(folder: Path, kind: str) -> bool:
    """Whether the fixed parts are as make() wrote them. What somebody else wrote there might be a command."""
    try:
        return (
            (folder / "config").read_text() in (config(kind, partial=False), config(kind, partial=True))
            and (folder / "HEAD").read_text() == HEAD
            and (folder / "objects/pack").is_dir()
            and (folder / "refs").is_dir()
            and not (folder / "objects/info/alternates").exists()
            and not (folder / "config.worktree").exists()
        )
    except (OSError, UnicodeDecodeError):
        return False


def is_partial(folder: Path) -> bool:
    """Whether blobs may be missing in the mirror at `folder`; False if there is none."""
    try:
        return (folder / "config").read_text().endswith(PARTIAL)
    except (OSError, UnicodeDecodeError):
        return False


def call_whole(folder: Path, kind: str) -> None:
    """Make a whole mirror of a partial one that lacks nothing. The marks on its packs mean nothing then."""
    new = folder / "config.lock"
    new.write_text(config(kind, partial=False))
    new.rename(folder / "config")
    for mark in (folder / "objects/pack").glob("*.promisor"):
        mark.unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Move the mirror out of the way, so that it is gone at once, then remove it."""
    old = folder.with_name(folder.name + OLD)
    _remove(old)
    if folder.exists():
        folder.rename(old)
        _remove(old)


def tidy(folder: Path) -> int:
    """Remove what killed processes left. Only for who holds the mirror's lock alone; answers how many."""
    removed = 0
    for leftover in leftovers(folder):
        _remove(leftover)
        removed += 1
    return removed


def leftovers(folder: Path) -> list[Path]:
    """What tidy() removes. While nobody holds the mirror's lock, it belongs to dead processes."""
    # Asked for by name: looking for names takes as long as there are mirrors beside this one.
    halves = (folder.with_name(folder.name + suffix) for suffix in (NEW, OLD))
    return [*(half for half in halves if half.exists()), *_leftovers(folder)]


def tidy_after_others(folder: Path) -> None:
    """Remove what killed processes of earlier versions left beside the mirror. Only for who holds its lock alone."""
    for half in (*folder.parent.glob(f"{folder.name}.old-*"), *folder.parent.glob(f"{folder.name}.new-*")):
        _remove(half)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _leftovers(folder: Path) -> Iterator[Path]:
    yield from folder.glob("*.lock")
    yield from (folder / "objects/info").glob("*.lock")
    yield from (folder / "refs").rglob("*.lock")
    for pattern in TEMPORARY:
        yield from (folder / "objects").glob(pattern)
        yield from (folder / "objects/pack").glob(pattern)
        yield from (folder / "objects").glob(f"??/{pattern}")


def loose_refs(folder: Path, prefix: str) -> set[str]:
    """The names below `prefix` that have a file of their own, as all have that were written since the last packing."""
    top = folder / prefix
    return {str(path.relative_to(top)) for path in top.rglob("*") if path.suffix != ".lock" and path.is_file()}


def size_bytes(folder: Path) -> int:
    """The bytes of all files below `folder`; files that go away meanwhile count nothing."""
    total = 0
    stack = [str(folder)]
    while stack:
        try:
            with os.scandir(stack.pop()) as found:
                for item in found:
                    if item.is_dir(follow_symlinks=False):
                        stack.append(item.path)
                    else:
                        total += item.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
    return total
