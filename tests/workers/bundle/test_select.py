import time
from collections.abc import Callable

import pytest

from tests.git_servers import Content, Link, Repository, Script, Submodule
from workers.bundle.errors import ContentRefused, LimitExceeded, NoMatch
from workers.bundle.select import Limits, TreeEntry, selection_key
from workers.fetch.reader import GitObjectReader

Listed = Callable[..., list[TreeEntry]]

FILES: dict[str, Content] = {
    "README.md": "r",
    "deploy/app.yaml": "a",
    "deploy/base/x.yaml": "x",
    "charts/one/Chart.yaml": "1",
    "charts/two/Chart.yaml": "2",
    "charts/notes.txt": "n",
    "apps/a/prod/p.yaml": "p",
    "apps/a/test/t.yaml": "t",
    "apps/b/deep/er/prod/p.yaml": "p",
    "apps/prod/p.yaml": "p",
    ".hidden/h": "h",
    "a.b/c": "c",
    "a/c": "c",
}


def key(reader: GitObjectReader, commit: str, *paths: str) -> str:
    return selection_key(reader, commit, paths).key


@pytest.fixture
def commit(repository: Repository) -> str:
    return repository.commit(FILES)


class TestPaths:
    @pytest.mark.parametrize(
        ("paths", "expected"),
        [
            ([], sorted(FILES, key=str.encode)),
            (["."], sorted(FILES, key=str.encode)),
            (["./"], sorted(FILES, key=str.encode)),
            (["**"], sorted(FILES, key=str.encode)),
            (["*"], sorted(FILES, key=str.encode)),
            (["deploy"], ["deploy/app.yaml", "deploy/base/x.yaml"]),
            (["./deploy/"], ["deploy/app.yaml", "deploy/base/x.yaml"]),
            (["deploy/**"], ["deploy/app.yaml", "deploy/base/x.yaml"]),
            (["deploy/base", "deploy"], ["deploy/app.yaml", "deploy/base/x.yaml"]),
            (["README.md"], ["README.md"]),
            (["charts/*"], ["charts/notes.txt", "charts/one/Chart.yaml", "charts/two/Chart.yaml"]),
            (["charts/o*"], ["charts/one/Chart.yaml"]),
            (["charts/[!o]*/"], ["charts/notes.txt", "charts/two/Chart.yaml"]),
            (["charts/[^o]*"], ["charts/notes.txt", "charts/two/Chart.yaml"]),
            (["charts/t?o"], ["charts/two/Chart.yaml"]),
            (["apps/**/prod"], ["apps/a/prod/p.yaml", "apps/b/deep/er/prod/p.yaml", "apps/prod/p.yaml"]),
            (["apps/*/prod"], ["apps/a/prod/p.yaml"]),
            (["**/er"], ["apps/b/deep/er/prod/p.yaml"]),
            (["**/Chart.yaml"], ["charts/one/Chart.yaml", "charts/two/Chart.yaml"]),
            (["**/**/Chart.yaml"], ["charts/one/Chart.yaml", "charts/two/Chart.yaml"]),
            (["a"], ["a/c"]),
            (["a", "a.b"], ["a.b/c", "a/c"]),
            ([".h*"], [".hidden/h"]),
        ],
        ids=str,
    )
    def test_they_select(self, paths: list[str], expected: list[str], commit: str, listed: Listed) -> None:
        assert [entry.path for entry in listed(commit, paths)] == expected

    @pytest.mark.parametrize(
        "path",
        [
            "none",
            "deploy/none",
            "README.md/x",
            "Deploy",
            "*.none",
            "**/none",
            "charts/?",
            ".git",
            "a/../deploy",
        ],
    )
    def test_a_path_that_matches_nothing_is_named(self, path: str, commit: str, reader: GitObjectReader) -> None:
        with pytest.raises(NoMatch) as caught:
            selection_key(reader, commit, ["deploy", path])
        assert path in str(caught.value)

    def test_an_empty_commit_selects_nothing(self, repository: Repository, listed: Listed) -> None:
        commit = repository.commit_tree(repository.raw_tree())
        with pytest.raises(NoMatch):
            listed(commit)

    def test_a_pattern_made_to_backtrack_ends(self, repository: Repository, reader: GitObjectReader) -> None:
        commit = repository.commit({"a" * 250: "x"})
        started = time.monotonic()
        with pytest.raises(NoMatch):
            selection_key(reader, commit, ["*a" * 100 + "b", "/".join(["**"] * 50 + ["b"])])
        assert time.monotonic() - started < 2


class TestKey:
    def test_it_stays_when_other_folders_change(
        self, repository: Repository, reader: GitObjectReader, commit: str
    ) -> None:
        later = repository.commit({"README.md": "other", "apps/a/prod/p.yaml": "other", "new": "n"})
        assert key(reader, commit, "deploy") == key(reader, later, "deploy")
        assert key(reader, commit, "charts/*") == key(reader, later, "charts/*")
        assert key(reader, commit, "apps/**/test") == key(reader, later, "apps/**/test")
        assert key(reader, commit) != key(reader, later)
        assert key(reader, commit, "apps/**/prod") != key(reader, later, "apps/**/prod")

    def test_it_returns_with_the_content(self, repository: Repository, reader: GitObjectReader, commit: str) -> None:
        changed = repository.commit({"deploy/app.yaml": "b"})
        back = repository.commit({"deploy/app.yaml": "a"})
        assert key(reader, commit, "deploy") == key(reader, back, "deploy") != key(reader, changed, "deploy")

    def test_the_order_of_paths_and_doubles_do_not_matter(self, reader: GitObjectReader, commit: str) -> None:
        assert key(reader, commit, "deploy", "a") == key(reader, commit, "a", "./deploy/", "deploy/base", "deploy")

    def test_a_mode_matters(self, repository: Repository, reader: GitObjectReader) -> None:
        plain = repository.commit({"run": "x"})
        script = repository.commit({"run": Script(b"x")})
        assert key(reader, plain, "run") != key(reader, script, "run")

    def test_a_name_matters(self, repository: Repository, reader: GitObjectReader) -> None:
        one = repository.commit({"one/f": "x"})
        two = repository.commit({"one/f": None, "two/f": "x"})
        assert key(reader, one, "*") != key(reader, two, "*")

    def test_it_reads_only_the_trees_on_the_way(self, commit: str, reader: GitObjectReader) -> None:
        read: list[str] = []
        tree = reader.tree

        def counting(tree_id: str) -> object:
            read.append(tree_id)
            return tree(tree_id)

        reader.tree = counting  # type: ignore[assignment,method-assign]
        selection_key(reader, commit, ["deploy", "apps/a/prod", "apps/b"])
        assert len(read) == 3  # the root, apps and apps/a


class TestEntries:
    def test_modes_sizes_and_links(self, repository: Repository, listed: Listed) -> None:
        commit = repository.commit({"d/run": Script(b"#!"), "d/f": "four", "l": Link("d/f")})
        found = [(e.path, e.mode, e.size, e.link_target) for e in listed(commit)]
        assert found == [("d/f", 0o644, 4, ""), ("d/run", 0o755, 2, ""), ("l", 0o120000, 0, "d/f")]

    @pytest.mark.parametrize(
        "name",
        [
            "a\nb",
            "a\x1b[31mb",
            "a\u202eb",
            "-rf",
            "--output=x",
            "a b",
            "$(x)",
            "é",
            "\u65e5\u672c",
            "a\\b",
            "x" * 255,
            ".gitignore",
            ".github",
            "git",
            "...",
        ],
        ids=ascii,
    )
    def test_odd_names_are_kept(self, name: str, repository: Repository, listed: Listed) -> None:
        tree = repository.raw_tree(("100644", name.encode(), repository.blob(b"x")))
        assert [entry.path for entry in listed(repository.commit_tree(tree))] == [name]

    def test_names_that_differ_in_case_are_both_kept(self, repository: Repository, listed: Listed) -> None:
        commit = repository.commit({"App": "1", "app": "2", "APP": "3"})
        assert [entry.path for entry in listed(commit)] == ["APP", "App", "app"]

    @pytest.mark.parametrize(
        "name",
        [
            b"..", b".", b"", b".git", b".GIT", b".Git", b"git~1", b"GIT~1", b".git.", b".git ",
            b".git::$INDEX_ALLOCATION", ".g\u200cit".encode(), b"a/b", b"../x", b"\xff\xfe", b"x" * 256,
        ],
        ids=ascii,
    )  # fmt: skip
    @pytest.mark.parametrize("kind", ["file", "folder"])
    def test_evil_names_are_refused(self, name: bytes, kind: str, repository: Repository, listed: Listed) -> None:
        blob = repository.blob(b"x")
        below = repository.raw_tree(("100644", b"config", blob))
        item = ("100644", name, blob) if kind == "file" else ("40000", name, below)
        commit = repository.commit_tree(repository.raw_tree(("40000", b"deploy", repository.raw_tree(item))))
        for paths in ([], ["deploy"], ["deploy/*"], ["**/config", "deploy"]):
            with pytest.raises(ContentRefused) as caught:
                listed(commit, paths)
            assert caught.value.cause == "name"
            assert str(caught.value).isprintable()

    def test_a_path_of_four_kilobytes_is_refused(self, repository: Repository, listed: Listed) -> None:
        tree = repository.raw_tree(("100644", b"f", repository.blob(b"x")))
        for _ in range(30):
            tree = repository.raw_tree(("40000", b"d" * 200, tree))
        with pytest.raises(ContentRefused, match="longer than 4096 bytes"):
            listed(repository.commit_tree(tree))

    @pytest.mark.parametrize(
        "kinds", [("100644", "100644"), ("100644", "40000"), ("120000", "40000"), ("40000", "40000")]
    )
    def test_a_name_twice_is_refused(self, kinds: tuple[str, str], repository: Repository, listed: Listed) -> None:
        blob = repository.blob(b"x")
        ids = {"100644": blob, "120000": blob, "40000": repository.raw_tree(("100644", b"f", blob))}
        tree = repository.raw_tree(*((kind, b"a", ids[kind]) for kind in kinds))
        for paths in ([], ["a"], ["*"], ["a/f"]):
            with pytest.raises(ContentRefused) as caught:
                listed(repository.commit_tree(tree), paths)
            assert caught.value.cause == "duplicate"

    def test_an_unknown_mode_is_refused(self, repository: Repository, listed: Listed) -> None:
        commit = repository.commit_tree(repository.raw_tree(("104755", b"suid", repository.blob(b"x"))))
        with pytest.raises(ContentRefused, match="104755"):
            listed(commit)

    @pytest.mark.parametrize("paths", [[], ["vendor"], ["vendor/lib"], ["vendor/*"], ["vendor/lib/deep"]])
    def test_a_submodule_is_refused_by_name(self, paths: list[str], repository: Repository, listed: Listed) -> None:
        commit = repository.commit({"deploy/x": "x", "vendor/lib": Submodule("1" * 40)})
        with pytest.raises(ContentRefused, match="vendor/lib: a submodule") as caught:
            listed(commit, paths)
        assert caught.value.cause == "submodule"
        assert listed(commit, ["deploy"])


class TestLinks:
    @pytest.mark.parametrize(
        ("where", "target"),
        [
            ("d/l", "/etc/passwd"),
            ("d/l", "../../etc/passwd"),
            ("l", "../shop/deploy/f"),
            ("d/l", "l"),
            ("d/l", "m"),
            ("d/l", "../.git/config"),
            ("l", ".GIT"),
            ("d/l", "none"),
            ("d/l", "f/x"),
            ("d/l", "."),
            ("d/l", ".."),
            ("d/l", "../d"),
            ("d/l", "a\\..\\b"),
            ("d/l", ""),
            ("d/l", "//etc"),
            ("d/l", "x" * 5000),
        ],
        ids=lambda text: text[:20],
    )
    def test_bad_ones_are_refused_by_their_own_name_only(
        self, where: str, target: str, repository: Repository, listed: Listed
    ) -> None:
        commit = repository.commit({"d/f": "x", "d/m": Link("l"), where: Link(target)})
        if target != "m":
            commit = repository.commit({"d/m": None})
        with pytest.raises(ContentRefused, match="symlink leaves the repository") as caught:
            listed(commit)
        assert caught.value.cause == "symlink"
        assert caught.value.path in ("l", "d/l", "d/m")
        assert len(target) < 5 or target not in str(caught.value)

    @pytest.mark.parametrize(
        ("where", "target"),
        [
            ("d/l", "f"),
            ("d/l", "./e/../f"),
            ("d/l", "e"),
            ("l", "d/e/"),
            ("d/e/l", "../f"),
            ("d/l", "s/g"),
            ("d/l", "s"),
        ],
    )
    def test_good_ones_are_kept(self, where: str, target: str, repository: Repository, listed: Listed) -> None:
        commit = repository.commit({"d/f": "x", "d/e/g": "y", "d/s": Link("e"), where: Link(target)})
        assert (where, target) in [(entry.path, entry.link_target) for entry in listed(commit)]

    def test_a_target_outside_of_the_selection_is_refused(self, repository: Repository, listed: Listed) -> None:
        commit = repository.commit({"deploy/l": Link("../base/f"), "base/f": "x"})
        with pytest.raises(ContentRefused, match="not among the selected paths"):
            listed(commit, ["deploy"])
        assert len(listed(commit, ["deploy", "base"])) == 2

    def test_a_link_in_the_middle_of_a_path_is_refused(self, repository: Repository, listed: Listed) -> None:
        commit = repository.commit({"real/sub/f": "x", "alias": Link("real")})
        with pytest.raises(ContentRefused, match="alias: symlink leaves the repository: it stands in the middle"):
            listed(commit, ["alias/sub"])

    def test_a_long_chain_of_links_ends(self, repository: Repository, listed: Listed) -> None:
        links: dict[str, Content] = {f"l{n}": Link(f"l{n + 1}") for n in range(60)}
        with pytest.raises(ContentRefused, match="loops"):
            listed(repository.commit({**links, "l60": "x"}))


class TestLimits:
    def test_files(self, repository: Repository, listed: Listed) -> None:
        commit = repository.commit({f"d/{n}": "x" for n in range(11)})
        assert len(listed(commit, [], Limits(max_files=11))) == 11
        with pytest.raises(LimitExceeded, match="BUNDLE_MAX_FILES") as caught:
            listed(commit, [], Limits(max_files=10))
        assert caught.value.setting == "BUNDLE_MAX_FILES"

    def test_bytes(self, repository: Repository, listed: Listed) -> None:
        commit = repository.commit({"a": b"x" * 60, "b": b"x" * 41})
        assert listed(commit, [], Limits(max_bytes=101))
        with pytest.raises(LimitExceeded) as caught:
            listed(commit, [], Limits(max_bytes=100))
        assert caught.value.setting == "BUNDLE_MAX_BYTES"

    def test_one_file(self, repository: Repository, listed: Listed) -> None:
        commit = repository.commit({"a": b"x" * 60, "big": b"x" * 101})
        with pytest.raises(LimitExceeded, match="big: its 101 bytes") as caught:
            listed(commit, [], Limits(max_file_bytes=100))
        assert caught.value.setting == "BUNDLE_MAX_FILE_BYTES"

    @pytest.mark.parametrize("path", [".", "**/none", "*/*/*/*/*/*/*/none"])
    def test_a_bomb_of_trees_ends_soon(self, path: str, repository: Repository, listed: Listed) -> None:
        tree = repository.raw_tree(*(("100644", b"f%d" % n, repository.blob(b"x")) for n in range(10)))
        for _ in range(9):
            tree = repository.raw_tree(*(("40000", b"d%d" % n, tree) for n in range(10)))
        started = time.monotonic()
        with pytest.raises(LimitExceeded):
            listed(repository.commit_tree(tree), [path])
        assert time.monotonic() - started < 20

    def test_many_files_take_little_time(self, repository: Repository, listed: Listed) -> None:
        commit = repository.commit({f"d{n % 100}/f{n}": str(n) for n in range(20_000)})
        started = time.monotonic()
        assert len(listed(commit)) == 20_000
        assert time.monotonic() - started < 5
