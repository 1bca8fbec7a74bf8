"""Rotating encryption keys: every encrypted column is written anew under the newest of ENCRYPTION_KEYS.

A row under the newest key already is passed over, so a run that was ended goes on where it was when it is run again. Each
row is written on the condition that its old ciphertext is still there: an edit that comes first wins. Nothing but the
column is written: no generation, no history, no `updated_at`, and nothing is woken.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cryptography.fernet import Fernet, InvalidToken
from django.apps import apps
from django.conf import settings
from django.db.models import Model

from repos.fields import EncryptedTextField, Secret, cipher

BATCH = 200


@dataclass
class Rotation:
    """How many secrets there are, by what became of them; `unreadable` names those that no key opens."""

    newest: int = 0
    """Already under the newest key."""
    older: int = 0
    """Under an older key: written anew, or with `check` only counted."""
    changed: int = 0
    """Edited at the same moment, and not looked at again."""
    unreadable: list[str] = field(default_factory=list)

    @property
    def seen(self) -> int:
        return self.newest + self.older + self.changed + len(self.unreadable)


def encrypted_columns() -> list[tuple[type[Model], str]]:
    """(model, field name) of every encrypted column there is."""
    return [
        (model, column.name)
        for model in apps.get_models()
        if model._meta.managed and not model._meta.proxy
        for column in model._meta.local_concrete_fields
        if isinstance(column, EncryptedTextField)
    ]


def rotate(*, check: bool = False, progress: Callable[[str, Rotation], None] = lambda *_: None) -> Rotation:
    """Write every secret anew that is under an older key; with `check` only count. `progress` hears of each batch."""
    rotation = Rotation()
    for model, column in encrypted_columns():
        for batch in _batches(model, column):
            for pk, secret in batch:
                _rotate_one(model, column, pk, secret, rotation, check=check)
            progress(f"{model._meta.object_name}.{column}", rotation)
    return rotation


def _batches(model: type[Model], column: str) -> Iterator[list[tuple[Any, Secret]]]:
    """The secrets that are set, by primary key."""
    rows = model._default_manager.filter(**{f"{column}__isnull": False}).order_by("pk").values_list("pk", column)
    batch = list(rows[:BATCH])
    while batch:
        yield [(pk, secret) for pk, secret in batch if secret]
        batch = list(rows.filter(pk__gt=batch[-1][0])[:BATCH])


def _rotate_one(model: type[Model], column: str, pk: Any, secret: Secret, rotation: Rotation, *, check: bool) -> None:
    token = secret.stored.encode()
    if is_under(settings.ENCRYPTION_KEYS[0], token):
        rotation.newest += 1
        return
    try:
        anew = Secret(cipher().rotate(token).decode())
    except InvalidToken:
        rotation.unreadable.append(_called(model, pk))
        return
    mine = model._default_manager.filter(pk=pk, **{column: secret})
    if check or mine.update(**{column: anew}):
        rotation.older += 1
    else:
        rotation.changed += 1


def is_under(key: str, token: bytes) -> bool:
    """Whether this key opens it."""
    try:
        Fernet(key).decrypt(token)
    except InvalidToken:
        return False
    return True


def _called(model: type[Model], pk: Any) -> str:
    """The row's model and name."""
    row = model._default_manager.filter(pk=pk).first()
    return f"{model._meta.object_name} {row if row is not None else pk}"
