"""What a folder target remembers of the last delivery, as JSON beside the releases."""

import json
import re
from dataclasses import asdict, dataclass
from typing import Self

from workers.deliver.drivers.base import DriverError, Order
from workers.deliver.drivers.tree import read_file

NAME = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?")
BUNDLE = re.compile(r"[0-9a-f]{64}")
RELEASE = re.compile(r"[0-9a-f]{64}(?:-[0-9]{1,9})?")
_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class State:
    """What state.json says."""

    order: Order
    bundle: str
    gitrepo: str
    removed: bool
    claim: float
    """The right to the name: seconds since 1970, the higher one wins."""
    history: tuple[str, ...]
    """Folders below releases, the one applied last first."""

    def to_json(self) -> bytes:
        fields = asdict(self)
        return json.dumps({**fields.pop("order"), **fields}, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Raise ValueError, KeyError or TypeError for what to_json never wrote."""
        fields = json.loads(data)
        history = tuple(fields["history"])
        valid = (
            type(fields["epoch"]) is int
            and type(fields["sequence"]) is int
            and type(fields["removed"]) is bool
            and (fields["bundle"] == "" if fields["removed"] else BUNDLE.fullmatch(fields["bundle"]))
            and NAME.fullmatch(fields["gitrepo"])
            and all(RELEASE.fullmatch(release) for release in history)
        )
        if not valid:
            raise ValueError("not a state")
        return cls(
            order=Order(fields["epoch"], fields["sequence"]),
            bundle=fields["bundle"],
            gitrepo=fields["gitrepo"],
            removed=fields["removed"],
            claim=float(fields["claim"]),
            history=history,
        )


def bundle_of(release: str) -> str:
    """The bundle of which ``release`` is a folder."""
    return release[:64]


def read_state(folder: int) -> State | None:
    """The state in that folder, None without one; ValueError, KeyError or TypeError if damaged."""
    try:
        data = read_file("state.json", _LIMIT_BYTES, dir_fd=folder)
    except FileNotFoundError:
        return None
    return State.from_json(data)


def check_bundle_name(sha256: str) -> None:
    """The name becomes a folder's: DriverError "bundle_unreadable" if it is not a SHA-256."""
    if not BUNDLE.fullmatch(sha256):
        raise DriverError("bundle_unreadable", "The bundle's name is not a SHA-256; sync again to make it anew.")
