"""Text that is encrypted at rest."""

import copy
import json

import pytest
from cryptography.fernet import Fernet
from django.core import serializers
from django.db import connection
from pytest_django import Settings

from repos.fields import Secret, SecretUnreadable
from repos.models import Credential
from tests.core import fresh

pytestmark = pytest.mark.django_db
TEXT = "s3cret-ä-token"


def credential(text: str = TEXT) -> Credential:
    return Credential.objects.create(name="team", kind="token", secret=text)


def stored(row: Credential) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT secret FROM repos_credential WHERE id = %s", [row.pk])
        return str(cursor.fetchone()[0])


def test_the_database_never_sees_the_text() -> None:
    row = credential()

    assert TEXT not in stored(row) and "s3cret" not in stored(row)
    assert fresh(row).secret.reveal() == TEXT
    assert row.secret.reveal() == TEXT  # and the text has left the instance


def test_the_same_text_is_never_stored_the_same() -> None:
    row = credential()
    before = stored(row)
    row.secret = TEXT
    row.save()

    assert stored(row) != before


def test_saving_something_else_does_not_encrypt_again() -> None:
    row = fresh(credential())
    before = stored(row)
    row.username = "git"
    row.save()

    assert stored(row) == before


def test_a_wrong_key_is_an_error_and_never_the_ciphertext(settings: Settings) -> None:
    row = credential()
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]

    with pytest.raises(SecretUnreadable) as caught:
        fresh(row).secret.reveal()

    assert stored(row) not in str(caught.value) and TEXT not in str(caught.value)
    assert "ENCRYPTION_KEYS" in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


@pytest.mark.parametrize("text", ["not a token", TEXT, "gAAAAA", "é"])
def test_what_was_put_there_by_hand_is_an_error_too(text: str) -> None:
    row = credential()
    with connection.cursor() as cursor:
        cursor.execute("UPDATE repos_credential SET secret = %s", [text])

    with pytest.raises(SecretUnreadable):
        fresh(row).secret.reveal()


def test_keys_are_rotated_by_putting_the_new_one_first(settings: Settings) -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    settings.ENCRYPTION_KEYS = [old]
    row = credential()

    settings.ENCRYPTION_KEYS = [new, old]
    again = fresh(row)
    assert again.secret.reveal() == TEXT
    again.secret = again.secret.reveal()
    again.save()

    settings.ENCRYPTION_KEYS = [new]
    assert fresh(row).secret.reveal() == TEXT


def test_nothing_prints_it() -> None:
    secret = fresh(credential()).secret

    for text in (repr(secret), str(secret), f"{secret}", f"{[secret]}", repr(copy.deepcopy(secret))):
        assert TEXT not in text and secret.stored not in text
    assert repr(Secret.of("")) == "Secret()"


def test_an_empty_secret_is_none() -> None:
    row = fresh(credential(""))

    assert not row.secret and row.secret.reveal() == "" and stored(row) == ""


def test_a_dump_carries_no_secret() -> None:
    """A load would take the token for a text, encrypt it, and hand it to a server one day."""
    row = credential()

    [dumped] = json.loads(serializers.serialize("json", [fresh(row)]))

    assert dumped["fields"]["secret"] == ""
