"""Which part of a commit's tree is delivered.

1. selection_key() reads only the trees on the way to what `paths` name. Its key is made of the ids found
   there, so equal keys mean equal content, and a commit to another folder leaves it as it was.
2. list_entries() lists everything below, for a key that is new, and refuses what is not delivered.

No file's content is read but a symbolic link's target.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import translate

from workers.bundle.errors import ContentRefused, LimitExceeded, NoMatch
from workers.bundle.links import MAX_TARGET_BYTES, LinkFault, check_target, resolve
from workers.bundle.names import MAX_PATH_BYTES, fault_of, shown
from workers.content import LINK_MODE
from workers.objects import FOLDER, SUBMODULE, SYMLINK, ObjectReader, TreeItem

# Goes into the key: raise it whenever equal trees would make another bundle than before.
OPTIONS_VERSION = "1"
FILE_MODES = {0o100644: 0o644, 0o100664: 0o644, 0o100755: 0o755}
# Lines of trees that patterns may look at. A few objects can describe a tree of 10^10 files ("git bomb").
MAX_VISITED = 500_000
MAX_REMEMBERED_TREES = 2_000

# One component of a path: `**`, a name, or a pattern.
Part = bytes | re.Pattern[str] | None


@dataclass(frozen=True, slots=True)
class Limits:
    """BUNDLE_MAX_FILES, BUNDLE_MAX_BYTES (of all files together) and BUNDLE_MAX_FILE_BYTES."""

    max_files: int = 50_000
    max_bytes: int = 200 * 1024**2
    max_file_bytes: int = 50 * 1024**2


@dataclass(frozen=True, slots=True)
class Top:
    """A file, link or folder that a path names; a folder stands for everything below it. `path` is b"" for
    the root.
    """

    path: bytes
    mode: int
    object_id: str


@dataclass(frozen=True, slots=True)
class Selection:
    """`key` is 64 hex digits."""

    key: str
    tops: tuple[Top, ...]


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """One file or link to be bundled, checked. `mode` is 0o644, 0o755 or 0o120000; a link's `size` is 0."""

    path: str
    mode: int
    object_id: str
    size: int
    link_target: str = ""


def selection_key(reader: ObjectReader, commit: str, paths: Sequence[str]) -> Selection:
    """What `paths` select in `commit`; none, or ".", is the whole tree.

    A path is a pattern by components: `*`, `?` and `[…]` within one, `**` for any number of them. NoMatch for
    a path that selects nothing, ContentRefused for one that leads through a symbolic link or a submodule.
    """
    walk = _Walk(reader, reader.root_tree(commit))
    found: dict[bytes, Top] = {}
    for path in paths or ["."]:
        tops = list(walk.matches(path))
        if not tops:
            raise NoMatch(f"The path {shown(path)!r} matches nothing in this commit. Correct the path.")
        found.update((top.path, top) for top in tops)
    kept = tuple(found[path] for path in sorted(found) if not any(p in found for p in _parents(path)))
    digest = hashlib.sha256(f"fleetsync selection {OPTIONS_VERSION}\n".encode())
    for top in kept:
        digest.update(b"%o %s %s\0" % (top.mode, top.object_id.encode(), top.path))
    return Selection(digest.hexdigest(), kept)


def list_entries(reader: ObjectReader, selection: Selection, limits: Limits) -> list[TreeEntry]:
    """Every file and link of the selection, by path as bytes sort; ContentRefused and LimitExceeded."""
    found = _listed(reader, selection, limits)
    if not found:
        raise NoMatch("The paths select no file in this commit. Correct the paths.")
    found.sort(key=lambda top: top.path)
    reader.want([top.object_id for top in found], max_bytes=limits.max_bytes)
    links = [top for top in found if top.mode == SYMLINK]
    files = [top for top in found if top.mode != SYMLINK]
    sizes = dict(zip([f.path for f in files], reader.sizes([f.object_id for f in files]), strict=True))
    _check_sizes(sizes, limits)
    targets = _targets(reader, links)
    return [
        TreeEntry(path, LINK_MODE, top.object_id, 0, targets[path])
        if (path := top.path.decode()) in targets
        else TreeEntry(path, FILE_MODES[top.mode], top.object_id, sizes[top.path])
        for top in _with_sound_links(found, targets)
    ]


@dataclass(slots=True)
class _Walk:
    """Finds what patterns match, and remembers the trees that several of them pass."""

    reader: ObjectReader
    root: str
    visited: int = 0
    trees: dict[str, Sequence[TreeItem]] = field(default_factory=dict)

    def matches(self, path: str) -> Iterator[Top]:
        """The topmost matches. `states` are the positions in the pattern that have been reached (as in an
        NFA).
        """
        pattern = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in pattern:
            raise NoMatch(f"The path {shown(path)!r} leaves the repository. Correct the path.")
        parts = [_part(text) for text in pattern]
        start = _reached({0}, parts)
        if len(parts) in start:
            yield Top(b"", FOLDER, self.root)
            return
        stack = [(b"", self.root, start)]
        while stack:
            prefix, tree_id, states = stack.pop()
            for item in self._tree(tree_id, prefix):
                after = _step(states, parts, item.name)
                if not after:
                    continue
                after = _reached(after, parts)
                here = prefix + item.name
                _check_name(item.name, here)
                if len(parts) in after:
                    yield Top(here, item.mode, item.object_id)
                elif item.mode == FOLDER:
                    stack.append((here + b"/", item.object_id, after))
                elif pattern[: here.count(b"/") + 1] == here.decode("utf-8", "surrogateescape").split("/"):
                    # Named in full, and not by some star that happens to meet it.
                    _refuse_on_the_way(item.mode, here)

    def _tree(self, tree_id: str, prefix: bytes) -> Sequence[TreeItem]:
        items = self.trees.get(tree_id)
        if items is None:
            items = _checked_tree(self.reader, tree_id, prefix)
            if len(self.trees) < MAX_REMEMBERED_TREES:
                self.trees[tree_id] = items
        self.visited += len(items) + 1
        if self.visited > MAX_VISITED:
            raise LimitExceeded(
                "BUNDLE_MAX_FILES",
                f"The paths look at more than {MAX_VISITED} files and folders. Name the folders more exactly.",
            )
        return items


def _part(text: str) -> Part:
    if text == "**":
        return None
    if not set("*?[") & set(text):
        return text.encode("utf-8", "surrogateescape")
    # Python's own translation, which does not backtrack; Go's patterns negate a class with ^ as well as with
    # !.
    return re.compile(translate(text.replace("[^", "[!")))


def _step(states: Iterable[int], parts: Sequence[Part], name: bytes) -> set[int]:
    after = set()
    for state in states:
        if state < len(parts):
            part = parts[state]
            if part is None:
                after.add(state)
            elif part == name if isinstance(part, bytes) else part.match(name.decode("utf-8", "surrogateescape")):
                after.add(state + 1)
    return after


def _reached(states: set[int], parts: Sequence[Part]) -> set[int]:
    """With `**` standing for no component at all, the position behind it is reached too."""
    reached = set(states)
    for state in states:
        after = state
        while after < len(parts) and parts[after] is None:
            after += 1
            reached.add(after)
    return reached


def _listed(reader: ObjectReader, selection: Selection, limits: Limits) -> list[Top]:
    """Files and links below the tops, each name checked."""
    found: list[Top] = []
    visited = 0
    stack = list(selection.tops)
    while stack:
        top = stack.pop()
        if top.mode != FOLDER:
            _check_mode(top)
            found.append(top)
            if len(found) > limits.max_files:
                raise LimitExceeded(
                    "BUNDLE_MAX_FILES",
                    f"The paths select more than {limits.max_files} files, the limit BUNDLE_MAX_FILES. "
                    "Name fewer "
                    "folders, or have the limit raised.",
                )
            continue
        prefix = top.path + b"/" if top.path else b""
        items = _checked_tree(reader, top.object_id, prefix)
        for item in items:
            here = prefix + item.name
            _check_name(item.name, here)
            stack.append(Top(here, item.mode, item.object_id))
        visited += 1 + len(items)
        if visited > MAX_VISITED:
            raise LimitExceeded("BUNDLE_MAX_FILES", f"The paths select more than {MAX_VISITED} folders. Name fewer.")
    return found


def _checked_tree(reader: ObjectReader, tree_id: str, prefix: bytes) -> Sequence[TreeItem]:
    items = reader.tree(tree_id)
    names: set[bytes] = set()
    for item in items:
        if item.name in names:
            raise ContentRefused(
                "duplicate", shown(prefix + item.name), "the folder has this name twice. Remove one of them."
            )
        names.add(item.name)
    return items


def _check_name(name: bytes, path: bytes) -> None:
    fault = fault_of(name)
    if not fault and len(path) > MAX_PATH_BYTES:
        fault = f"its path is longer than {MAX_PATH_BYTES} bytes"
    if fault:
        raise ContentRefused("name", shown(path), f"{fault}. Rename it.")


def _check_mode(top: Top) -> None:
    if top.mode == SUBMODULE:
        raise ContentRefused(
            "submodule",
            shown(top.path),
            "a submodule is not delivered. Select paths without it, or add its files.",
        )
    if top.mode != SYMLINK and top.mode not in FILE_MODES:
        raise ContentRefused("mode", shown(top.path), f"the file mode {top.mode:o} is unknown. Add the file again.")


def _refuse_on_the_way(mode: int, path: bytes) -> None:
    if mode == SYMLINK:
        raise _link_refused(path, "it stands in the middle of a path; name the folder that it points to")
    if mode == SUBMODULE:
        raise ContentRefused("submodule", shown(path), "a submodule is not delivered. Add its files to the repository.")


def _check_sizes(sizes: dict[bytes, int], limits: Limits) -> None:
    total = 0
    for path, size in sizes.items():
        if size > limits.max_file_bytes:
            raise LimitExceeded(
                "BUNDLE_MAX_FILE_BYTES",
                f"{shown(path)}: its {size} bytes are more than {limits.max_file_bytes}, the limit "
                "BUNDLE_MAX_FILE_BYTES. Make the file smaller, or have the limit raised.",
            )
        total += size
    if total > limits.max_bytes:
        raise LimitExceeded(
            "BUNDLE_MAX_BYTES",
            f"The selected files have {total} bytes, more than {limits.max_bytes}, the limit "
            "BUNDLE_MAX_BYTES. Name "
            "fewer folders, or have the limit raised.",
        )


def _targets(reader: ObjectReader, links: Sequence[Top]) -> dict[str, str]:
    targets = {}
    for link, blob in zip(links, reader.blobs([link.object_id for link in links]), strict=True):
        try:
            targets[link.path.decode()] = check_target(blob.read(MAX_TARGET_BYTES + 1))
        except LinkFault as fault:
            raise _link_refused(link.path, str(fault)) from None
    return targets


def _with_sound_links(found: list[Top], targets: dict[str, str]) -> list[Top]:
    """The same list, once every link is seen to end inside of it."""
    if targets:
        paths = [top.path for top in found]
        files = {path.decode() for path in paths}
        folders = {parent.decode() for path in paths for parent in _parents(path)}
        for link in targets:
            try:
                resolve(link, targets, files, folders)
            except LinkFault as fault:
                raise _link_refused(link.encode(), str(fault)) from None
    return found


def _link_refused(path: bytes, fault: str) -> ContentRefused:
    """The target itself is not shown: it may be a path on somebody's machine."""
    return ContentRefused("symlink", shown(path), f"symlink leaves the repository: {fault}.")


def _parents(path: bytes) -> list[bytes]:
    """The folders above, with b"" for the root; none for the root itself."""
    if not path:
        return []
    parts = path.split(b"/")
    return [b"/".join(parts[:length]) for length in range(len(parts))]
