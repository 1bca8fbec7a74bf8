"""`manage.py import_gitrepos`: all or nothing, and again and again."""

import io
import sys
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from repos import registration
from repos.models import GitRepo
from tests.repos.history import a_gitrepo
from tests.repos.refusals import everything

pytestmark = pytest.mark.django_db
MANIFEST = """---
apiVersion: fleet.cattle.io/v1alpha1
kind: GitRepo
metadata: {{name: {name}}}
spec:
  repo: https://git.example.com/team/{name}.git
  paths: [deploy]
"""


def write(folder: Path, *names: str, more: str = "") -> str:
    path = folder / f"{'-'.join(names)}.yaml"
    path.write_text("".join(MANIFEST.format(name=name) for name in names) + more)
    return str(path)


def run(*arguments: str) -> list[str]:
    out = io.StringIO()
    call_command("import_gitrepos", *arguments, stdout=out)
    return out.getvalue().splitlines()


def test_new_ones_are_registered_and_known_ones_edited(tmp_path: Path) -> None:
    a_gitrepo("pay", branch="old", keep_resources=True)
    files = [write(tmp_path, "shop", "pay"), write(tmp_path, "web")]
    assert run(*files) == [
        "shop: registered",
        "pay: edited (branch, keep_resources, paths)",
        "web: registered",
    ]
    pay = GitRepo.objects.get(name="pay")
    assert (pay.branch, pay.paths, pay.keep_resources, pay.generation) == ("", ["deploy"], False, 2)
    assert GitRepo.objects.count() == 3
    before = everything()
    assert run(*files) == ["shop: unchanged", "pay: unchanged", "web: unchanged"]
    assert everything() == before


def test_a_forced_sync_since_then_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path, "shop", more="  forceSyncGeneration: 2\n")
    run(path)
    registration.force(GitRepo.objects.get().pk)
    assert run(path) == ["shop: unchanged"]
    assert GitRepo.objects.get().force_sync_generation == 3


def test_a_dry_run_does_nothing(tmp_path: Path) -> None:
    a_gitrepo("pay")
    before = everything()
    assert run("--dry-run", write(tmp_path, "shop", "pay")) == [
        "shop: registered (dry run)",
        "pay: edited (paths) (dry run)",
    ]
    assert everything() == before


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(write(tmp_path, "shop")).open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert run("-") == ["shop: registered"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("  helmSecretName: x\n", "spec.helmSecretName"),
        ("  clientSecretName: no-such\n", "credential"),
        ("  branch: a..b\n", "spec.branch"),
        ("---\n- not a manifest\n", "document"),
        ("---\nx: [", "YAML"),
        (MANIFEST.format(name="shop"), "same name"),
    ],
)
def test_one_that_is_refused_refuses_all(tmp_path: Path, more: str, said: str) -> None:
    good, bad = write(tmp_path, "web"), write(tmp_path, "shop", more=more)
    before = everything()
    with pytest.raises(CommandError) as raised:
        run(good, bad)
    message = str(raised.value)
    assert said in message
    assert bad in message
    assert message.endswith("Nothing was changed.")
    assert everything() == before


def test_the_same_name_in_two_files(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(CommandError, match="as well"):
        run(write(tmp_path, "shop"), write(tmp_path / "other", "shop"))
    assert not GitRepo.objects.exists()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="No such file"):
        run(write(tmp_path, "shop"), str(tmp_path / "no-such.yaml"))
    assert not GitRepo.objects.exists()
