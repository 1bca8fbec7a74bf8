"""What one room reads from a Git object store without knowing how: the line between fetching and bundling."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

FOLDER = 0o040000
SYMLINK = 0o120000
SUBMODULE = 0o160000


@dataclass(frozen=True, slots=True)
class TreeItem:
    """One line of one tree object: `name` is as stored, and nobody has checked it yet."""

    mode: int
    name: bytes
    object_id: str


class Blob(Protocol):
    """One file's bytes, to be read before the next one is asked for."""

    object_id: str
    size: int

    def read(self, size: int = -1, /) -> bytes: ...


class ObjectReader(Protocol):
    """Objects by id. Every method may raise the fetching room's own error for a store that is broken or too
    slow.
    """

    def root_tree(self, commit: str) -> str:
        """The id of the commit's tree."""

    def tree(self, tree_id: str) -> Sequence[TreeItem]:
        """The lines of one tree, in the order stored."""

    def want(self, object_ids: Sequence[str], *, max_bytes: int) -> None:
        """Have these files ready, which may have `max_bytes` together; a store that keeps only some files gets the others
        now. To be called before their sizes and contents are asked for.
        """

    def sizes(self, object_ids: Sequence[str]) -> list[int]:
        """The sizes in bytes, in the order asked, without reading contents."""

    def blobs(self, object_ids: Iterable[str]) -> Iterator[Blob]:
        """The contents in the order asked."""
