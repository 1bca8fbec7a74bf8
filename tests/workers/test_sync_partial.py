"""The sync stage over http: GitRepos with narrow paths, and mirrors that have their files alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings as django_settings
from pytest_django import Settings

from repos import registration
from repos.models import Event, GitRepo, Mirror, Revision, SyncJob
from tests.core import MAIN, adopt_all, answered, fresh, later, register
from tests.git_servers import GitServer, Repository, Submodule, git_server
from workers import bundles
from workers.fetch import layout
from workers.sync import run_session

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("folders")]
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 5\n"


@pytest.fixture(autouse=True)
def over_http(settings: Settings) -> None:
    settings.GIT_ALLOW_HTTP = True


@pytest.fixture
def source(tmp_path: Path) -> Repository:
    source = Repository.make(tmp_path / "served" / "shop.git")
    source.git("config", "uploadpack.allowFilter", "true")
    source.git("config", "uploadpack.allowAnySHA1InWant", "true")
    source.commit({"deploy/app.yaml": "one", "other/big": "b" * 5000, "other/small": "s"})
    return source


@pytest.fixture
def server(tmp_path: Path, source: Repository) -> Iterator[GitServer]:
    with git_server(tmp_path / "served") as server:
        yield server


@pytest.fixture
def gitrepo(server: GitServer, source: Repository) -> GitRepo:
    return register(url=server.url(source), paths=["deploy"])


def work(gitrepo: GitRepo, source: Repository) -> Revision:
    """What the remote has now is seen, adopted and synced; the newest revision."""
    answered(fresh(gitrepo).remote, {MAIN: source.head()})
    adopt_all()
    SyncJob.objects.filter(due_at__isnull=False).update(**SyncJob.due_in(later(-1), 0))
    run_session(budget_seconds=30, stopping=lambda: False)
    return Revision.objects.filter(gitrepo=gitrepo).order_by("-number")[0]


def delivered(revision: Revision) -> dict[str, bytes]:
    """The files of its bundle."""
    assert revision.bundle is not None, revision.job.last_error
    with bundles.open_bundle(revision.bundle.sha256) as content:
        return {entry.path: stream.read() for entry, stream in content.entries() if stream}


def is_partial(gitrepo: GitRepo) -> bool:
    return layout.is_partial(django_settings.MIRROR_DIR / fresh(gitrepo).remote.identity)


def test_narrow_paths_get_a_partial_mirror_and_the_same_bundle(
    gitrepo: GitRepo, source: Repository, settings: Settings
) -> None:
    first = work(gitrepo, source)
    assert is_partial(gitrepo)
    assert delivered(first) == {"deploy/app.yaml": b"one"}
    source.commit({"deploy/app.yaml": "two"})
    second = work(gitrepo, source)
    assert delivered(second) == {"deploy/app.yaml": b"two"}
    assert Mirror.objects.get().size_bytes > 0

    settings.GIT_PARTIAL_CLONE = "off"
    registration.force(gitrepo.pk)
    third = work(gitrepo, source)
    assert not is_partial(gitrepo)
    assert third.pk != second.pk and third.bundle == second.bundle


def test_a_commit_elsewhere_fetches_no_file(gitrepo: GitRepo, source: Repository, server: GitServer) -> None:
    work(gitrepo, source)
    source.commit({"other/small": "t"})
    before = len(server.requests("git-upload-pack"))
    assert work(gitrepo, source).outcome == Revision.Outcome.UNCHANGED
    # One conversation: the protocol's greeting, and the commit with its folders.
    assert len(server.requests("git-upload-pack")) == before + 2


def test_one_mirror_serves_gitrepos_with_other_paths(gitrepo: GitRepo, source: Repository, server: GitServer) -> None:
    work(gitrepo, source)
    other = register("other", url=server.url(source), paths=["other/small"])
    everything = register("everything", url=server.url(source))
    assert delivered(work(other, source)) == {"other/small": b"s"}
    assert set(delivered(work(everything, source))) == {"deploy/app.yaml", "other/big", "other/small"}
    assert is_partial(gitrepo)
    source.commit({"deploy/app.yaml": "two"})
    assert delivered(work(everything, source))["deploy/app.yaml"] == b"two"
    assert delivered(work(gitrepo, source)) == {"deploy/app.yaml": b"two"}


def test_paths_are_edited_to_the_whole_repository(gitrepo: GitRepo, source: Repository) -> None:
    work(gitrepo, source)
    registration.edit(gitrepo.pk, {"paths": []})
    assert set(delivered(work(gitrepo, source))) == {"deploy/app.yaml", "other/big", "other/small"}


def test_a_server_that_gives_no_files_by_id_is_fetched_whole_in_the_same_job(
    gitrepo: GitRepo, source: Repository, server: GitServer
) -> None:
    server.protocol_v2 = False
    source.git("config", "uploadpack.allowAnySHA1InWant", "false")
    revision = work(gitrepo, source)
    assert (revision.job.state, revision.job.failures) == (SyncJob.State.SUCCEEDED, 0)
    assert delivered(revision) == {"deploy/app.yaml": b"one"}
    assert not is_partial(gitrepo)
    source.commit({"deploy/app.yaml": "two"})
    assert delivered(work(gitrepo, source)) == {"deploy/app.yaml": b"two"}


def test_a_server_without_filters(gitrepo: GitRepo, source: Repository) -> None:
    source.git("config", "uploadpack.allowFilter", "false")
    assert delivered(work(gitrepo, source)) == {"deploy/app.yaml": b"one"}
    assert not is_partial(gitrepo)


@pytest.mark.parametrize(
    ("files", "path"),
    [
        ({"deploy/model.bin": LFS}, "deploy/model.bin"),
        ({"deploy/lib": Submodule("1" * 40)}, "deploy/lib"),
    ],
    ids=["LFS", "submodule"],
)
def test_what_is_not_delivered_is_refused_with_its_path(
    files: dict[str, str | Submodule], path: str, gitrepo: GitRepo, source: Repository
) -> None:
    source.commit(files)
    job = work(gitrepo, source).job
    assert job.state == SyncJob.State.FAILED
    assert job.last_error.startswith(f"{path}: ")
    assert is_partial(gitrepo)
    assert Event.objects.filter(reason="SyncFailed", message__contains=path).exists()


def test_files_beyond_the_limit_name_it_and_leave_the_mirror_small(
    gitrepo: GitRepo, source: Repository, settings: Settings
) -> None:
    settings.BUNDLE_MAX_BYTES = 100_000
    source.commit({"deploy/big": "".join(f"{n:x}-{n * n * 7919:x}" for n in range(60_000))})
    job = work(gitrepo, source).job
    assert job.state == SyncJob.State.FAILED
    assert "100000" in job.last_error and "BUNDLE_MAX_BYTES" in job.last_error
    assert Mirror.objects.get().size_bytes < 20_000
