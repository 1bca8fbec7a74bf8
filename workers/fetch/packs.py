"""What lies in a mirror's packs, by their indexes (gitformat-pack(5)), without starting git."""

from collections.abc import Iterator
from pathlib import Path

MAGIC = b"\xfftOc\x00\x00\x00\x02"
FANOUT = len(MAGIC)
NAMES = FANOUT + 256 * 4


def may_have(folder: Path, object_id: str) -> bool:
    """False only if the object is certainly not in the mirror at `folder`; whatever can't be read is left for git to judge."""
    name = bytes.fromhex(object_id)
    if (folder / "objects" / object_id[:2] / object_id[2:]).exists():
        return True
    try:
        return any(_is_in(index, name) for index in _indexes(folder))
    except (OSError, ValueError):
        return True


def _indexes(folder: Path) -> Iterator[Path]:
    return (folder / "objects/pack").glob("*.idx")


def _is_in(index: Path, name: bytes) -> bool:
    """Halving: an index has 256 counts, of the names up to each first byte, and then the names in order."""
    with index.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError("an index of another version")

        def number(position: int) -> int:
            file.seek(FANOUT + 4 * position)
            return int.from_bytes(_exactly(file.read(4), 4))

        low, high = number(name[0] - 1) if name[0] else 0, number(name[0])
        while low < high:
            middle = (low + high) // 2
            file.seek(NAMES + middle * len(name))
            found = _exactly(file.read(len(name)), len(name))
            if found == name:
                return True
            low, high = (middle + 1, high) if found < name else (low, middle)
    return False


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ValueError("an index that is cut off")
    return data
