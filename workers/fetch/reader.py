"""Objects of a mirror by id, through a `git cat-file` process that lives as long as the reader."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from types import TracebackType
from typing import Self

from workers.fetch.git import Child, GitCall, GitFailed, child
from workers.git_errors import GitError, LimitExceeded, MirrorCorrupt, ObjectsRefused
from workers.objects import TreeItem

# Requests on their way at a time: enough that git never waits, and far below what fills a pipe (64 KiB).
WINDOW = 64
MAX_TREE_BYTES = 64 * 1024**2


class GitBlob:
    """One file's bytes; read them before asking the reader for anything else."""

    def __init__(self, source: Child, object_id: str, size: int) -> None:
        self.object_id = object_id
        self.size = size
        self._source = source
        self._left = size

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, all that is left for -1, and b"" at the end."""
        if size < 0:
            return b"".join(iter(lambda: self.read(1024 * 1024), b""))
        if not self._left or not size:
            return b""
        data = self._source.read_some(min(size, self._left))
        self._left -= len(data)
        return data


class _Slot:
    """A cat-file process that is started when it is first asked."""

    def __init__(self, call: GitCall) -> None:
        self._call = call
        self._child: Child | None = None
        self._ending = ExitStack()

    def open(self) -> Child:
        if self._child is None:
            git = child(self._call, "cat-file", "--batch-command", ends_with_its_input=True)
            self._child = self._ending.enter_context(git)
        return self._child

    def close(self, only: Child | None = None) -> None:
        """End the process; with `only`, not if another one has taken its place."""
        if only is None or only is self._child:
            self._child = None
            self._ending.close()


class GitObjectReader:
    """workers.objects.ObjectReader over one mirror. Raises MirrorCorrupt, GitTimeout, LimitExceeded; want() also what a
    remote's answer may be, and ObjectsRefused. `filled` is how many objects were fetched for it.
    """

    def __init__(self, call: GitCall, fill: Callable[[Sequence[str], int], None] | None = None) -> None:
        """`fill`(ids, most bytes together) brings objects into a mirror in which they may be lacking."""
        self.filled = 0
        self._fill = fill
        self._slot = _Slot(call)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._slot.close()

    def root_tree(self, commit: str) -> str:
        """The id of the commit's tree. fetch() has seen to it that the commit is there."""
        (answer,) = self._info([f"{commit}^{{tree}}"])
        if answer is None:
            raise MirrorCorrupt("The mirror lacks the commit. It is fetched anew.")
        return answer[0]

    def tree(self, tree_id: str) -> list[TreeItem]:
        source = self._slot.open()
        try:
            source.write(f"contents {tree_id}\n".encode())
            size = _header(source, tree_id, b"tree")
            if size > MAX_TREE_BYTES:
                self.close()
                raise LimitExceeded(
                    "BUNDLE_MAX_FILES",
                    f"One folder's list takes more than {MAX_TREE_BYTES} bytes. Divide the folder.",
                )
            data = GitBlob(source, tree_id, size).read()
            source.read_line()
        except GitFailed as failed:
            raise self._broken(failed) from failed
        return parse_tree(data, len(tree_id) // 2)

    def want(self, object_ids: Sequence[str], *, max_bytes: int) -> None:
        if self._fill is None:
            return
        if lacking := self._lacking(object_ids):
            self._fill(lacking, max_bytes)
            if still := self._lacking(lacking):
                raise ObjectsRefused(detail=f"{len(still)} of {len(lacking)} were not sent")
            self.filled += len(lacking)

    def _lacking(self, object_ids: Sequence[str]) -> list[str]:
        wanted = list(dict.fromkeys(object_ids))
        return [object_id for object_id, found in zip(wanted, self._info(wanted), strict=True) if found is None]

    def sizes(self, object_ids: Sequence[str]) -> list[int]:
        answers = self._info(object_ids)
        if None in answers:
            raise MirrorCorrupt("The mirror lacks an object that its tree names. It is fetched anew.")
        return [size for answer in answers if answer for size in (answer[1],)]

    def blobs(self, object_ids: Iterable[str]) -> Iterator[GitBlob]:
        source = self._slot.open()
        ids = iter(object_ids)
        waiting: deque[str] = deque()
        complete = False
        try:
            while True:
                if len(waiting) <= WINDOW // 2:
                    more = list(islice(ids, WINDOW - len(waiting)))
                    source.write("".join(f"contents {i}\n" for i in more).encode())
                    waiting.extend(more)
                if not waiting:
                    complete = True
                    return
                blob = GitBlob(source, waiting[0], _header(source, waiting[0], b"blob"))
                yield blob
                while blob.read(1024 * 1024):
                    pass
                source.read_line()
                waiting.popleft()
        except GitFailed as failed:
            raise self._broken(failed) from failed
        finally:
            if not complete:
                # Answers are still on their way, so the next question needs a new process.
                self._slot.close(source)

    def _info(self, names: Sequence[str]) -> list[tuple[str, int] | None]:
        """(id, size) for each name, None for what is not there."""
        source, answers, asked = self._slot.open(), list[tuple[str, int] | None](), 0
        try:
            while len(answers) < len(names):
                while asked < len(names) and asked - len(answers) < WINDOW:
                    chunk = names[asked : asked + WINDOW // 2]
                    source.write("".join(f"info {name}\n" for name in chunk).encode())
                    asked += len(chunk)
                # `<id> <type> <size>`, or `<name> missing`.
                words = source.read_line().decode().split(" ")
                answers.append((words[0], int(words[2])) if len(words) == 3 and words[2].isdigit() else None)
        except GitFailed as failed:
            raise self._broken(failed) from failed
        return answers

    def _broken(self, failed: GitFailed) -> GitError:
        """Reading asks no network, so whatever git stumbled on is in the mirror, or on the disk below it."""
        self.close()
        return failed.error if failed.error.local else MirrorCorrupt(detail=failed.error.detail)


def parse_tree(data: bytes, id_bytes: int) -> list[TreeItem]:
    """The lines of a tree object: `<octal mode> <name>NUL<id>`; MirrorCorrupt if that is not what it is."""
    items, position = [], 0
    try:
        while position < len(data):
            space = data.index(b" ", position)
            end = data.index(b"\0", space)
            object_id = data[end + 1 : end + 1 + id_bytes]
            if len(object_id) < id_bytes:
                raise ValueError("cut off")
            items.append(TreeItem(int(data[position:space], 8), data[space + 1 : end], object_id.hex()))
            position = end + 1 + id_bytes
    except ValueError:
        raise MirrorCorrupt("A tree object is not readable. The mirror is fetched anew.") from None
    return items


def _header(source: Child, object_id: str, kind: bytes) -> int:
    """The size from cat-file's `<id> <type> <size>`."""
    words = source.read_line().split(b" ")
    if len(words) != 3 or words[1] != kind:
        raise MirrorCorrupt(f"The mirror has no {kind.decode()} {object_id}, which its tree names. It is fetched anew.")
    return int(words[2])
