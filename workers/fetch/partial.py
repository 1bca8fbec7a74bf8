"""Partial mirrors: commits and trees of everything, and the content of only those files that somebody wanted.

1. When one is made: wish(), by the setting, the URL and the paths.
2. How the content of wanted files gets in: fetch_blobs(), by id, in batches, within one limit of bytes.
3. How it is repacked: repack(). git's own `repack -a -d` keeps for ever what a promisor remote once sent.
"""

import re
import shutil
from collections.abc import Callable, Sequence
from enum import Enum, auto
from pathlib import Path

from workers.fetch.git import GitCall, run

FILTER = "--filter=blob:none"
# For a fetch into a partial mirror. As configuration, since git writes the option --filter into the mirror's own.
PROMISED = ("-c", "remote.origin.promisor=true", "-c", "remote.origin.partialCloneFilter=blob:none")
NOT_FILTERED = re.compile(r"filtering not recognized by server", re.IGNORECASE)
# Ids in one request, 325 kB at most: many servers refuse a request of more than 1 MB.
BATCH = 5_000
# Where the new pack is put together: a name that layout.tidy() removes.
WORKSHOP = "objects/tmp_repack"


class Wish(Enum):
    """What becomes of a mirror at the next fetch."""

    WHOLE = auto()
    """Every file; a partial one is made anew."""
    AS_IT_IS = auto()
    """A new one is whole; one that is partial stays so, and gets what it lacks by id."""
    PARTIAL = auto()
    """A new one is partial, if the server can; one that is whole stays so."""


def wish(setting: str, scheme: str, paths: Sequence[str]) -> Wish:
    """Whether a partial mirror pays for a GitRepo with these paths. Pure. `setting` is GIT_PARTIAL_CLONE, auto or off.

    It pays if every path begins with the plain name of a folder or file: then all else is not wanted. It never pays for
    a repository on this machine's own disks.
    """
    if setting == "off":
        return Wish.WHOLE
    narrow = bool(paths) and all(_begins_plainly(path) for path in paths)
    return Wish.PARTIAL if narrow and scheme != "file" else Wish.AS_IT_IS


def _begins_plainly(path: str) -> bool:
    first = next((part for part in path.split("/") if part not in ("", ".")), "")
    return bool(first) and not set("*?[") & set(first)


def fetch_blobs(call: GitCall, object_ids: Sequence[str], *, watch: Callable[[], None]) -> None:
    """Fetch objects by their ids, some thousands a request. Raises GitFailed."""
    for start in range(0, len(object_ids), BATCH):
        some = object_ids[start : start + BATCH]
        run(
            call,
            *PROMISED,
            # What is here must not be told: the server would leave out what belongs to commits that are here.
            *("-c", "fetch.negotiationAlgorithm=noop"),
            "fetch",
            "--quiet",
            "--no-tags",
            "--no-write-fetch-head",
            "--no-auto-maintenance",
            "--no-recurse-submodules",
            "--stdin",
            "origin",
            stdin="".join(f"{object_id}\n" for object_id in some).encode(),
            watch=watch,
        )


def repack(call: GitCall, folder: Path) -> None:
    """One pack of what the refs hold and is here; everything else goes. Raises GitFailed.

    The mark that says "what this names may be missing" is there before the pack, and the pack before its index, by which
    git finds it; the old packs go last. A process that dies in between leaves nothing unreadable.
    """
    workshop, packs = folder / WORKSHOP, folder / "objects/pack"
    shutil.rmtree(workshop, ignore_errors=True)
    workshop.mkdir()
    # By all of their files: of a pack that was half made or half removed, any one may be left.
    old = {path.stem for path in packs.glob("pack-*")}
    # --delta-base-offset: as `git repack` does.
    run(
        call,
        *("pack-objects", "-q", "--all", "--missing=allow-any", "--delta-base-offset", str(workshop / "pack")),
    )
    new = {path.stem for path in workshop.glob("*.pack")}
    for name in new:
        (packs / f"{name}.promisor").touch()
    for path in sorted(workshop.iterdir(), key=lambda path: path.suffix == ".idx"):
        path.rename(packs / path.name)
    workshop.rmdir()
    remove_packs(folder, old - new)


def pack_names(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "objects/pack").glob("*.pack")}


def remove_packs(folder: Path, names: set[str]) -> None:
    """Each without its index first, so that git never finds one that is half gone."""
    for name in names:
        files = (folder / "objects/pack").glob(f"{name}.*")
        for path in sorted(files, key=lambda path: path.suffix != ".idx"):
            path.unlink(missing_ok=True)
