"""rotate_keys: every secret under the newest key, nothing else touched, and what can't be read is named."""

import io
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.management import CommandError, call_command
from pytest_django import Settings

from repos import rotation
from repos.models import Cluster, Credential, Remote, SyncJob
from repos.rotation import Rotation, encrypted_columns, is_under, rotate
from tests.core import A, cluster, fresh, observed, register

pytestmark = pytest.mark.django_db
OLD, NEW, OTHER = (Fernet.generate_key().decode() for _ in range(3))
CANARY = "c4n4ry-t0k3n"


def credential(name: str = "team", secret: str = CANARY) -> Credential:
    return Credential.objects.create(name=name, kind="token", secret=secret)


def stored(row: Any, column: str = "secret") -> bytes:
    found: bytes = getattr(fresh(row), column).stored.encode()
    return found


@pytest.fixture(autouse=True)
def keys(settings: Settings) -> None:
    settings.ENCRYPTION_KEYS = [OLD]


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    try:
        call_command("rotate_keys", *arguments, stdout=out, stderr=err)
    except CommandError as error:
        return error.returncode, out.getvalue(), err.getvalue() + str(error)
    return 0, out.getvalue(), err.getvalue()


def test_every_encrypted_column_is_known() -> None:
    assert {(model, name) for model, name in encrypted_columns()} == {(Credential, "secret"), (Cluster, "secrets")}


def test_all_secrets_come_under_the_newest_key(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "BATCH", 2)
    rows = [credential(f"c{number}") for number in range(5)]
    target = Cluster.objects.create(name="prod-eu", settings={"path": "/srv/x"}, secrets='{"token": "x"}')
    cluster("without-secrets")
    Credential.objects.create(name="empty", kind="token", secret="")
    settings.ENCRYPTION_KEYS = [NEW, OLD]

    assert run("--check")[:2] == (1, "6 of 6 secrets need an older key\n")
    status, out, err = run()

    assert (status, out.splitlines()[0]) == (0, "6 of 6 secrets encrypted anew")
    assert "Credential.secret: 3 looked at" in err and CANARY not in out + err
    assert all(is_under(NEW, stored(row)) for row in rows) and is_under(NEW, stored(target, "secrets"))
    assert run("--check")[0] == 0
    settings.ENCRYPTION_KEYS = [NEW]
    assert {fresh(row).secret.reveal() for row in rows} == {CANARY}
    assert fresh(target).secrets.reveal() == '{"token": "x"}'


def test_nothing_else_is_written(settings: Settings) -> None:
    cluster()
    gitrepo = register(credential=credential(), targets=[{"cluster": "prod-eu"}])
    observed(gitrepo, A)
    row = Credential.objects.get()
    histories = Credential.history.count()
    jobs, remote, before = SyncJob.objects.count(), Remote.objects.get(), fresh(gitrepo)
    settings.ENCRYPTION_KEYS = [NEW, OLD]

    assert rotate().older == 1

    after = fresh(row)
    assert (after.updated_at, Credential.history.count(), SyncJob.objects.count()) == (row.updated_at, histories, jobs)
    assert (fresh(remote).wakes, fresh(remote).next_poll_at) == (remote.wakes, remote.next_poll_at)
    assert (fresh(gitrepo).generation, fresh(gitrepo).requested) == (before.generation, before.requested)


def test_a_run_that_was_ended_goes_on(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "BATCH", 2)
    rows = [credential(f"c{number}") for number in range(4)]
    settings.ENCRYPTION_KEYS = [NEW, OLD]

    def interrupt(column: str, so_far: Rotation) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rotate(progress=interrupt)
    done = [stored(row) for row in rows[:2]]
    assert (rotate().newest, rotate().newest) == (2, 4)
    assert [stored(row) for row in rows[:2]] == done, "what is under the newest key is left alone"


def test_what_no_key_opens_is_named_and_left(settings: Settings) -> None:
    good = credential("good")
    settings.ENCRYPTION_KEYS = [OTHER]
    lost = credential("lost")
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    before = stored(lost)

    status, out, err = run()

    assert status == 1 and "Credential lost" in err and "Put the key back" in err
    assert stored(lost) == before and before.decode() not in out + err and CANARY not in out + err
    assert is_under(NEW, stored(good)), "the others are written all the same"
    assert run("--check")[0] == 1


def test_an_edit_at_the_same_moment_wins(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    row = credential()
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    real = rotation.is_under

    def edited_meanwhile(key: str, token: bytes) -> bool:
        other = fresh(row)
        other.secret = "edited"
        other.save()
        return real(key, token)

    monkeypatch.setattr(rotation, "is_under", edited_meanwhile)
    status, _, err = run()

    assert (status, fresh(row).secret.reveal()) == (1, "edited")
    assert "1 were edited" in err
    monkeypatch.undo()
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    assert run()[0] == 0


def test_the_check_writes_nothing(settings: Settings) -> None:
    row = credential()
    before = stored(row)
    settings.ENCRYPTION_KEYS = [NEW, OLD]
    assert run("--check")[0] == 1
    assert stored(row) == before
