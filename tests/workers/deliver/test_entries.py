"""Which entries may become files at a target (security cases: symlinks, hostile names, archive entries)."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.deliver.targets import DEADLINE, MemoryBundle, RawBundle, leftovers, shown, target
from workers.content import LINK_MODE, Entry
from workers.deliver.drivers.base import Deadline, DriverError, Order
from workers.deliver.drivers.directory import DirectoryDriver
from workers.deliver.drivers.tree import unpack

FILE = b"evil"


def file(path: str, mode: int = 0o644) -> tuple[Entry, bytes]:
    return Entry(path, mode, len(FILE), ""), FILE


def link(path: str, to: str) -> tuple[Entry, bytes]:
    return Entry(path, LINK_MODE, 0, to), b""


REFUSED = {
    "absolute": [file("/etc/evil")],
    "parent": [file("../evil")],
    "parent in the middle": [file("a/../../evil")],
    "empty": [file("")],
    "empty part": [file("a//b")],
    "dot": [file("./a")],
    "trailing slash": [file("a/")],
    "NUL": [file("a\0b")],
    "lone surrogate": [file("a\ud800")],
    ".git": [file(".git/config")],
    ".GIT below": [file("a/.GIT/hooks/x")],
    "GIT~1": [file("GIT~1/config")],
    ".git with a dot": [file(".git./config")],
    "setuid": [file("a", 0o4755)],
    "device": [file("a", 0o060000)],
    "100 folders": [file("d/" * 100 + "a")],
    "twice": [file("a"), file("a")],
    "file below a file": [file("a"), file("a/b")],
    "file below a link": [link("a", "b"), file("a/evil")],
    "link over a folder": [file("a/b"), link("a", "c")],
    "name too long": [file("x" * 256)],
    "absolute link": [link("a", "/etc/passwd")],
    "empty link": [link("a", "")],
    "link with NUL": [link("a", "b\0c")],
    "link of 4096 bytes": [link("a", "x/" * 2048)],
    "link to a lone surrogate": [link("a", "\ud800")],
    "link out": [link("a", "../x")],
    "link out from below": [link("a/b/c", "../../../x")],
    "link out and in again": [link("a", "../releases/x")],
    "link out through a link": [file("x/y/f"), link("x/y/z", "../.."), link("l", "x/y/z/..")],
    "link out through a later link": [link("a", "b/.."), link("b", "c/.."), link("c", ".")],
    "link into .git": [link("a", ".git/config")],
    "link into a .git below": [link("a", "b/.Git")],
    "link to itself": [link("a", "a")],
    "links in a ring": [link("a", "b"), link("b", "c"), link("c", "a")],
    "more bytes than said": [(Entry("a", 0o644, 3, ""), FILE)],
    "fewer bytes than said": [(Entry("a", 0o644, 5, ""), FILE)],
}


@pytest.mark.parametrize("entries", REFUSED.values(), ids=REFUSED)
def test_it_refuses_an_evil_entry_and_keeps_what_was_there(tmp_path: Path, entries: list[tuple[Entry, bytes]]) -> None:
    driver, path = DirectoryDriver(), tmp_path / "in" / "target"
    good = MemoryBundle({"a": b"good"})
    driver.apply(target(path), good, Order(0, 1), deadline=DEADLINE)

    with pytest.raises(DriverError) as refusal:
        driver.apply(target(path), RawBundle(*entries), Order(0, 2), deadline=DEADLINE)

    assert refusal.value.cause in ("entry_refused", "bundle_unreadable", "disk")
    assert str(refusal.value).isascii() and "\n" not in str(refusal.value)
    assert shown(path) == good.content
    assert not leftovers(path)
    assert [item for item in tmp_path.rglob("*") if "evil" in item.name] == []
    assert driver.applied(target(path), deadline=DEADLINE).order == Order(0, 1)  # type: ignore[union-attr]


INTACT = {
    "newline": {"a\nb": b"1"},
    "escape": {"\x1b[31m": b"1"},
    "bidirectional": {"\u202egnp.exe": b"1"},
    "like an option": {"-rf": b"1", "--": b"2"},
    "cases": {"A": b"1", "a": b"2"},
    "not UTF-8": {"caf\udce9": b"1"},
    "long parts": {f"{'x' * 255}/{'y' * 255}": b"1"},
    "99 folders deep": {"d/" * 99 + "a": b"1"},
    "sorted apart": {"a-b": b"1", "a/b": b"2", "a.c": b"3", "a/d/e": b"4"},
    "links": {
        "a/f": b"1",
        "l": ("link", "a/./f"),
        "m": ("link", "./a//"),
        "a/up": ("link", "../l"),
        "gone": ("link", "x"),
    },
    "link through a link": {"a/b/f": b"1", "s": ("link", "a/b"), "t": ("link", "s/../b/f")},
    "executable": {"run": ("exec", "#!/bin/sh\n"), "empty": b""},
    "like git": {".gitignore": b"1", ".github/x": b"2", "git": b"3"},
    "large": {"big": bytes(range(256)) * 10_000},
}


@pytest.mark.parametrize("content", INTACT.values(), ids=INTACT)
def test_it_delivers_odd_names_intact(tmp_path: Path, content: dict[str, bytes | tuple[str, str]]) -> None:
    driver, bundle = DirectoryDriver(), MemoryBundle(content)

    driver.apply(target(tmp_path), bundle, Order(0, 1), deadline=DEADLINE)

    assert shown(tmp_path) == bundle.content
    assert driver.verify(target(tmp_path), bundle, deadline=DEADLINE)


PARTS = st.sampled_from(["a", "b", "c"])
LINKS = st.dictionaries(
    st.lists(PARTS, min_size=1, max_size=3).map("/".join),
    st.lists(st.one_of(PARTS, st.sampled_from(["..", "."])), min_size=1, max_size=5).map("/".join),
    min_size=1,
    max_size=5,
)


@given(LINKS)
@settings(max_examples=300, deadline=None)
def test_no_accepted_link_leads_the_kernel_out(links: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder).resolve() / "top"
        top.mkdir()
        fd = os.open(top, os.O_RDONLY)
        try:
            unpack(MemoryBundle({path: ("link", to) for path, to in links.items()}), fd, Deadline(DEADLINE))
        except DriverError:
            return
        finally:
            os.close(fd)
            assert [item.name for item in Path(folder).iterdir()] == ["top"]
        for path in links:
            assert (os.path.realpath(top / path) + "/").startswith(f"{top}/"), links
