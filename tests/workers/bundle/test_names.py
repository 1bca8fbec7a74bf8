import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.bundle.links import MAX_FOLLOWED, LinkFault, check_target, resolve
from workers.bundle.names import SHOWN_CHARACTERS, fault_of, is_dot_git, shown


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("a/b.yaml", "a/b.yaml"),
        (b"a\nb", "a\\nb"),
        ("a\x1b[31m", "a\\x1b[31m"),
        ("a\u202eb", "a\\u202eb"),
        (b"\xff", "\\xff"),
        ("é", "é"),
        ("x" * 500, "x" * (SHOWN_CHARACTERS - 1) + "…"),
    ],
    ids=ascii,
)
def test_a_path_is_shown_in_one_printable_line(path: bytes | str, text: str) -> None:
    assert shown(path) == text


@given(st.binary(max_size=300))
def test_whatever_it_is(path: bytes) -> None:
    assert shown(path).isprintable()
    assert len(shown(path)) <= SHOWN_CHARACTERS


@pytest.mark.parametrize(
    "name", [".git", ".GIT", ".gIt", "git~1", ".git.", ".git . .", ".git:x", ".g\u200cit", "\ufeff.git"]
)
def test_git_in_disguise(name: str) -> None:
    assert is_dot_git(name)


@pytest.mark.parametrize("name", [".gitignore", ".github", "git", "x.git", ".gitmodules", ".gi", "git~2", "..git"])
def test_not_git(name: str) -> None:
    assert not is_dot_git(name)


@given(st.binary(min_size=1, max_size=300))
def test_what_has_no_fault_is_a_name(name: bytes) -> None:
    if not fault_of(name):
        assert name.decode("utf-8") not in (".", "..") and b"/" not in name and len(name) <= 255


@given(
    st.dictionaries(
        st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join),
        st.lists(st.sampled_from(["a", "b", "c", "..", "."]), min_size=1, max_size=5).map("/".join),
        min_size=1,
        max_size=6,
    ),
    st.sets(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4).map("/".join), max_size=6),
)
def test_a_link_ends_inside_or_is_refused(links: dict[str, str], files: set[str]) -> None:
    everything = files | set(links)
    folders = {"/".join(path.split("/")[:n]) for path in everything for n in range(len(path.split("/")))}
    for link in links:
        try:
            end = resolve(link, links, everything, folders)
        except LinkFault:
            continue
        assert end in files | folders or end in everything
        assert ".." not in end.split("/")


def test_as_many_links_are_followed_as_a_kernel_does() -> None:
    links = {str(n): str(n + 1) for n in range(MAX_FOLLOWED)}
    files = {*links, str(MAX_FOLLOWED)}
    assert resolve("0", links, files, {""}) == str(MAX_FOLLOWED)
    with pytest.raises(LinkFault):
        resolve("first", {**links, "first": "0"}, files | {"first"}, {""})


@pytest.mark.parametrize("target", [b"", b"/x", b"a\0b", b"\xff", b"a\\b", b".git", b"x/.GIT/y", b"x" * 4097])
def test_targets_that_are_refused_as_such(target: bytes) -> None:
    with pytest.raises(LinkFault):
        check_target(target)
