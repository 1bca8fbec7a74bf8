"""Children: their end, their environment, their size. The commands are real git, with an alias where git must
be slow.
"""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.git_servers import GitServer, Repository
from tests.workers.fetch.conftest import Fetch
from tests.workers.fetch.processes import gone, open_files, processes_with, running
from workers.fetch.errors import GitError, GitMissing, GitTimeout, MirrorBusy, cleaner
from workers.fetch.git import GitCall, GitFailed, child, run
from workers.fetch.mirror import Mirror
from workers.git_environment import local_environment

PROJECT = Path(__file__).resolve().parents[3]
# A git that starts a grandchild, which hangs and holds all pipes.
HANG = {"alias.hang": "!sleep 1000"}

MakeCall = Callable[..., GitCall]


@pytest.fixture
def call_for(repository: Repository) -> MakeCall:
    def make(seconds: float = 20, config: dict[str, str] | None = None, **more: object) -> GitCall:
        env = local_environment(config)
        return GitCall(repository.folder, env, time.monotonic() + seconds, cleaner(), **more)  # type: ignore[arg-type]

    return make


def test_it_answers_the_output(call_for: MakeCall, repository: Repository) -> None:
    commit = repository.commit({"a": "x"})
    assert run(call_for(), "rev-parse", "refs/heads/main") == commit.encode() + b"\n"


def test_it_feeds_standard_input(call_for: MakeCall, repository: Repository) -> None:
    blob = repository.blob(b"hello")
    assert run(call_for(), "cat-file", "--batch", stdin=blob.encode() + b"\n") == f"{blob} blob 5\nhello\n".encode()


def test_a_failure_carries_status_and_words(call_for: MakeCall) -> None:
    with pytest.raises(GitFailed) as caught:
        run(call_for(), "rev-parse", "--verify", "refs/heads/none")
    assert caught.value.status == 128
    assert b"Needed a single revision" in caught.value.stderr


def test_the_deadline_kills_the_whole_group(call_for: MakeCall, repository: Repository) -> None:
    started = time.monotonic()
    with pytest.raises(GitTimeout) as caught:
        run(call_for(0.5, HANG), "hang")
    assert time.monotonic() - started < 5
    assert caught.value.cause == "timeout"
    assert processes_with(f"GIT_DIR={repository.folder}") == {}


def test_a_failing_caller_kills_it_too(call_for: MakeCall, repository: Repository) -> None:
    with pytest.raises(RuntimeError), child(call_for(20, HANG), "hang"):
        assert running(f"GIT_DIR={repository.folder}", "sleep")
        raise RuntimeError
    assert processes_with(f"GIT_DIR={repository.folder}") == {}


def test_a_git_that_does_not_read_its_input_is_left_at_the_deadline(call_for: MakeCall, repository: Repository) -> None:
    with pytest.raises(GitTimeout):
        run(call_for(0.5, HANG), "hang", stdin=bytes(1_000_000))
    assert processes_with(f"GIT_DIR={repository.folder}") == {}


def test_a_git_that_ends_without_reading_says_why(call_for: MakeCall) -> None:
    with pytest.raises(GitFailed) as caught:
        run(call_for(), "rev-parse", "--verify", "refs/heads/none", stdin=bytes(1_000_000))
    assert caught.value.status == 128


def zombies() -> list[int]:
    """Children of this process that have ended and that nobody has waited for."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in children if Path(f"/proc/{pid}/stat").read_text().rsplit(") ")[1].startswith("Z")]


def test_no_zombie_is_left(call_for: MakeCall) -> None:
    run(call_for(), "version")
    with pytest.raises(GitTimeout):
        run(call_for(0.2, HANG), "hang")
    assert zombies() == []


def test_output_is_bounded(call_for: MakeCall, repository: Repository) -> None:
    blob = repository.blob(bytes(5_000_000))
    with pytest.raises(GitError, match="more than 1000 bytes"):
        run(call_for(), "cat-file", "blob", blob, max_output_bytes=1000)


def test_endless_complaints_are_bounded(call_for: MakeCall) -> None:
    with pytest.raises(GitFailed) as caught:
        run(call_for(20, {"alias.noise": "!head -c 3000000 /dev/zero | tr '\\0' x >&2; exit 1"}), "noise")
    assert len(caught.value.stderr) <= 64 * 1024
    assert len(caught.value.error.detail) < 1000


def test_watch_may_stop_it(call_for: MakeCall, repository: Repository) -> None:
    def watch() -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError):
        run(call_for(20, HANG), "hang", watch=watch)
    assert processes_with(f"GIT_DIR={repository.folder}") == {}


def test_a_file_beyond_the_limit_ends_it(call_for: MakeCall, tmp_path: Path) -> None:
    target = tmp_path / "big"
    config = {"alias.big": f"!head -c 3000000 /dev/zero > {target}"}
    with pytest.raises(GitFailed):
        run(call_for(20, config, max_file_bytes=1_000_000), "big")
    assert target.stat().st_size <= 1_000_448


def test_nothing_of_our_environment_goes_in(call_for: MakeCall, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_TRACE", "GIT_SSH", "GIT_EXTERNAL_DIFF", "SECRET_KEY", "ODD-name.x", "PYTHONPATH"):
        monkeypatch.setenv(name, "canary")
    seen = run(call_for(20, {"alias.surroundings": "!env"}), "surroundings").decode()
    assert "canary" not in seen
    assert "GIT_CONFIG_NOSYSTEM=1" in seen


def test_no_value_of_our_environment_shows_in_the_process_list(
    call_for: MakeCall, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_KEY", "canary")
    with child(call_for(20, HANG), "hang"):
        lines = " ".join(running(f"GIT_DIR={repository.folder}", "sleep").values())
    assert lines and "canary" not in lines


def test_without_git_it_says_so(call_for: MakeCall, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GitMissing, match="Install git"):
        run(call_for(), "version")


def test_without_git_but_with_a_shell_it_says_so(
    call_for: MakeCall, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("env", "setpriv", "sh"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises((GitMissing, GitFailed)) as caught:
        run(call_for(), "version")
    error = caught.value.error if isinstance(caught.value, GitFailed) else caught.value
    assert isinstance(error, GitMissing)


def test_threads_may_run_several_at_once(call_for: MakeCall, repository: Repository) -> None:
    commit = repository.commit({"a": "x"}).encode() + b"\n"
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(run(call_for(), "rev-parse", "refs/heads/main"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [commit] * 8


def wait_until_free(mirror: Mirror) -> None:
    """A dying process loses its environment, by which it is found here, an instant before its descriptors."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        with suppress(MirrorBusy), mirror.shared():
            return
        time.sleep(0.02)
    raise AssertionError("the lock is still held")


class TestKilledWorker:
    """A worker that is SIGKILLed in the middle of a fetch leaves neither process, nor lock, nor temporary
    pack.
    """

    SCRIPT = """
        import sys
        from pathlib import Path
        from workers.fetch.mirror import Mirror
        from workers.git_environment import RemoteAccess

        folder, url, commit, run_folder = sys.argv[1:]
        access = RemoteAccess(url, "token", "", "canary-token")
        Mirror(Path(folder)).fetch(access, commit, "1", deadline_seconds=100, run_folder=Path(run_folder))
    """

    @pytest.mark.parametrize("moment", ["before the answer", "inside of the pack"])
    def test_everything_ends(
        self,
        moment: str,
        repository: Repository,
        server: GitServer,
        mirror: Mirror,
        run_folder: Path,
        fetch: Fetch,
    ) -> None:
        commit = repository.commit({str(n): os.urandom(20_000) for n in range(20)})
        if moment == "before the answer":
            server.behaviour.hang_before = True
        else:
            server.behaviour.hang_after_bytes = 100_000
        worker = subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(self.SCRIPT),
                str(mirror.folder),
                server.url(repository),
                commit,
                str(run_folder),
            ],
            cwd=PROJECT,
        )
        variable = f"GIT_DIR={mirror.folder}"
        try:
            server.wait_for_request("shop.git")
            if moment == "inside of the pack":
                end = time.monotonic() + 20
                while not list(mirror.folder.glob("objects/pack/tmp_pack_*")) and time.monotonic() < end:
                    time.sleep(0.01)
                assert list(mirror.folder.glob("objects/pack/tmp_pack_*"))
            found = running(variable, "remote-http")
            assert "canary-token" not in " ".join(found.values())
            # If one of them outlived the worker, the mirror would still be locked.
            assert all(mirror.lock_file in open_files(pid) for pid, line in found.items() if "remote-http" in line)
            with pytest.raises(GitError) as busy:
                fetch(server.url(repository), commit)
            assert busy.value.cause == "busy"
        finally:
            worker.send_signal(signal.SIGKILL)
            worker.wait()

        assert gone(variable)
        server.behaviour.hang_before, server.behaviour.hang_after_bytes = False, None
        wait_until_free(mirror)
        fetch(server.url(repository), commit)
        assert list(mirror.folder.glob("objects/pack/tmp_*")) == []
        assert mirror.refs() == {"1": commit}

    READER = """
        import sys, time
        from pathlib import Path
        from workers.fetch.mirror import Mirror

        folder, commit, big = sys.argv[1:]
        with Mirror(Path(folder)).reader(deadline_seconds=100) as reader:
            reader.root_tree(commit)
            if big:
                # Begun, and left while git waits for somebody to read the rest.
                blobs = reader.blobs([big])
                next(blobs).read(1)
            print("reading", flush=True)
            time.sleep(100)
    """

    @pytest.mark.parametrize("busy", [False, True], ids=["between two questions", "inside of an answer"])
    def test_what_it_reads_with_ends_too(
        self, busy: bool, repository: Repository, mirror: Mirror, fetch: Fetch
    ) -> None:
        """Nobody watches over that one: it ends because nobody is left to ask it."""
        commit = repository.commit({"big": os.urandom(5_000_000)})
        fetch(repository.file_url, commit)
        big = repository.git("rev-parse", f"{commit}:big").strip() if busy else ""
        worker = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(self.READER), str(mirror.folder), commit, big],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
        )
        variable = f"GIT_DIR={mirror.folder}"
        try:
            assert worker.stdout is not None and worker.stdout.readline() == b"reading\n"
            assert running(variable, "cat-file")
        finally:
            worker.send_signal(signal.SIGKILL)
            worker.communicate()

        assert gone(variable)
        wait_until_free(mirror)
