"""What is no mirror, and what is no repository that one would want to have."""

import os
import shutil

import pytest

from tests.git_servers import GitServer, Repository, git
from tests.workers.fetch.conftest import Fetch, names_below
from workers.fetch.errors import BadObjects, GitError
from workers.fetch.mirror import Mirror


class TestDamage:
    """A damaged mirror is made anew within the same call, and once only."""

    @pytest.fixture
    def commits(self, repository: Repository, fetch: Fetch) -> tuple[str, str]:
        """One commit that is in the mirror, and one that is not yet."""
        first = repository.commit({f"f/{n}": os.urandom(2000) for n in range(50)})
        fetch(repository.file_url, first)
        return first, repository.commit({"f/3": "changed"})

    def damage(self, mirror: Mirror, how: str) -> None:  # noqa: C901  # a table
        pack = next(mirror.folder.glob("objects/pack/*.pack"))
        pack.chmod(0o644)
        match how:
            case "no HEAD":
                (mirror.folder / "HEAD").unlink()
            case "HEAD is noise":
                (mirror.folder / "HEAD").write_bytes(os.urandom(100))
            case "config is noise":
                (mirror.folder / "config").write_bytes(b"[core\xff")
            case "a pack is missing":
                pack.unlink()
                pack.with_suffix(".idx").unlink()
            case "a pack is cut off":
                os.truncate(pack, pack.stat().st_size // 2)
            case "an index is noise":
                index = pack.with_suffix(".idx")
                index.chmod(0o644)
                index.write_bytes(os.urandom(1000))
            case "a pack is zeros":
                pack.write_bytes(bytes(pack.stat().st_size))
            case "the ref names nothing":
                (mirror.folder / "refs/fleetsync/1").write_text("2" * 40 + "\n")
            case "the ref is noise":
                (mirror.folder / "refs/fleetsync/1").write_bytes(os.urandom(50))
            case "shallow is noise":
                (mirror.folder / "shallow").write_bytes(os.urandom(50))
            case "no objects":
                shutil.rmtree(mirror.folder / "objects")
            case "a file in its place":
                shutil.rmtree(mirror.folder)
                mirror.folder.write_text("what")

    @pytest.mark.parametrize("which", ["the same commit", "a new commit"])
    @pytest.mark.parametrize(
        "how",
        [
            "no HEAD",
            "HEAD is noise",
            "config is noise",
            "a pack is missing",
            "a pack is cut off",
            "an index is noise",
            "a pack is zeros",
            "the ref names nothing",
            "the ref is noise",
            "shallow is noise",
            "no objects",
            "a file in its place",
        ],
    )
    def test_it_heals(
        self,
        how: str,
        which: str,
        commits: tuple[str, str],
        repository: Repository,
        mirror: Mirror,
        fetch: Fetch,
    ) -> None:
        commit = commits[0] if which == "the same commit" else commits[1]
        self.damage(mirror, how)

        fetch(repository.file_url, commit)

        assert mirror.refs() == {"1": commit}
        fsck = git("fsck", "--no-progress", folder=mirror.folder)
        assert "missing" not in fsck and "corrupt" not in fsck
        assert [p.name for p in mirror.folder.parent.iterdir() if p.name not in ("1", "1.lock")] == []

    def test_a_remote_that_is_damaged_itself_is_told_from_a_damaged_mirror(
        self, repository: Repository, server: GitServer, mirror: Mirror, fetch: Fetch
    ) -> None:
        commit = repository.commit({str(n): os.urandom(3000) for n in range(50)})
        repository.git("repack", "-q", "-a", "-d")
        (pack,) = repository.folder.glob("objects/pack/*.pack")
        pack.chmod(0o644)
        good = pack.read_bytes()
        middle = len(good) // 2
        pack.write_bytes(good[:middle] + bytes(1000) + good[middle + 1000 :])

        with pytest.raises(GitError) as caught:
            fetch(server.url(repository), commit)
        assert not caught.value.local
        assert names_below(mirror.folder, "tmp_*", "*.lock") == []


class TestHostileObjects:
    """git's own checks run on what is fetched (fetch.fsckObjects)."""

    @pytest.mark.parametrize(
        "items",
        [
            [("100644", b"..", "B")],
            [("100644", b".git", "B")],
            [("100644", b".GIT", "B")],
            [("100644", b"a", "B"), ("100644", b"a", "B")],
            [("100644", b"a/b", "B")],
            [("40000", b".git", "T")],
        ],
        ids=["dot-dot", "dot-git", "dot-git upper case", "twice", "slash", "folder dot-git"],
    )
    def test_they_are_refused(
        self, items: list[tuple[str, bytes, str]], repository: Repository, mirror: Mirror, fetch: Fetch
    ) -> None:
        blob = repository.blob(b"x")
        ids = {"B": blob, "T": repository.raw_tree(("100644", b"config", blob))}
        tree = repository.raw_tree(*((mode, name, ids[which]) for mode, name, which in items))
        commit = repository.commit_tree(tree)

        with pytest.raises(BadObjects):
            fetch(repository.file_url, commit)

        assert mirror.refs() == {}
        assert names_below(mirror.folder, "tmp_*", "*.pack") == []

    def test_old_slips_of_the_pen_are_let_through(self, repository: Repository, mirror: Mirror, fetch: Fetch) -> None:
        tree = repository.raw_tree(("0100644", b"a", repository.blob(b"x")))
        text = f"tree {tree}\nauthor A <a@b.c> 1 +051800\ncommitter A <a@b.c> 1 +0000\n\nold\n"
        commit = repository.git("hash-object", "-t", "commit", "-w", "--stdin", "--literally", stdin=text.encode())
        repository.git("update-ref", "refs/heads/main", commit)

        fetch(repository.file_url, commit)

        assert mirror.refs() == {"1": commit}
